"""Held-out cells: what they are, and that nobody can have seen their outcome."""

import json
import re
from collections.abc import Sequence

import numpy as np

from bmscale.errors import BadInput
from bmscale.scaling.records import Records, columns_of
from bmscale.scaling.tables import Table

SAME = 1.005
"""N and D within this factor are the same cell."""
_CELL = re.compile(r"(?:(?P<name>[^:=,]+):)?(?P<columns>\w+=[^,=]+(?:,\w+=[^,=]+)*)")


Cells = dict[str, dict[str, float]]
"""Columns of each cell, by its name."""


def named(records: Records, table: Table, names: Sequence[str]) -> Cells:
    """The cells of these names, each that of a cell of the study, or `NAME:N=1e8,D=2e9`.

    Raises BadInput for a cell that is trained or begun.
    """
    known, found = records.cells(), Cells()
    for name in names:
        if name in known and records.study is not None:
            found[name] = columns_of(records.study, *known[name])
            _check_untrained(records, name)
        else:
            label, columns = _parse(name, list(known), table)
            found[label] = columns
            if label in records.outcomes:
                raise BadInput(f"{label}: is in {records.file} already: it can no longer be forecast")
        _check_not_there(table, *list(found.items())[-1])
    return found


def untrained_holdouts(records: Records, table: Table) -> tuple[Cells, list[BadInput]]:
    """The study's hold-outs; and, of those that are trained or begun, why they are left out."""
    found, left_out = Cells(), []
    for name, (trunk, cell) in records.cells().items():
        if records.study is not None and cell.kind == "holdout":
            columns = columns_of(records.study, trunk, cell)
            try:
                _check_untrained(records, name)
                _check_not_there(table, name, columns)
                found[name] = columns
            except BadInput as error:
                left_out.append(error)
    return found, left_out


def _parse(text: str, known: Sequence[str], table: Table) -> tuple[str, dict[str, float]]:
    match = _CELL.fullmatch(text.strip())
    if match is None:
        names = f"a cell of the study ({', '.join(known)}), or " if known else ""
        raise BadInput(f"--cells: must be {names}NAME:N=1e8,D=2e9; got '{text}'")
    columns = {}
    for part in match["columns"].split(","):
        key, _, value = part.partition("=")
        try:
            columns[key] = float(value)
        except ValueError:
            raise BadInput(f"--cells: {key} must be a number; got '{value}'") from None
        if key not in table.columns or not 0 < columns[key] < float("inf"):
            have = ", ".join(name for name in table.columns if name not in ("loss", "bleu"))
            raise BadInput(f"--cells: must give columns of the table ({have}) above 0; got '{part}'")
    if {"N_e", "N_d"} <= set(columns):
        columns.setdefault("N", columns["N_e"] + columns["N_d"])
    if {"N", "D"} <= set(columns):
        columns.setdefault("C", 6 * columns["N"] * columns["D"])
    if "D" in columns and "U" in table.columns:
        columns.setdefault("U", columns["D"])
    return match["name"] or match["columns"], columns


def _check_untrained(records: Records, name: str) -> None:
    """Raises BadInput for a cell that has an outcome, a run, or a trunk that was trained for it."""
    if name in records.outcomes:
        raise BadInput(f"{name}: is trained, with loss {records.outcomes[name]['loss']}: it can no longer be forecast")
    run = records.run_folder(name)
    if run is not None and run.path.exists():
        raise BadInput(f"{name}: its run has begun, {run.path} is there: forecast before training")
    assert records.study is not None
    trunk, cell = records.cells()[name]
    others = [one.branch_step for one in trunk.branches if one.kind != "holdout"]
    run = records.study.run_folder(trunk.name)
    if run.metrics.is_file() and cell.kind == "holdout":
        lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
        reached = max((int(line.get("step", 0)) for line in lines), default=0)
        if reached > max(others, default=0):
            raise BadInput(
                f"{name}: its trunk {trunk.name} is at step {reached:,}, beyond what the cells of the grid need "
                f"({max(others, default=0):,}): it was trained for the hold-out already; forecast before training"
            )


def _check_not_there(table: Table, name: str, columns: dict[str, float]) -> None:
    """Raises BadInput where a row has the same N and D, by whatever name."""
    shared = [key for key in ("N", "N_e", "N_d", "D") if key in columns and key in table.columns]
    near = np.ones(len(table), dtype=bool)
    for key in shared:
        near &= np.abs(np.log(table[key] / columns[key])) < np.log(SAME)
    if shared and near.any():
        row = table.rows[int(np.argmax(near))]
        raise BadInput(f"{name}: row {row} of the table has the same {', '.join(shared)}: its outcome is known")
