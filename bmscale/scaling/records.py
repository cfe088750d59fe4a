"""What a study, or a table, has on disk: rows by their ids with hashes, outcomes by cell, and when each was trained."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from bmscale.config import preset_names
from bmscale.data.manifest import MANIFEST
from bmscale.errors import BadInput
from bmscale.experiment import RunFolder
from bmscale.scaling.outcome import TABLES, Parameters, tokens_of_an_epoch
from bmscale.scaling.reading import open_table, read_records
from bmscale.scaling.study import STUDIES, Cell, Study, Trunk, read_study
from bmscale.scaling.tables import Table
from bmscale.training import record

Row = dict[str, Any]
IDS = ("cell", "run", "run_name", "run_id", "name", "group")
"""Columns that name a row, the first of them that is there and different in all rows."""
NAMES = ("cell", "size", "precision")
ABOVE_0 = ("budget", "steps", "tokens_per_step", "learning_rate", "C")
FROM_0 = ("seed", "cooldown_steps")
"""What the report reads of each row of a study."""


@dataclass(frozen=True)
class Records:
    """A study's folder, or a table on its own."""

    name: str
    folder: Path
    """Where forecasts and the report are."""
    file: Path
    """The table that laws are fitted to."""
    study: Study | None = None
    columns: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    """As `--columns` and `--drop` gave them."""

    @property
    def stem(self) -> str:
        """What names of forecasts begin with: a table's own name, since a folder may hold several."""
        return "forecast" if self.study is not None else f"{self.file.stem}.forecast"

    @property
    def is_shipped(self) -> bool:
        """Whether these are results that come with the package, where nothing is written."""
        return self.folder.is_relative_to(STUDIES)

    def table(self) -> Table:
        """Raises BadInput where there is none yet, and for what no law can be fitted to."""
        if self.study is not None and not (self.file.is_file() and self.file.stat().st_size):
            raise BadInput(f"{self.file}: must hold the cells that are done; run the study first: bmscale scaling run")
        return open_table(self.file, self.columns, self.drop)

    def rows(self, kind: str = "table") -> list[Row]:
        """The lines of table, holdouts or from_scratch; of a table on its own, its rows. Raises BadInput for a line of
        a study that is not as `scaling run` writes it, and for a cell that has two."""
        path = self.file if self.study is None else self.folder / f"{kind}.jsonl"
        rows = [dict(row) for row in read_records(path)] if path.is_file() and path.stat().st_size else []
        if self.study is not None:
            _check_rows(path, rows)
        return rows

    @cached_property
    def outcomes(self) -> dict[str, Row]:
        """Every row by its id, hold-outs included; of a table on its own with its columns by our names. The loss is
        None where it is no finite number."""
        if self.study is None:
            rows, table = self.rows(), self.table()
            ids = row_ids(rows)
            return {
                ids[number - 1]: {
                    **rows[number - 1],
                    **{name: float(values[index]) for name, values in table.columns.items()},
                }
                for index, number in enumerate(table.rows)
            }
        rows = [row for kind in dict.fromkeys(TABLES.values()) for row in self.rows(kind)]
        return {row["cell"]: {**row, "loss": finite(row.get("loss"))} for row in rows}

    def cells(self) -> dict[str, tuple[Trunk, Cell]]:
        """The study's cells by name; none of a table."""
        trunks = [] if self.study is None else self.study.trunks
        return {cell.name: (trunk, cell) for trunk in trunks for cell in trunk.cells}

    def run_folder(self, cell: str) -> RunFolder | None:
        """Of a cell of the study; None for a table."""
        return None if self.study is None else self.study.run_folder(cell)

    def started(self, cell: str) -> str | None:
        """When the cell's training began, ISO 8601: by its run folder where it has one, or else by its row; None where
        that does not say, or says no time."""
        run = self.run_folder(cell)
        time = self.outcomes.get(cell, {}).get("started")
        if run is not None and run.record.is_file():
            try:
                time = record.read(run).starts[0].get("time")
            except (BadInput, LookupError):
                time = None
        return None if moment(time) is None else str(time)


def open_records(
    given: str, folder: str | None = None, columns: Sequence[str] = (), drop: Sequence[str] = ()
) -> Records:
    """Of a study's YAML file, its name, its folder, or a table's file. Raises BadInput for anything else.

    The name of a shipped study that was not run here stands for the results that come with it, if it has any.
    """
    path = Path(given)
    if path.is_dir():
        if not (path / "study.yaml").is_file():
            raise BadInput(f"{path}: must be a study's folder, a study's YAML file or a table; it has no study.yaml")
        study = read_study(str(path / "study.yaml"), [], folder or str(path))
    elif path.suffix in (".yaml", ".yml") or (not path.exists() and given in preset_names(STUDIES)):
        study = read_study(given, [], folder)
        shipped = STUDIES / given / study.table.name
        if folder is None and shipped.is_file() and not study.table.is_file():
            study = read_study(given, [], str(shipped.parent))
    else:
        return Records(path.stem, path.parent, path, None, tuple(columns), tuple(drop))
    return Records(study.config.name, study.folder, study.table, study, tuple(columns), tuple(drop))


def _check_rows(path: Path, rows: Sequence[Row]) -> None:
    """Raises BadInput for a row that the report cannot read, and for a cell that has two."""
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        for key in (*NAMES, *ABOVE_0, *FROM_0):
            given = row.get(key)
            if key in NAMES:
                whole, what = isinstance(given, str) and given != "", "a name"
            else:
                value = finite(given) if isinstance(given, int | float) else None
                whole = value is not None and (value > 0 or (value == 0 and key in FROM_0))
                what = "a number from 0" if key in FROM_0 else "a number above 0"
            if not whole:
                got = f"got {json.dumps(given)[:60]}" if key in row else "it is not there"
                raise BadInput(
                    f"{path}: row {number}: {key}: must be {what}, as `bmscale scaling run` writes it; {got}. Mend the "
                    "row or take it out"
                )
        first = seen.setdefault(row["cell"], number)
        if first != number:
            raise BadInput(
                f"{path}: row {number}: cell: must be in one row; {row['cell']} is in row {first} already. Take one of "
                "them out"
            )


def finite(value: Any) -> float | None:
    """A number as it stands in a file; None for what is none, NaN and the infinities."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def moment(text: Any) -> datetime | None:
    """The time of an ISO 8601 text, in UTC where it names no zone; None for what is no time."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time


def row_ids(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each row: that of the first column of IDS in which all are different, or `row N`."""
    for key in IDS:
        names = [str(row.get(key) or "") for row in rows]
        if all(names) and len(set(names)) == len(names):
            return names
    return [f"row {number}" for number in range(1, len(rows) + 1)]


def row_hashes(records: Records, table: Table, columns: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each row's values, by the row's id: what a fit has read, whatever else stands beside it."""
    ids = row_ids(records.rows())
    return {
        ids[number - 1]: digest({name: float(table[name][index]) for name in columns if name in table.columns})
        for index, number in enumerate(table.rows)
    }


def canonical(values: Mapping[str, Any]) -> bytes:
    """JSON that is the same for the same content: sorted keys, no spaces, UTF-8."""
    return json.dumps(
        values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()  # fmt: skip


def digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical(values)).hexdigest()


def columns_of(study: Study, trunk: Trunk, cell: Cell) -> dict[str, float]:
    """N, D, C and the rest of a cell that is not trained yet, counted as its line will have them."""
    count = Parameters.of(study.shape(cell.size))
    tokens = cell.steps * study.tokens_per_step
    directory = study.plain.data.directory
    epoch = tokens_of_an_epoch(directory) if (Path(directory) / MANIFEST).is_file() else None
    found = {
        "N": count.all,
        "N_non_embedding": count.non_embedding,
        "N_with_head": count.with_head,
        "N_e": count.encoder,
        "N_d": count.decoder,
        "D": tokens,
        "U": tokens if epoch is None else min(tokens, epoch),
        "C": cell.steps * trunk.flops_per_step,
    }
    return {name: float(value) for name, value in found.items() if value}
