"""What scaling studies under-report, filled in from what is known here.

After the checklist of Li et al. 2025, "(Mis)Fitting: A Survey of Scaling Laws" (arXiv 2502.18969), which found that
most of some 50 papers leave out what is needed to repeat their fits. What a table cannot tell is said to be not known,
for the author to add.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bmscale.scaling.backtest import BackTest, scale_of
from bmscale.scaling.checks import budgets
from bmscale.scaling.fit import Fit
from bmscale.scaling.intervals import Bootstrap
from bmscale.scaling.tables import Table

UNKNOWN = "not known"


@dataclass(frozen=True)
class Item:
    """A question of the checklist and its answer."""

    question: str
    answer: str

    @property
    def known(self) -> bool:
        return self.answer != UNKNOWN


def checklist(
    table: Table,
    fit: Fit,
    *,
    bootstrap: Bootstrap | None = None,
    backtest: BackTest | None = None,
    window: float = 1.0,
    study: Mapping[str, str] | None = None,
) -> tuple[Item, ...]:
    """The questions with what the table, the fit and the back-test answer; `study` answers more, by question.
    `window` is the share of the rows that the fit is of."""
    answers = {**_of_runs(table), **_of_fit(table, fit, bootstrap, backtest, window)}
    given = dict(study or {})
    questions = [*QUESTIONS, *(question for question in given if question not in QUESTIONS)]
    return tuple(Item(question, given.get(question) or answers.get(question) or UNKNOWN) for question in questions)


QUESTIONS = (
    "form of the law",
    "runs and rows",
    "sizes",
    "budgets",
    "seeds of one cell",
    "how N is counted",
    "how D is counted",
    "how C is counted",
    "intermediate checkpoints",
    "rows left out",
    "learning rate tuned at each size",
    "batch size and schedule",
    "optimizer of the training",
    "data and epochs",
    "what the loss is of",
    "objective of the fit",
    "optimizer of the fit",
    "starts of the fit",
    "intervals",
    "error at runs held out",
)


def _of_runs(table: Table) -> dict[str, str]:
    notes = {note.partition(" is ")[0]: note for note in table.notes if " is " in note}
    runs = len(set(table.runs))
    found = {
        "runs and rows": f"{runs} runs, {len(table)} rows",
        "intermediate checkpoints": f"yes, {len(table) - runs} rows more than runs" if runs < len(table) else "",
        "rows left out": "; ".join(table.dropped) or "none by this command",
        "seeds of one cell": _repeats(table),
        "what the loss is of": UNKNOWN,
    }
    for name in ("N", "D", "C"):
        if name in table.columns:
            others = [other for other in table.columns if name == "N" and other.startswith("N_")]
            beside = f"; beside it {', '.join(others)}" if others else ""
            found[f"how {name} is counted"] = notes.get(name, f"column {name}") + beside
    if "N" in table.columns:
        found["sizes"] = f"{len(np.unique(table['N']))}, {_range(table, 'N')} parameters"
    scale = scale_of(table)
    unit = {"C": "FLOPs", "D": "tokens", "N": "parameters"}.get(scale, scale)
    found["budgets"] = f"{len(budgets(table[scale]))}, {_range(table, scale)} {unit}"
    if {"U", "D"} <= set(table.columns):
        found["data and epochs"] = f"up to {np.max(table['D'] / table['U']):.3g} epochs"
    return found


def _range(table: Table, name: str) -> str:
    return f"{table[name].min():.3g} to {table[name].max():.3g}"


SAME_CELL = 1.005
"""Within this factor of each other, budgets of one size are one cell's."""


def _repeats(table: Table) -> str:
    """Runs of one size and, within SAME_CELL, of one budget: those of other seeds have a few tokens more or less."""
    sizes = [name for name in table.columns if name[0] == "N"]
    if not sizes:
        return ""
    number = np.unique(np.stack([table[name] for name in sizes], axis=1), axis=0, return_inverse=True)[1].ravel()
    runs, seeds = np.array(table.runs), []
    for size in range(number.max() + 1):
        rows = np.flatnonzero(number == size)
        cells = budgets(table[scale_of(table)][rows], SAME_CELL)
        seeds += [len(np.unique(runs[rows[cell]])) for cell in cells]
    return f"up to {max(seeds)}, at {sum(count > 1 for count in seeds)} cells" if max(seeds) > 1 else "one"


def _of_fit(
    table: Table, fit: Fit, bootstrap: Bootstrap | None, backtest: BackTest | None, window: float
) -> dict[str, str]:
    certificate = fit.certificate
    found = {
        "form of the law": f"{fit.law.equation} ({fit.law.source}), {len(fit.law.parameters)} parameters",
        "objective of the fit": fit.objective.describe(),
        "optimizer of the fit": "variable projection over a grid of exponents, then Newton's method in a trust region; "
        f"largest component of the gradient {certificate.gradient:.1g}",
        "starts of the fit": f"a grid, and {certificate.restarts} random ones, of which {certificate.agreeing} end at "
        "the same objective",
    }
    if bootstrap is not None:
        found["intervals"] = f"{drawn_from(table, bootstrap)}, percentiles"
    chosen = None if backtest is None else backtest.of(fit.law.name, window)
    if backtest is not None and chosen is not None and chosen.error is not None:
        found["error at runs held out"] = (
            f"{100 * chosen.error:.2f} % (root mean square, rows held out: {backtest.held_out}, {backtest.factor:.3g} "
            f"times beyond the largest {backtest.scale} fitted)"
        )
    return found


def drawn_from(table: Table, bootstrap: Bootstrap) -> str:
    """What the bootstrap drew of the table that was fitted, and how often."""
    runs, groups, drawn = len(set(table.runs)), len(set(table.groups)), bootstrap.groups
    draws = f"{len(bootstrap.inner)} draws"
    if groups == runs:
        return f"bootstrap of {drawn} runs, {draws}"
    if drawn == groups:
        return f"bootstrap of {groups} trunks that {runs} runs share, {draws}"
    return (
        f"bootstrap of {runs} runs as if they were independent, though they share {groups} trunks: too narrow; {draws}"
    )
