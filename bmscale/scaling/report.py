"""`bmscale scaling report`: report.html of a study, one page without scripts or other files, and its pictures as SVG.

What was forecast is read from the frozen files, never computed anew; what was changed or came too late stands on top.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bmscale.errors import BadInput
from bmscale.evaluation.report import page_environment
from bmscale.scaling import approaches, scoring
from bmscale.scaling.analysis import AUTO, Analysis, analyse
from bmscale.scaling.approaches import Allocation
from bmscale.scaling.checklist import drawn_from
from bmscale.scaling.checks import budgets
from bmscale.scaling.figures import Figure, figures
from bmscale.scaling.fit import fit
from bmscale.scaling.intervals import LEVEL, bootstrap, percentiles
from bmscale.scaling.laws import CHINCHILLA, ENCODER_DECODER
from bmscale.scaling.records import Records, Row, finite
from bmscale.scaling.scoring import FORECAST, LATE, OPEN, UNTIMED, Frozen, Scored
from bmscale.scaling.tables import Table
from bmscale.scaling.targets import at_budget
from bmscale.training import record

log = logging.getLogger("bmscale")

BEYOND = (10.0, 100.0)
"""Budgets of the allocation table: the table's own, and so many times its largest."""
SPLIT_FACTOR = 1.2
"""The encoder's largest share over its smallest from which a table is one of several splits."""


def write_report(
    records: Records,
    out: Path | None = None,
    *,
    law: str = AUTO,
    forecasts: Sequence[Path] = (),
    draws: int = 1000,
    seed: int = 0,
) -> Path:
    """Write the page, and the pictures as NAME-FIGURE.svg beside it; returns its path.

    A table that no law can be fitted to has a page too, which says why. Raises BadInput for a table that is none
    and for damaged rows of a study.
    """
    path = out or _default_path(records)
    table = records.table()
    frozen = scoring.score(records, forecasts)  # before the fit, which takes longer: damaged rows are refused here
    found, refused = _analysis(table, law, draws, seed)
    scored = [cell for one in frozen for cell in one.cells]
    pictures = [] if found is None else figures(found, scored)
    contents = {
        "name": records.name,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": {"version": record.versions()["versions"]["bmscale"], "commit": record.commit()},
        "table": table,
        "found": found,
        "refused": refused,
        "frozen": frozen,
        "verdict": _verdict(scored),
        "notes": _notes(frozen, found),
        "pictures": {picture.name: picture for picture in pictures},
        "allocations": _allocations(table, found),
        "minima": approaches.describe([] if found is None else found.minima),
        "fixed": ["a"] if found is not None and len(found.fit.law.shapes) == 1 else [],
        "budgets": _budgets(table, found),
        "irreducible": _irreducible(records, found),
        "saved": _saved(records),
        "scratch": _scratch(records),
        "split": _split(table, draws, seed),
        "checklist": _checklist(records, found),
    }
    page = page_environment(Path(__file__).parent).get_template("study.html.jinja").render(contents)
    _write(path, page)
    for picture in pictures:
        _write(_beside(path, picture), picture.file)
    log.info("%s, and %d pictures beside it", path, len(pictures))
    return path


def _default_path(records: Records) -> Path:
    """In the study's folder, or beside the table."""
    if records.study is None:
        return records.folder / f"{records.file.stem}.report.html"
    folder = Path("studies") / records.name if records.is_shipped else records.folder
    return folder / "report.html"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _beside(path: Path, picture: Figure) -> Path:
    return path.with_name(f"{path.stem}-{picture.name}.svg")


def _analysis(table: Table, law: str, draws: int, seed: int) -> tuple[Analysis | None, str]:
    """The fit, or why there is none; where nothing can be held out, Chinchilla's law with the reason beside it."""
    try:
        return analyse(table, law=law, draws=draws, seed=seed), ""
    except BadInput as error:
        reason = str(error)
    if law == AUTO:
        try:
            return analyse(table, law=CHINCHILLA.name, draws=draws, seed=seed), ""
        except BadInput as error:
            reason = str(error)
    return None, reason


# -- forecasts


def _verdict(scored: Sequence[Scored]) -> dict[str, Any]:
    """What became of the cells that were forecast in time, by the last forecast of each."""
    last = [one for one in {one.cell: one for one in scored}.values() if one.status == FORECAST]
    errors = [abs(one.error) for one in last if one.error is not None]
    return {
        "cells": len(last),
        "inside_90": sum(bool(one.inside(90)) for one in last),
        "inside_95": sum(bool(one.inside(95)) for one in last),
        "worst": max(errors) if errors else None,
        "open": sum(one.status == OPEN for one in scored),
    }


def _notes(frozen: Sequence[Frozen], found: Analysis | None) -> list[str]:
    """What a reader must know before believing the forecasts."""
    notes = [note if one.path.name in note else f"{one.path.name}: {note}" for one in frozen for note in one.notes]
    for one in frozen:
        late = [cell.cell for cell in one.cells if cell.status == LATE]
        untimed = [cell.cell for cell in one.cells if cell.status == UNTIMED]
        if late:
            notes.append(f"{one.path.name} was made after the training began of {', '.join(late)}: no forecast of them")
        if untimed:
            notes.append(
                f"{one.path.name}: when {', '.join(untimed)} was trained is not known, so that nothing shows that it "
                "was forecast"
            )
        law = one.content.get("fit", {}).get("law")
        if found is not None and law not in (None, found.fit.law.name):
            notes.append(
                f"{one.path.name} was made by the law {law}; the table as it is now is fitted by {found.fit.law.name} "
                "below"
            )
    cells = [cell.cell for one in frozen for cell in one.cells]
    again = sorted({cell for cell in cells if cells.count(cell) > 1})
    if again:
        notes.append(f"forecast more than once, each is shown: {', '.join(again)}")
    return notes


# -- the fit


@dataclass(frozen=True)
class _Approach:
    """A line of the allocation table: an allocation, or why there is none."""

    name: str
    found: Allocation | None
    refused: str = ""


def _allocations(table: Table, found: Analysis | None) -> list[_Approach]:
    if "N" not in table.columns or "loss" not in table.columns:
        return []
    ways: dict[str, Callable[[], Allocation]] = {
        "1, training curves": lambda: approaches.training_curves(table),
        "2, isoFLOP curves, parabola": lambda: approaches.isoflop(table, leave_out_edges=True),
        "2, isoFLOP curves, Akima": lambda: approaches.isoflop(table, curve="akima", leave_out_edges=True),
    }
    lines = []
    for name, way in ways.items():
        try:
            lines.append(_Approach(name, way()))
        except BadInput as error:
            lines.append(_Approach(name, None, str(error).removeprefix(f"{table.name}: ")))
    own = [] if found is None else [one for one in found.allocations if one.approach == "approach 3"]
    name = "3, the law" if found is None else f"3, law {found.fit.law.name}"
    return [*lines, *(_Approach(name, one) for one in own)]


def _budgets(table: Table, found: Analysis | None) -> list[Row]:
    """Best N and D at the table's budgets and beyond; none where the law has no optimum."""
    if found is None or "C" not in table.columns or found.bootstrap is None:
        return []
    each = [float(np.exp(np.log(table["C"][rows]).mean())) for rows in budgets(table["C"])]
    shown = [each[index] for index in np.unique(np.linspace(0, len(each) - 1, min(5, len(each))).round().astype(int))]
    try:
        return [at_budget(found, budget) for budget in [*shown, *(times * each[-1] for times in BEYOND)]]
    except BadInput:
        return []


def _split(table: Table, draws: int, seed: int) -> dict[str, Any] | None:
    """p_e and p_d, with intervals, of a table with several splits of encoder and decoder."""
    if not {"N_e", "N_d", "D", "loss"} <= set(table.columns):
        return None
    share = table["N_e"] / (table["N_e"] + table["N_d"])
    if share.max() <= SPLIT_FACTOR * share.min():
        return None
    drawn = table.drawn_by(len(ENCODER_DECODER.parameters))
    try:
        found = fit(ENCODER_DECODER, table.columns)
        boot = bootstrap(found, table.columns, drawn, draws=draws, seed=seed) if draws else None
    except BadInput as error:
        return {"refused": str(error)}
    ranges = {} if boot is None else boot.intervals()
    own = found.parameters["p_e"] / (found.parameters["p_e"] + found.parameters["p_d"])
    interval = None
    if boot is not None:
        interval = percentiles(boot.statistic(lambda values: values["p_e"] / (values["p_e"] + values["p_d"])), LEVEL)
    return {
        "law": ENCODER_DECODER,
        "parameters": found.parameters,
        "intervals": ranges,
        "drawn": "" if boot is None else drawn_from(table, boot),
        "share": own,
        "share_interval": interval,
        "shares": (float(share.min()), float(share.max())),
    }


# -- what a study's rows say besides


def _irreducible(records: Records, found: Analysis | None) -> dict[str, Any] | None:
    """The loss that is known to be the least beside the fitted E."""
    known = {value for row in records.rows() if (value := finite(row.get("irreducible_loss"))) is not None}
    if len(known) != 1:
        return None
    result: dict[str, Any] = {"known": known.pop(), "E": None, "interval": None}
    if found is not None and "E" in found.fit.parameters:
        result |= {"E": found.fit.parameters["E"], "interval": found.parameter_intervals.get("E")}
    return result


def _saved(records: Records) -> dict[str, float] | None:
    """FLOP of the grid's trunks with their branches, and of the same cells each from scratch.

    Repeats are counted with the grid, hold-outs are not: what a trunk is trained beyond the grid serves them alone.
    """
    rows = records.rows()
    if records.study is None or not rows:
        return None
    made, scratch = 0.0, sum(float(row["C"]) for row in rows)
    for trunk in {(row["size"], row["seed"]) for row in rows}:
        own = [row for row in rows if (row["size"], row["seed"]) == trunk]
        steps = max(row["steps"] - row["cooldown_steps"] for row in own) + sum(row["cooldown_steps"] for row in own)
        made += steps * sum(float(row["C"]) for row in own) / sum(row["steps"] for row in own)
    return {"made": made, "scratch": scratch, "share": 1 - made / scratch}


def _scratch(records: Records) -> list[Row]:
    """Branches beside the same runs from scratch."""
    if records.study is None:
        return []
    found = []
    for row in records.rows("from_scratch"):
        branch = records.outcomes.get(str(row["cell"]).removesuffix("-scratch"))
        if branch is not None:
            loss, other = branch["loss"], finite(row.get("loss"))
            gap = loss / other - 1 if loss is not None and other else None
            found.append({"cell": branch["cell"], "branch": loss, "scratch": other, "gap": gap})
    return found


def _checklist(records: Records, found: Analysis | None) -> dict[str, str]:
    """The fit's, with what the study knows besides."""
    answers = {} if found is None else {item.question: item.answer for item in found.checklist}
    rows = records.rows()
    if records.study is None or not rows:
        return answers
    study, training = records.study.config, records.study.plain.training
    rates = {row["size"]: row["learning_rate"] for row in rows}
    cells: dict[Any, int] = {}
    for row in rows:
        cells[row["size"], row["budget"]] = cells.get((row["size"], row["budget"]), 0) + 1
    several = sum(count > 1 for count in cells.values())
    steps = ", ".join(sorted({f"{row['tokens_per_step']:,}" for row in rows}))
    optimizer = {key: value for key, value in training.optimizer.model_dump().items() if key != "learning_rate"}
    return answers | {
        "seeds of one cell": f"up to {max(cells.values())}, at {several} of {len(cells)} cells" if several else "one",
        "how N is counted": "all parameters, tied ones once; beside it "
        + ", ".join(key for key in rows[0] if key.startswith("N_")),
        "how D is counted": "target tokens trained on, </s> included",
        "how C is counted": "from the texts' lengths, forward and backward, with attention and head; 6 N D beside it",
        "learning rate tuned at each size": "not known; peak rates "
        + ", ".join(f"{size} {rate:g}" for size, rate in rates.items()),
        "batch size and schedule": f"{steps} target tokens a step; warm-up, constant, then to 0 as 1 - sqrt over the "
        f"last {study.cooldown_fraction:g} of the steps",
        "optimizer of the training": ", ".join(f"{key} {value}" for key, value in optimizer.items()),
        "what the loss is of": "the whole validation set at the last step, nats a target token, computed in "
        + ", ".join(
            f"{precision}, as the training, and not in fp32" if precision != "fp32" else precision
            for precision in sorted({str(row["precision"]) for row in rows})
        ),
    }
