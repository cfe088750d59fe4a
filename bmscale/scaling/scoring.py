"""Forecasts against outcomes, and whether they were forecasts: what was frozen when, and what has changed since."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from bmscale.errors import BadInput
from bmscale.scaling import forecast
from bmscale.scaling.reading import open_table
from bmscale.scaling.records import Records, finite, moment, row_hashes

FORECAST, LATE, UNTIMED, OPEN = "forecast", "not a forecast", "time not known", "not trained yet"
CHANGED, NO_OUTCOME = "file was changed", "no finite outcome"
MOST_NAMED = 5
OTHER = 0.01
"""N or D of an outcome further than this share from what was forecast is another cell."""


@dataclass(frozen=True)
class Scored:
    """One cell of one forecast."""

    cell: str
    predicted: float
    interval_90: tuple[float, float]
    interval_95: tuple[float, float]
    frozen: str
    outcome: float | None = None
    started: str | None = None
    """When the cell's training began."""
    columns: Mapping[str, float] = field(default_factory=dict)
    """N, D, C and the rest, as they were forecast."""
    whole: bool = True
    """Whether the file is as it was frozen."""
    factor: float | None = None
    """FLOPs over those of the largest cell that was fitted."""
    has_row: bool = False
    """Whether it was trained, with whatever outcome."""

    @property
    def status(self) -> str:
        """Whether it was a forecast: frozen before the cell's training began."""
        if not self.whole:
            return CHANGED
        if self.outcome is None:
            return NO_OUTCOME if self.has_row else OPEN
        frozen, started = moment(self.frozen), moment(self.started)
        if frozen is None or started is None:
            return UNTIMED
        return FORECAST if frozen <= started else LATE

    @property
    def error(self) -> float | None:
        """Outcome over forecast, less 1."""
        return None if self.outcome is None else self.outcome / self.predicted - 1

    def inside(self, level: int) -> bool | None:
        """Whether the outcome lies in the interval of 90 or 95 %."""
        if self.outcome is None:
            return None
        low, high = self.interval_90 if level == 90 else self.interval_95
        return low <= self.outcome <= high


@dataclass(frozen=True)
class Frozen:
    """One forecast file, read and checked."""

    path: Path
    content: dict[str, Any]
    cells: tuple[Scored, ...]
    notes: tuple[str, ...]
    """What keeps it from being what was frozen; none where all is well."""
    remarks: tuple[str, ...] = ()
    """What has changed since without touching it."""


def score(records: Records, paths: Sequence[Path] = ()) -> list[Frozen]:
    """Every forecast of a study, the oldest first, against the outcomes that are there. Damaged files are said in
    notes, not raised: a report of them must be possible. Raises BadInput for rows of the study that are damaged."""
    found: list[Frozen] = []
    _ = records.outcomes  # a damaged row is said here, and is no forecast's fault
    for path in list(paths) or forecast.files(records):
        try:
            found.append(_frozen(records, path, found))
        except (BadInput, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            found.append(Frozen(path, {}, (), (f"{path.name} cannot be read as a forecast: {error}",)))
    return found


def _frozen(records: Records, path: Path, before: Sequence[Frozen]) -> Frozen:
    content, whole = forecast.read(path)
    cells = tuple(_scored(records, content, cell, whole) for cell in content["cells"])
    changed = [] if whole else [f"{path.name} was changed after it was frozen: its content has another hash"]
    notes, remarks = _against_table(records, content)
    notes = [*changed, *_chain(path, content, before), *notes, *_other_cells(records, content)]
    for cell, one in zip(content["cells"], cells, strict=True):
        if one.has_row and one.outcome is None:
            notes.append(f"{one.cell} has no finite {_target(cell)}: diverged?")
    return Frozen(path, content, cells, tuple(notes), tuple(remarks))


def _target(cell: Mapping[str, Any]) -> str:
    return "bleu" if "bleu" in cell else "loss"


def _scored(records: Records, content: dict[str, Any], cell: dict[str, Any], whole: bool) -> Scored:
    name, target = cell["cell"], _target(cell)
    row = records.outcomes.get(name)
    outcome = None if row is None else finite(row.get(target))
    started = records.started(name)
    ninety, ninety_five = ((float(low), float(high)) for low, high in (cell["interval_90"], cell["interval_95"]))
    columns = {key: float(value) for key, value in cell.items() if isinstance(value, int | float) and key != target}
    frozen, factor, predicted = str(content["frozen"]), _factor(content, cell), float(cell[target])
    return Scored(
        *(name, predicted, ninety, ninety_five, frozen, outcome, started, columns, whole, factor, row is not None)
    )


def _factor(content: dict[str, Any], cell: dict[str, Any]) -> float | None:
    largest = content["table"].get("largest", {})
    name = next((name for name in ("C", "D", "N") if name in largest and name in cell), None)
    return None if name is None else float(cell[name]) / float(largest[name])


def _chain(path: Path, content: dict[str, Any], before: Sequence[Frozen]) -> list[str]:
    """Whether the hash of the forecast before is that of the file that is there."""
    previous = content.get("previous")
    if previous is None:
        first = next((one for one in before if one.content), None)
        return [f"{path.name} names no forecast before it, and {first.path.name} is there"] if first else []
    same = [one for one in before if one.path.name == previous["file"]]
    if not same:
        return [f"{path.name} was frozen after {previous['file']}, which is no longer there"]
    if same[0].content.get("sha256") != previous["sha256"]:
        return [f"{previous['file']} is not the file that {path.name} was frozen after: it has another hash"]
    return []


def _against_table(records: Records, content: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(notes, remarks): rows that a forecast was fitted on must be as they were; more rows are welcome."""
    was = content["table"]
    try:
        table = open_table(records.file, was["column_options"], was["drop"])
        now = row_hashes(records, table, was["columns"])
    except BadInput as error:
        return [f"the table that it was fitted on cannot be read: {error}"], []
    fitted = [name for name in was["rows"] if name in set(was["fitted"])]
    gone = [name for name in fitted if name not in now]
    changed = [name for name in fitted if name in now and now[name] != was["rows"][name]]
    notes = []
    if gone:
        notes.append(f"rows that it was fitted on are no longer in the table: {_listed(gone)}")
    if changed:
        notes.append(f"rows that it was fitted on have other values now: {_listed(changed)}")
    others = [name for name in was["rows"] if name not in fitted and now.get(name) != was["rows"][name]]
    remarks = []
    if others:
        remarks.append(f"rows that it left out have changed: {_listed(others)}")
    more = [name for name in now if name not in was["rows"]]
    if more:
        remarks.append(f"the table has {len(more)} rows more than then: {_listed(more)}")
    if not (notes or remarks) and sha256(records.file.read_bytes()).hexdigest() != was["sha256"]:
        remarks.append("the table's file is another one, its rows are the same")
    return notes, remarks


def _other_cells(records: Records, content: dict[str, Any]) -> list[str]:
    """Outcomes of another model or another number of tokens than was forecast under that name."""
    notes = []
    for cell in content["cells"]:
        row = records.outcomes.get(cell["cell"], {})
        off = [
            f"{name} {now:.4g} instead of {float(cell[name]):.4g}"
            for name in ("N", "D")
            if name in cell and (now := finite(row.get(name))) is not None and abs(now / cell[name] - 1) > OTHER
        ]
        if off:
            notes.append(f"{cell['cell']} was trained as another cell than the one forecast: {', '.join(off)}")
    return notes


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
