"""What a fit says of a cell, of a budget and of a loss, with intervals: the entries of a forecast."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from bmscale.errors import BadInput
from bmscale.scaling.analysis import Analysis
from bmscale.scaling.checks import budgets
from bmscale.scaling.intervals import LEVEL, Bootstrap, percentiles, predict
from bmscale.scaling.power_sum import PowerSum
from bmscale.scaling.tables import Table

LEVELS = (0.90, 0.95)
"""Of prediction intervals."""

Content = dict[str, Any]


def predicted(found: Analysis, columns: Mapping[str, float]) -> Content:
    """Value and prediction intervals of the law's target for one cell."""
    assert found.bootstrap is not None
    arrays = {name: np.array([value]) for name, value in columns.items()}
    result: Content = {}
    for level in LEVELS:
        one = predict(found.bootstrap, arrays, level)
        ends = [float(one.low[0]), float(one.high[0])]
        result |= {found.fit.law.target: float(one.value[0]), f"interval_{round(100 * level)}": ends}
    return result


def ratio(table: Table, encoder_decoder: bool) -> float:
    """C of the table over 6 N D, in the middle of its largest budget: what its way of counting FLOPs comes to."""
    if not {"C", "D"} <= set(table.columns):
        return 1.0
    n = table["N_e"] + table["N_d"] if encoder_decoder else table["N"]
    rows = budgets(table["C"])[-1]
    return float(np.median(table["C"][rows] / (6 * n[rows] * table["D"][rows])))


def _powers(found: Analysis) -> tuple[PowerSum, float]:
    law = PowerSum.of(found.fit.law, found.fit.parameters)
    return law, ratio(found.fitted, law.encoder_share is not None)


def columns_at(law: PowerSum, times: float, N: float, D: float) -> dict[str, float]:
    """What the law needs to be predicted from, encoder and decoder at their best shares, no token repeated."""
    share = law.encoder_share
    parts = {} if share is None else {"N_e": share * N, "N_d": (1 - share) * N}
    return {"N": N, "D": D, "U": D, "C": 6 * N * D * times, **parts}


def _spread(boot: Bootstrap, of: Callable[[PowerSum], float | None]) -> list[float | None]:
    """The bootstrap's 95 % interval; an end is None where draws say that it is out of reach."""

    def value(parameters: dict[str, float]) -> float:
        law = PowerSum.of(boot.fit.law, parameters)
        found = of(law)
        return np.inf if found is None else found

    with np.errstate(invalid="ignore"):
        ends = percentiles(boot.statistic(value), LEVEL)
    return [end if np.isfinite(end) else None for end in ends]


def at_budget(found: Analysis, budget: float) -> Content:
    """Compute-optimal N and D for a budget in the table's FLOPs, and the loss there. Raises BadInput for a law that
    has no optimum."""
    _check_balanced(found)
    law, times = _powers(found)
    best = law.at_budget(budget / times)
    boot = found.bootstrap
    result: Content = {"budget": budget, "C_over_6ND": times, "N": best.N, "D": best.D}
    if boot is not None:
        result["N_interval_95"] = _spread(boot, lambda one: _best(one, budget / times, "N"))
        result["D_interval_95"] = _spread(boot, lambda one: _best(one, budget / times, "D"))
        result |= predicted(found, columns_at(law, times, best.N, best.D))
    else:
        result["loss"] = best.loss
    if law.encoder_share is not None:
        result["encoder_share"] = law.encoder_share
    return result


def for_loss(found: Analysis, loss: float, size: float | None) -> Content:
    """Tokens that reach a loss: at a size, or at the compute-optimal size. None is what no number of them reaches."""
    boot = found.bootstrap
    assert boot is not None
    law, times = _powers(found)
    result: Content = {"loss": loss, "at": "the compute-optimal size" if size is None else "a given size"}
    if size is None:
        _check_balanced(found)
        best = law.for_loss(loss)
        result |= {"N": None, "D": None, "C": None, "limit": law.E**law.power}
        if best is not None:
            result |= {"N": best.N, "D": best.D, "C": best.C * times}
        for name, scale in (("N", 1.0), ("D", 1.0), ("C", times)):
            result[f"{name}_interval_95"] = _spread(boot, partial(_of, loss=loss, name=name, scale=scale))
    else:
        tokens = law.tokens(loss, size)
        result |= {"N": size, "D": tokens, "C": None if tokens is None else 6 * size * tokens * times}
        result["limit"] = law.loss(size, float("inf"))
        result["D_interval_95"] = _spread(boot, lambda one: one.tokens(loss, size))
    return result


def _check_balanced(found: Analysis) -> None:
    if gone := set(found.fit.gone) - {"E"}:
        raise BadInput(
            f"no best N and D: {', '.join(sorted(gone))} went to 0, since the rows do not show that term; train cells "
            "that differ more in what it is of"
        )


def _of(law: PowerSum, loss: float, name: str, scale: float) -> float | None:
    best = law.for_loss(loss) if law.balances else None
    return None if best is None else scale * float(getattr(best, name))


def _best(law: PowerSum, compute: float, name: str) -> float | None:
    return float(getattr(law.at_budget(compute), name)) if law.balances else None
