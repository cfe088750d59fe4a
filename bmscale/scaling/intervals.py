"""Intervals: the bootstrap by run for parameters, and prediction intervals for runs that are still to come."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from bmscale.errors import BadInput
from bmscale.scaling.fit import Fit, Problem
from bmscale.scaling.law import Array, Columns, Law

DRAWS = 1000
"""Of the bootstrap, where nothing else is said."""
LEVEL = 0.95


@dataclass(frozen=True)
class Bootstrap:
    """A fit's parameters over resampled runs."""

    fit: Fit
    inner: Array = field(repr=False)
    """(draws, parameters): (log c, log θ) of each refit."""
    failed: int
    """Refits that did not reach a gradient of zero; they are in `inner` all the same."""
    groups: int
    """Runs, or trunks that runs share, that were drawn from."""
    drawn: tuple[str, ...] = field(default=(), repr=False)
    """(rows,) which of them a row belongs to."""

    def values(self) -> dict[str, Array]:
        """(draws,) of each parameter, by the paper's names."""
        named = [self.fit.law.named(inner) for inner in self.inner]
        return {name: np.array([one[name] for one in named]) for name in self.fit.parameters}

    def statistic(self, of: Callable[[dict[str, float]], float]) -> Array:
        """(draws,) of whatever is computed from the parameters, such as an exponent of an allocation."""
        return np.array([of(self.fit.law.named(inner)) for inner in self.inner])

    def standard_errors(self) -> dict[str, float]:
        return {name: float(values.std()) for name, values in self.values().items()}

    def intervals(self, level: float = LEVEL) -> dict[str, tuple[float, float]]:
        """Percentiles of the draws (Efron and Tibshirani 1993)."""
        return {name: percentiles(values, level) for name, values in self.values().items()}


def percentiles(values: Array, level: float) -> tuple[float, float]:
    """The middle `level` of the values; some may be infinite, between which nothing can be interpolated."""
    method: Literal["linear", "nearest"] = "linear" if np.isfinite(values).all() else "nearest"
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method=method)
    return float(low), float(high)


def resampled(groups: Sequence[str], draws: int, seed: int) -> Iterator[Array]:
    """Row indices of each draw: as many runs as there are, with replacement, each with all of its rows."""
    names, index = np.unique(np.array(groups), return_inverse=True)
    members = [np.flatnonzero(index == number) for number in range(len(names))]
    generator = np.random.default_rng(seed)
    for _ in range(draws):
        yield np.concatenate([members[number] for number in generator.integers(0, len(names), len(names))])


def bootstrap(
    fit: Fit,
    columns: Columns,
    groups: Sequence[str] = (),
    *,
    draws: int | Sequence[Array] = DRAWS,
    seed: int = 0,
    start: Array | None = None,
) -> Bootstrap:
    """Refit on resampled runs, each from the fit's own optimum (a warm start: a few steps of Newton's method).

    `columns` are those that were fitted, `groups` (rows,) says which rows are one run (each row its own by default).
    `draws` is their number, or the row indices of each, for a resampling of one's own; `start` (log c, log θ) begins
    elsewhere than the fit's optimum. Raises BadInput for fewer runs than parameters.
    """
    rows = fit.rows
    names = tuple(groups) or tuple(str(row) for row in range(rows))
    different = len(set(names))
    if different <= len(fit.law.parameters):
        raise BadInput(
            f"bootstrap: needs more runs than the {len(fit.law.parameters)} parameters of law {fit.law.name}; got "
            f"{different} runs in {rows} rows; add runs, or leave intervals out: --draws 0"
        )
    problem = Problem.of(fit.law, fit.objective, columns)
    begin = fit.law.shift(fit.inner if start is None else start, -problem.origin)
    found, failed = [], 0
    for chosen in resampled(names, draws, seed) if isinstance(draws, int) else draws:
        inner, _, gradient = problem.rows(chosen).solve(begin)
        failed += gradient > fit.certificate.tolerance
        found.append(fit.law.shift(inner, problem.origin))
    return Bootstrap(fit, np.array(found), failed, different, names)


@dataclass(frozen=True)
class Prediction:
    """Forecasts for rows: of the law, and where a run's outcome will lie."""

    value: Array
    """(rows,) of the law at the fitted parameters."""
    low: Array
    high: Array
    """(rows,) between which an outcome lies with probability `level`."""
    level: float


def predict(boot: Bootstrap, columns: Columns, level: float = LEVEL) -> Prediction:
    """Prediction intervals: what is not known of the parameters, plus the noise of a run.

    In logarithms of y. The bootstrap gives the spread of the prediction, the residuals give that of a run; the latter
    are inflated by √(n/(n − p)), because p parameters were fitted to them. Every draw is paired with every residual.
    """
    law = boot.fit.law
    log_x = law.log_columns(columns)
    value = law.log_predict(boot.fit.inner, log_x)[0]
    draws = np.array([law.log_predict(inner, log_x)[0] for inner in boot.inner])
    noise = _noise(boot, law)
    low, high = np.empty_like(value), np.empty_like(value)
    for row in range(len(value)):
        low[row], high[row] = percentiles(np.add.outer(draws[:, row], noise).ravel(), level)
    return Prediction(np.exp(value), np.exp(low), np.exp(high), level)


def _noise(boot: Bootstrap, law: Law) -> Array:
    """(…,) residuals of log y, inflated; those of each run or trunk as often as those of any other."""
    fit, residuals = boot.fit, boot.fit.residuals
    index, counts = np.unique(boot.drawn, return_inverse=True, return_counts=True)[1:]
    if len(counts) and counts.min() < counts.max():
        residuals = np.concatenate([np.resize(residuals[index == k], counts.max()) for k in range(len(counts))])
    if not fit.objective.log:
        raise BadInput("prediction intervals: need a fit of log y; got one of y")
    return residuals * np.sqrt(fit.rows / max(1, fit.rows - len(law.parameters)))
