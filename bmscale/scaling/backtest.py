"""The internal back-test: which law, fitted to which rows, would have forecast the largest budget best?

The top budget is held out, every candidate is fitted to the rest (all of it, and only its upper part by compute) and
scored by its error at the rows held out. No form wins everywhere: a law chosen this way is one that has forecast once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bmscale.errors import BadInput
from bmscale.scaling.checks import budgets, check_law
from bmscale.scaling.fit import Objective, fit
from bmscale.scaling.law import Array, Law
from bmscale.scaling.laws import FRONTIER, LAWS
from bmscale.scaling.tables import Table

WINDOWS = (1.0, 0.75, 0.5)
"""Shares of the rows, those of the largest budgets, that a candidate is fitted to."""
AS_GOOD = 1.1
"""Errors within this factor of the least do not tell candidates apart: few rows are held out."""
ROWS_A_PARAMETER = 3
"""A window needs as many rows for each parameter; all rows together need not."""
HELD_OUT = 0.05
"""The top budgets are held out until they are this share of the rows."""


@dataclass(frozen=True)
class Candidate:
    """A law on a window, and how it forecast."""

    law: str
    window: float
    """Share of the rows below the held-out budget."""
    rows: int
    """Fitted to."""
    error: float | None
    """Root mean square of log(outcome/forecast) over the rows held out; None where it could not be fitted."""
    best_error: float | None
    """The same log, with its sign, at the row of least loss (or most BLEU) among them."""
    refused: str = ""
    """Why it could not be fitted."""

    @property
    def best_excess(self) -> float | None:
        """Outcome over forecast, less 1, at that row."""
        return None if self.best_error is None else math.expm1(self.best_error)


@dataclass(frozen=True)
class BackTest:
    """What was held out, and every candidate, the best first."""

    scale: str
    """The column that orders budgets: C, or D or N where there is none."""
    held_out: int
    """Rows."""
    factor: float
    """How far it was forecast: the largest of `scale` held out over the largest that was fitted."""
    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate:
        """Of those as good as the best, the one fitted to most rows, and of these the one with fewest parameters."""
        best = self.candidates[0]
        limit = AS_GOOD * (best.error or 0.0)
        good = [
            one
            for one in self.candidates
            if one.error is not None
            and one.error <= limit
            and (one.law == FRONTIER.name) == (best.law == FRONTIER.name)
        ]
        return min(good, key=lambda one: (-one.rows, len(LAWS[one.law].parameters), one.error))

    def of(self, law: str, window: float) -> Candidate | None:
        """A law on a window; None where it was not among the candidates or could not be fitted."""
        same = (one for one in self.candidates if (one.law, one.window) == (law, window) and one.error is not None)
        return next(same, None)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "candidates": [vars(one) for one in self.candidates]}


def scale_of(table: Table) -> str:
    """The column by which a run is large or small."""
    return next((name for name in ("C", "D", "N", "loss") if name in table.columns), "bleu")


def usable(table: Table, target: str = "loss") -> list[Law]:
    """The laws whose columns the table has."""
    return [law for law in LAWS.values() if law.target == target and {*law.needs, law.target} <= set(table.columns)]


def split(table: Table) -> tuple[Table, Table]:
    """(rows to fit, rows of the top budgets). Raises BadInput where too few are left to fit."""
    scale = scale_of(table)
    groups = budgets(table[scale])
    held: list[int] = []
    while groups and len(held) < max(1.0, HELD_OUT * len(table)):
        held += list(groups.pop())
    if len(groups) < 2:
        raise BadInput(
            f"{table.name}: a back-test holds out the top budget and needs at least 2 below it; got {len(groups)}; add "
            "budgets, or name the law: --law chinchilla"
        )
    mask = np.isin(np.arange(len(table)), held)
    return table.select(~mask), table.select(mask)


def window(table: Table, share: float) -> Table:
    """The share of a table's rows with the largest budgets, whole budgets only."""
    kept: list[int] = []
    for rows in reversed(budgets(table[scale_of(table)])):
        if len(kept) >= share * len(table) - 1e-9:
            break
        kept += list(rows)
    return table.select(sorted(kept))


def backtest(table: Table, objective: Objective | None = None, laws: Sequence[Law] = ()) -> BackTest:
    """Hold out the top budget, fit each law to each window of the rest, score at the rows held out.

    `laws` are all that the table has the columns for, where none are given. The frontier's law is fitted to the best
    run of each budget and scored at the best that was held out, which is another question than the other laws answer:
    it comes last, whatever its error. Raises BadInput where nothing can be held out, and where no candidate can be
    fitted.
    """
    below, held = split(table)  # first: it says best why nothing can be tested
    chosen = list(laws) or usable(table)
    # Two shares that come to the same budgets are one window, called by the larger share.
    windows = list({len(window(below, share)): share for share in reversed(WINDOWS)}.items())
    found = [_score(law, window(below, share), held, share, objective) for law in chosen for _, share in windows]
    if all(one.error is None for one in found):
        reasons = "; ".join(sorted({one.refused for one in found})) or f"columns {', '.join(table.columns)}"
        raise BadInput(f"{table.name}: no law can be fitted to what is below the top budget: {reasons}")
    order = sorted(found, key=lambda one: (one.error is None, one.law == FRONTIER.name, one.error or 0.0, -one.window))
    scale = scale_of(table)
    return BackTest(scale, len(held), float(held[scale].max() / below[scale].max()), tuple(order))


def frontier_of(table: Table) -> Table:
    """The run of least loss of each budget."""
    rows = [part[np.argmin(table["loss"][part])] for part in budgets(table["C"])]
    return table.select(sorted(int(row) for row in rows))


def _score(law: Law, train: Table, held: Table, share: float, objective: Objective | None) -> Candidate:
    try:
        if law is FRONTIER:
            train, held = frontier_of(train), frontier_of(held)
        check_law(train, law)
        if share < 1 and len(train) < ROWS_A_PARAMETER * len(law.parameters):
            raise BadInput(f"law {law.name}: {len(train)} rows are too few to leave others out")
        found = fit(law, train.columns, objective)
    except BadInput as error:
        return Candidate(law.name, share, len(train), None, None, str(error))
    off = np.log(held[law.target] / found.predict(held.columns))
    best = np.argmax(held["bleu"]) if law.target == "bleu" else np.argmin(held["loss"])
    return Candidate(law.name, share, len(train), _rms(off), float(off[best]))


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values * values)))
