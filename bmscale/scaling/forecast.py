"""`bmscale scaling forecast`: predictions of cells that are not trained yet, frozen into a dated and hashed file.

A forecast names what it rests on (law and rows as the back-test chose them, the parameters, the table's SHA-256 and
that of each row) and ends with the SHA-256 of its own canonical JSON; a later one has the hash of the one before. So a
change of a file shows, unless all hashes from there on are made anew: publish or commit the last one where the time
matters.
"""

import glob
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PositiveFloat, model_validator

from bmscale.config import Config, Document, validate
from bmscale.errors import BadInput
from bmscale.scaling.analysis import AUTO, Analysis, analyse
from bmscale.scaling.checklist import drawn_from
from bmscale.scaling.fit import Objective
from bmscale.scaling.heldout import named, untrained_holdouts
from bmscale.scaling.intervals import LEVEL
from bmscale.scaling.records import Records, digest, moment, row_hashes
from bmscale.scaling.tables import Table
from bmscale.scaling.targets import at_budget, for_loss, predicted
from bmscale.training import record

FORMAT = 1
LEAST_DRAWS = 100
MOST_SAID = 300
"""Characters of what is wrong with a file."""

Content = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What is to be forecast."""

    cells: tuple[str, ...] = ()
    """Names of the study's cells, or `NAME:N=1e8,D=2e9`; none stands for the study's hold-outs that are not trained."""
    budgets: tuple[float, ...] = ()
    """FLOPs, as the table counts them."""
    losses: tuple[float, ...] = ()
    size: float | None = None
    """Parameters of the model that `losses` are of; None for the compute-optimal one."""


def check_out(records: Records, out: Path | None) -> None:
    """What can be said before the fit of where a forecast is to go.

    Raises BadInput where the file is already there, since a forecast is never written over, where it cannot be made,
    and for results that come with the package where `out` is not given.
    """
    if out is None and records.is_shipped:
        raise BadInput(
            f"--out: must be given: the results of {records.name} come with bmscale, whose folder stays as it is"
        )
    if out is None:
        return
    if out.is_dir():
        raise BadInput(f"--out: must be a new file; {out} is a folder")
    if out.exists():
        raise _not_new(out)
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise BadInput(f"--out: must be a new file; {folder} is no folder that can be written to")


def _not_new(path: Path) -> BadInput:
    return BadInput(
        f"--out: must be a new file; {path} is there, and a forecast is never written over. Without --out the next "
        "one gets a name of its own"
    )


def freeze(records: Records, content: Content, out: Path | None = None) -> Path:
    """Write a forecast as a new file; by default forecast.json, then forecast-2.json and so on in the folder.

    Raises BadInput as `check_out` does.
    """
    check_out(records, out)
    path = out or next(path for number in range(1, 1000) if not (path := _path(records, number)).exists())
    before = newest(records)
    values = {**content, "previous": None}
    if before is not None:
        values["previous"] = {"file": before.name, "sha256": _read(before).get("sha256")}
    try:
        text = json.dumps({**values, "sha256": digest(values)}, indent=1, ensure_ascii=False) + "\n"
    except ValueError:
        raise BadInput(
            "a forecast must be of finite numbers, and this law's are beyond them: the rows do not say enough for it; "
            "add rows, or give another --law"
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise _not_new(path) from None
    return path


def _path(records: Records, number: int) -> Path:
    return records.folder / f"{records.stem}{'' if number == 1 else f'-{number}'}.json"


def files(records: Records) -> list[Path]:
    """The forecasts in the folder, by the time that they say, then by name."""
    found = [path for path in records.folder.glob(f"{glob.escape(records.stem)}*.json") if path.is_file()]
    return sorted(found, key=lambda path: (_time_said(path), len(path.name), path.name))


def _time_said(path: Path) -> datetime:
    """A damaged file comes first: whoever reads it says so."""
    try:
        said = moment(_read(path).get("frozen"))
    except BadInput:
        said = None
    return said or datetime.min.replace(tzinfo=UTC)


def newest(records: Records) -> Path | None:
    """The one that the next is chained to."""
    return next(reversed(files(records)), None)


def _read(path: Path) -> Content:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise BadInput(f"{path}: must be a forecast, a JSON object; {error}") from None
    if not isinstance(values, dict):
        raise BadInput(f"{path}: must be a forecast, a JSON object")
    return values


def read(path: Path) -> tuple[Content, bool]:
    """(content, whether its hash is that of its content). Raises BadInput for a file that is no forecast."""
    values = _read(path)
    if not isinstance(values.get("cells"), list) or "sha256" not in values or "frozen" not in values:
        raise BadInput(f"{path}: must be a forecast of `bmscale scaling forecast`: it has no cells or no hash")
    if values.get("format") != FORMAT:
        raise BadInput(f"{path}: must be of format {FORMAT}; got {values.get('format')}; another version wrote it")
    try:
        validate(_Forecast, Document(values, {(): str(path)}))
    except BadInput as error:
        raise BadInput(str(error).partition("\n")[0][:MOST_SAID]) from None
    try:
        hashed = digest({key: value for key, value in values.items() if key != "sha256"})
    except ValueError as error:  # of NaN, infinities and lone surrogates
        raise BadInput(f"{path}: must be a forecast, whose content has a hash; {error}") from None
    return values, hashed == values["sha256"]


class _Part(Config, extra="ignore"):
    """A part of a forecast file: what is read of it."""


Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
Reach = Annotated[list[float | None], Field(min_length=2, max_length=2)]
"""An interval whose ends may be out of reach."""


def _above_0(columns: dict[str, float]) -> dict[str, float]:
    for name, value in columns.items():
        if value <= 0:
            raise ValueError(f"{name} must be above 0; got {value:g}")
    return columns


class _Cell(Config, extra="allow"):
    __pydantic_extra__: dict[str, float] = Field(init=False)
    """N, D, C and the rest."""
    cell: str
    loss: PositiveFloat | None = None
    bleu: PositiveFloat | None = None
    interval_90: Interval
    interval_95: Interval

    @model_validator(mode="after")
    def _is_of_something(self) -> "_Cell":
        given = self.bleu if "bleu" in self.model_fields_set else self.loss
        if given is None:
            raise ValueError("must have a loss or a bleu")
        _above_0(self.__pydantic_extra__)
        return self


class _Table(_Part):
    sha256: str
    columns: list[str]
    column_options: list[str]
    drop: list[str]
    largest: Annotated[dict[str, float], AfterValidator(_above_0)] = Field(default_factory=dict)
    rows: dict[str, str]
    fitted: list[str]


class _Fit(_Part):
    law: str
    chosen: str = ""


class _Software(_Part):
    bmscale: str = ""
    git_commit: str | None = None


class _Previous(_Part):
    file: str
    sha256: str | None


class _Budget(_Part):
    budget: float
    N: float
    N_interval_95: Reach | None = None
    D: float
    D_interval_95: Reach | None = None
    loss: float | None = None
    interval_90: Interval | None = None


class _Loss(_Part):
    loss: float
    at: str
    N: float | None
    D: float | None
    D_interval_95: Reach | None = None
    C: float | None = None
    limit: float | None = None


class _Forecast(_Part):
    """What scores and the report read of a forecast file."""

    frozen: str
    sha256: str
    software: _Software = Field(default_factory=_Software)
    table: _Table
    fit: _Fit
    cells: list[_Cell]
    budgets: list[_Budget] = Field(default_factory=list)
    losses: list[_Loss] = Field(default_factory=list)
    previous: _Previous | None = None

    @model_validator(mode="after")
    def _has_a_time(self) -> "_Forecast":
        if moment(self.frozen) is None:
            raise ValueError(f"frozen must be a time as in 2026-01-31T12:00:00+00:00; got '{self.frozen[:40]}'")
        return self


# -- what is forecast


def forecast(
    records: Records,
    asked: Asked,
    *,
    law: str = AUTO,
    objective: Objective | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Content:
    """The content of a forecast, without chain and hash.

    Raises BadInput for a cell that was named and is already trained or begun, for one that is not known, where nothing
    is left to forecast, and for a table that no law can be fitted to.
    """
    if draws < LEAST_DRAWS:
        raise BadInput(f"--draws: must be at least {LEAST_DRAWS} for prediction intervals; got {draws}")
    table = records.table()
    left_out: list[BadInput] = []
    if asked.cells:
        cells = named(records, table, asked.cells)
    else:
        cells, left_out = untrained_holdouts(records, table)
    if not (cells or asked.budgets or asked.losses):
        if left_out:
            raise left_out[0]
        raise BadInput("nothing to forecast: the study has no holdouts; give --cells, --budget or --loss")
    found = analyse(table, law=law, objective=objective, draws=draws, seed=seed)
    assert found.bootstrap is not None  # draws are not 0
    predictions = [{"cell": name, **columns, **predicted(found, columns)} for name, columns in cells.items()]
    window = found.backtest.chosen.window if law == AUTO and found.backtest is not None else 1.0
    return {
        "format": FORMAT,
        "name": records.name,
        "frozen": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": {"bmscale": record.versions()["versions"]["bmscale"], "git_commit": record.commit()},
        "table": _table(records, table, found),
        "fit": {**_fit(found), "window": window, "chosen": "by the back-test" if law == AUTO else "by name"},
        "backtest": _backtest(found, window),
        "warnings": [*found.warnings, *(f"left out: {error}" for error in left_out)],
        "cells": predictions,
        "budgets": [at_budget(found, budget) for budget in asked.budgets],
        "losses": [for_loss(found, loss, asked.size) for loss in asked.losses],
    }


def _table(records: Records, table: Table, found: Analysis) -> Content:
    columns = [*found.fit.law.needs, found.fit.law.target]
    hashes = row_hashes(records, table, columns)
    fitted = set(found.fitted.rows)
    ids = [name for name, number in zip(hashes, table.rows, strict=True) if number in fitted]
    return {
        "file": records.file.name,
        "sha256": sha256(records.file.read_bytes()).hexdigest(),
        "columns": columns,
        "column_options": list(records.columns),
        "drop": list(records.drop),
        "largest": {name: float(found.fitted[name].max()) for name in ("C", "D", "N") if name in found.fitted.columns},
        "rows": hashes,
        "fitted": ids,
    }


def _fit(found: Analysis) -> Content:
    values = found.fit.to_dict()
    boot = found.bootstrap
    assert boot is not None
    return {
        **{name: values[name] for name in ("law", "equation", "loss", "parameters", "objective", "rows", "gone")},
        "intervals": {"level": LEVEL, "parameters": {k: list(v) for k, v in found.parameter_intervals.items()}},
        "draws": len(boot.inner),
        "drawn": drawn_from(found.fitted, boot),
        "certificate": values["certificate"],
    }


def _backtest(found: Analysis, window: float) -> Content | None:
    tested = found.backtest
    chosen = None if tested is None else tested.of(found.fit.law.name, window)
    if tested is None or chosen is None:
        return None
    return {
        "scale": tested.scale,
        "held_out": tested.held_out,
        "factor": tested.factor,
        "error": chosen.error,
        "best_error": chosen.best_error,
    }


def to_text(content: Content) -> str:
    """What the command prints of a forecast."""
    fit, table = content["fit"], content["table"]
    lines = [
        f"{content['name']}: law {fit['law']}, {fit['chosen']}, on {len(table['fitted'])} of "
        f"{len(table['rows'])} rows; frozen {content['frozen']}"
    ]
    lines += [f"warning: {text}" for text in content["warnings"]]
    for cell in content["cells"]:
        target = "bleu" if "bleu" in cell else "loss"
        lines.append(f"{cell['cell']}: {target} {cell[target]:.5g}, {_range(cell)}")
    for one in content["budgets"]:
        lines.append(
            f"{one['budget']:.3g} FLOPs: N {one['N']:.4g} ({_ends(one['N_interval_95'])}), D {one['D']:.4g} "
            f"({_ends(one['D_interval_95'])}), loss {one['loss']:.5g}, {_range(one)}"
        )
    for one in content["losses"]:
        at = f"loss {one['loss']:g} at {one['at']}" + (f" of {one['N']:.4g} parameters" if one["N"] else "")
        if one["D"] is None:
            lines.append(f"{at}: out of reach, the law ends at {one['limit']:.5g}")
        else:
            lines.append(f"{at}: {one['D']:.4g} tokens ({_ends(one['D_interval_95'])}), {one['C']:.3g} FLOPs")
    return "\n".join(lines)


def _range(values: Content) -> str:
    return "; ".join(
        f"{level} % {values[f'interval_{level}'][0]:.5g} to {values[f'interval_{level}'][1]:.5g}" for level in (90, 95)
    )


def _ends(interval: list[float | None]) -> str:
    low, high = ("out of reach" if end is None else f"{end:.3g}" for end in interval)
    return f"95 % {low} to {high}"
