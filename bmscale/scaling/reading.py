"""Tables from files: CSV, TSV and JSONL, columns recognised or named, units read."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bmscale.errors import BadInput
from bmscale.scaling.checks import check
from bmscale.scaling.law import Array
from bmscale.scaling.tables import Table

# What other people call the columns, without regard to case, spaces, underscores and hyphens.
ALIASES = {
    "N": ("n", "params", "parameters", "nparams", "numparams", "modelsize", "modelparameters", "paramsactiveprecise"),
    "D": ("d", "t", "tokens", "ntokens", "numtokens", "traintokens", "trainingtokens", "tokenstrained", "seenexamples"),
    "C": ("c", "flops", "flop", "trainingflop", "trainingflops", "compute", "trainflops", "totalflops"),
    "loss": ("loss", "finalloss", "validloss", "valloss", "validationloss", "testloss", "evalloss", "crossentropy"),
    "N_e": ("ne", "encoderparams", "encoderparameters", "paramsencoder", "nencoder"),
    "N_d": ("nd", "decoderparams", "decoderparameters", "paramsdecoder", "ndecoder"),
    "U": ("u", "uniquetokens", "uniquedata", "numuniquetokens"),
    "bleu": ("bleu", "sacrebleu", "testbleu"),
}
GROUPS = ("group", "run", "run_name", "name", "run_id")
UNITS = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
# A comma is a thousands mark: followed by three digits, and then by no fourth.
_NUMBER = re.compile(r"([-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([kKmMgGbBtT])?")
_GIVEN = re.compile(r"([A-Za-z_]\w*)=([^*]+?)(?:\*([\d.eE+-]+))?")


def open_table(path: str | Path, columns: Sequence[str] = (), drop: Sequence[str] = ()) -> Table:
    """A table of whatever a path is: a CSV, TSV or JSONL file.

    `columns` name columns where they are not recognised, and give units: `N=Model Size`, `D=tokens_b*1e9`. Raises
    BadInput for a file that cannot be read as a table, and for what `check` refuses.
    """
    path = Path(path)
    if path.is_dir():
        raise BadInput(f"{path}: must be a CSV, TSV or JSONL file; it is a folder")
    if not path.is_file():
        raise BadInput(f"{path}: must be a CSV, TSV or JSONL file; there is no such file")
    return make_table(str(path), read_records(path), columns, drop)


def make_table(
    name: str, records: Sequence[Mapping[str, Any]], columns: Sequence[str] = (), drop: Sequence[str] = ()
) -> Table:
    """The table of records, one a row, as `open_table` makes it of a file's."""
    if not records:
        raise BadInput(f"{name}: must have rows below its header; it has none")
    given = _parse_columns(name, columns, records[0])
    found = {**_recognised(name, records[0], given), **given}
    notes = [
        f"{ours} is '{theirs}'" + (f" times {factor:g}" if factor != 1 else "")
        for ours, (theirs, factor) in found.items()
    ]
    values = {ours: _numbers(name, ours, theirs, records) * factor for ours, (theirs, factor) in found.items()}
    groups, runs = _groups(records, {theirs for theirs, _ in found.values()}, notes)
    if not values:
        raise BadInput(
            f"{name}: must have columns for N, D and loss; got {', '.join(records[0])}; give --columns N=NAME …"
        )
    table = _derive(Table(name, values, groups, runs, notes=tuple(notes))).drop(drop)
    if not len(table):
        raise BadInput(f"--drop: must leave rows of {name}; got {', '.join(drop)}, which leaves none")
    return check(table)


def _groups(
    records: Sequence[Mapping[str, Any]], taken: set[str], notes: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(rows,) the group of each row and its run, by the first two of GROUPS that are there; both are said in notes."""
    names = {key.lower(): key for key in reversed(list(records[0])) if key not in taken}
    labels = [names[name] for name in GROUPS if name in names][:2]
    found = [tuple(str(record.get(label, "")) for record in records) for label in labels] or [()]
    if len(found) > 1 and len(set(found[1])) > len(set(found[0])):
        notes.append(f"rows are runs by '{labels[1]}', which are not independent where they share '{labels[0]}'")
    elif labels:
        notes.append(f"rows of one run share '{labels[0]}'")
        found = found[:1]
    return found[0], found[-1]


def read_records(path: Path) -> list[Mapping[str, Any]]:
    """The rows as they stand in the file. Raises BadInput for one that is no table."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: must be UTF-8 text, CSV, TSV or JSONL; byte {error.start} is not") from error
    if path.suffix.lower() in (".jsonl", ".ndjson", ".json") or text.lstrip()[:1] in ("{", "["):
        return _json_records(path, text)
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter)
    records: list[Mapping[str, Any]] = []
    try:
        header = list(reader.fieldnames or ())
        twice = next((theirs for theirs in header if theirs.strip() and header.count(theirs) > 1), None)
        if twice is not None:
            places = [str(place) for place, theirs in enumerate(header, 1) if theirs == twice]
            raise BadInput(f"{path}: columns must have different names; '{twice}' is in columns {', '.join(places)}")
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                raise BadInput(f"{path}: row {number} must have {len(header)} fields as the header does")
            records.append(row)
    except csv.Error as error:
        raise BadInput(f"{path}: must be CSV; line {reader.reader.line_num}: {error}") from error
    return records


def _json_records(path: Path, text: str) -> list[Mapping[str, Any]]:
    try:
        if text.lstrip().startswith("["):
            found = json.loads(text)
        else:
            found = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or an integer of over 4,300 digits
        raise BadInput(f"{path}: must be JSON objects, one a line; {error}") from error
    for number, record in enumerate(found, 1):
        if not isinstance(record, dict):
            raise BadInput(f"{path}: row {number} must be a JSON object; got {json.dumps(record)[:60]}")
    return list(found)


def _parse_columns(name: str, columns: Sequence[str], first: Mapping[str, Any]) -> dict[str, tuple[str, float]]:
    found: dict[str, tuple[str, float]] = {}
    for text in columns:
        match = _GIVEN.fullmatch(text.strip())
        if match is None:
            raise BadInput(f"--columns: must be OURS=THEIRS or OURS=THEIRS*FACTOR, as in D=tokens_b*1e9; got '{text}'")
        ours, theirs, factor = match[1], match[2].strip(), match[3]
        if ours not in ALIASES and not ours.startswith("N_"):
            raise BadInput(f"--columns: OURS must be one of {', '.join(ALIASES)} or N_…; got '{ours}'")
        if theirs not in first:
            raise BadInput(f"--columns: {name} has the columns {', '.join(first)}; got '{theirs}'")
        if ours in found:
            raise BadInput(f"--columns: {ours} must be given once; got '{found[ours][0]}' and '{theirs}'")
        double = next((name for name, (column, _) in found.items() if column == theirs), None)
        if double is not None:
            raise BadInput(f"--columns: '{theirs}' must be one of ours; got {double} and {ours}")
        try:
            found[ours] = (theirs, float(factor or 1))
        except ValueError:
            raise BadInput(f"--columns: the factor must be a number; got '{text}'") from None
    return found


def _recognised(
    name: str, first: Mapping[str, Any], given: Mapping[str, tuple[str, float]]
) -> dict[str, tuple[str, float]]:
    """Our names of the file's columns, with the unit that a header such as `tokens_b` or `params (M)` says."""
    taken = {theirs for theirs, _ in given.values()}
    found: dict[str, tuple[str, float]] = {}
    for theirs in first:
        unit = re.search(r"(?:[\s_(\[])([mMbBkKtT])[)\]]?$", theirs)
        factor = UNITS[unit[1].lower()] if unit else 1.0
        stem = theirs[: unit.start()] if unit else theirs
        plain = re.sub(r"[\s_\-()]", "", stem).lower()
        for ours, names in ALIASES.items():
            if plain not in names or ours in given or theirs in taken:
                continue
            if ours in found:
                raise BadInput(
                    f"{name}: one column must be {ours}; got '{found[ours][0]}' and '{theirs}'; say which: "
                    f"--columns '{ours}={theirs}'"
                )
            found[ours] = (theirs, factor)
        if re.fullmatch(r"N_\w+", theirs) and theirs not in ALIASES and theirs not in given:
            found[theirs] = (theirs, 1.0)
    return found


def _numbers(name: str, ours: str, theirs: str, records: Sequence[Mapping[str, Any]]) -> Array:
    """(rows,) with suffixes such as 70M read; BadInput where only some rows have one."""
    values, units = [], set()
    for number, record in enumerate(records, 1):
        given = record.get(theirs)
        text = "" if given is None else str(given).strip()
        match = _NUMBER.fullmatch(text)
        if match is None and text.lower().lstrip("+-") not in ("nan", "inf", "infinity"):
            mark = "; write the decimal mark as a point" if "," in text else ""
            raise BadInput(f"{name}: row {number}, column '{theirs}' must be a number; got '{text[:40]}'{mark}")
        if match is None:
            values.append(float(text))
            continue
        units.add(bool(match[2]))
        values.append(float(match[1].replace(",", "")) * UNITS.get((match[2] or "").lower(), 1.0))
    if len(units) > 1:
        raise BadInput(
            f"{name}: column '{theirs}' ({ours}) must have one unit; some rows have K, M, B or T and some not"
        )
    return np.array(values, dtype=np.float64)


def _derive(table: Table) -> Table:
    """C = 6 N D where two of the three are there, U = D at most."""
    have, notes = dict(table.columns), list(table.notes)
    with np.errstate(all="ignore"):
        for missing, formula in (("D", lambda: have["C"] / (6 * have["N"])), ("C", lambda: 6 * have["N"] * have["D"])):
            if missing not in have and {"N", "D", "C"} - {missing} <= set(have):
                have[missing] = formula()
                notes.append(f"{missing} is from C = 6 N D")
    if "N" not in have and {"N_e", "N_d"} <= set(have):
        have["N"] = have["N_e"] + have["N_d"]
        notes.append("N is N_e + N_d, without embeddings where those have none")
    return replace(table, columns=have, notes=tuple(notes))
