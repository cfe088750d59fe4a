"""Fitting a law to a table: the global optimum, and a certificate that it is one.

Starts come from variable projection over a grid of exponents; from the best of them Newton's method goes to a gradient
of zero on centred logarithms, with the objective divided by delta². (Without centring and scaling, scipy's L-BFGS-B
stops after a few steps far from the optimum and reports success.) Random restarts then say whether there is a better
one.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from bmscale.errors import BadInput
from bmscale.scaling import lad
from bmscale.scaling.law import Array, Columns, Law
from bmscale.scaling.newton import Found, Function, minimise
from bmscale.scaling.projection import SMALLEST, grid_of, project, sweep

Loss = Literal["huber", "lad", "ls"]
LOSSES = ("huber", "lad", "ls")
BEGINNINGS = 3
"""So many points of the grid are begun at."""
TOLERANCE = 1e-6
"""Largest component of the gradient of the scaled objective at what counts as an optimum."""
AGREES = 1e-6
"""Restarts whose objective is within this, relatively, found the same optimum."""
GONE, RELEASED, SMALL_TERM = 1e-8, 1e-6, 1e-4
"""Shares of the largest coefficient: at 0 below the first, tried with the second, tried without below the third."""
SMALL = 1e-9
"""Scaled objectives a row within this are the same as well: without noise all of it is rounding."""


@dataclass(frozen=True)
class Objective:
    """What is minimised: Σ ρ(r) over the rows.

    r = log y − log prediction, or y − prediction where `log` is false. ρ is Huber's (r²/2 up to `delta`, then
    delta (|r| − delta/2)), |r| for `lad`, r²/2 for `ls`. Besiroglu et al. 2024: their headline constants are those of
    `lad`, not of Huber's with 1e-3.
    """

    loss: Loss = "huber"
    delta: float = 1e-3
    log: bool = True

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise BadInput(f"loss: must be one of {', '.join(LOSSES)}; got '{self.loss}'")
        if not 0 < self.delta < float("inf"):
            raise BadInput(f"delta: must be above 0; got {self.delta:g}")

    def describe(self) -> str:
        of = "log y" if self.log else "y"
        return {
            "huber": f"Huber, delta {self.delta:g}, of {of}",
            "lad": f"least absolute deviation of {of}",
            "ls": f"least squares of {of}",
        }[self.loss]


@dataclass(frozen=True)
class Certificate:
    """Why this is the optimum."""

    gradient: float
    """Largest component of the gradient of the objective / delta² by the logarithms of the parameters; for `lad` what
    is left of it by the best choice of subgradients."""
    tolerance: float
    restarts: int
    """Random starts besides the grid."""
    agreeing: int
    """How many of them ended at this objective, within 1e-6."""
    better: float
    """By how much the best restart was below the grid's optimum, relatively; it was then taken instead."""

    @property
    def stationary(self) -> bool:
        return self.gradient <= self.tolerance


@dataclass(frozen=True)
class Fit:
    """A law with its parameters."""

    law: Law
    objective: Objective
    parameters: dict[str, float]
    """By the names of the law's paper."""
    value: float
    """Σ ρ(r): the objective in its own units, not divided by anything."""
    residuals: Array
    """(rows,) log y − log prediction, or y − prediction, as the objective has it."""
    certificate: Certificate
    seconds: float
    gone: tuple[str, ...]
    """Coefficients that went to 0: the rows do not show these terms."""
    inner: Array = field(repr=False)
    """(log c, log θ) of the law, for a warm start."""

    @property
    def rows(self) -> int:
        return len(self.residuals)

    def predict(self, columns: Columns) -> Array:
        """y (rows,)."""
        return np.exp(self.law.log_predict(self.inner, self.law.log_columns(columns))[0])

    def to_dict(self) -> dict[str, Any]:
        return {
            "law": self.law.name,
            "equation": self.law.equation,
            "source": self.law.source,
            "loss": self.objective.describe(),
            "parameters": self.parameters,
            "objective": self.value,
            "rows": self.rows,
            "gone": list(self.gone),
            "certificate": {**vars(self.certificate), "stationary": self.certificate.stationary},
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Problem:
    """A law, an objective and rows, centred: what is minimised."""

    law: Law
    objective: Objective
    log_x: Array
    log_y: Array
    origin: Array

    @classmethod
    def of(cls, law: Law, objective: Objective, columns: Columns) -> "Problem":
        """Raises BadInput for a missing column, values that have no logarithm and fewer rows than parameters."""
        log_x = law.log_columns(columns)
        if law.target not in columns:
            raise BadInput(f"law {law.name}: needs the column {law.target}; got {', '.join(sorted(columns))}")
        log_y = np.log(columns[law.target])
        if not (np.isfinite(log_x).all() and np.isfinite(log_y).all()):
            raise BadInput(
                f"law {law.name}: {', '.join((*law.needs, law.target))} must be finite and above 0 in all rows"
            )
        if len(log_y) < len(law.parameters):
            raise BadInput(
                f"law {law.name}: has {len(law.parameters)} parameters and needs as many rows; got {len(log_y)}"
            )
        origin = law.origin(log_x)
        return cls(law, objective, log_x - origin, log_y, origin)

    def rows(self, chosen: Array) -> "Problem":
        """The same problem on some of its rows, given by their indices; its origin stays."""
        return replace(self, log_x=self.log_x[chosen], log_y=self.log_y[chosen])

    @property
    def scale(self) -> float:
        """Residuals are counted in this unit."""
        return self.objective.delta

    def residuals(self, inner: Array) -> tuple[Array, Array]:
        """Prediction − observation (rows,) and its derivative (rows, parameters)."""
        y, slopes = self.law.log_predict(inner, self.log_x)
        if self.objective.log:
            return y - self.log_y, slopes
        y = np.exp(np.minimum(y, 300.0))
        return y - np.exp(self.log_y), slopes * y[:, None]

    def function(self) -> Function:
        """Σ ρ(r)/delta² and its gradient; Huber's for `lad`, which goes on from there."""
        delta = self.scale
        squares = self.objective.loss == "ls"

        def huber(inner: Array) -> tuple[float, Array]:
            residual, slopes = self.residuals(inner)
            unit = residual / delta
            size = np.abs(unit)
            if squares:
                return float(unit @ unit) / 2, unit @ slopes / delta
            value = np.where(size < 1, unit * unit / 2, size - 0.5).sum()
            return float(value), np.clip(unit, -1.0, 1.0) @ slopes / delta

        return huber

    def solve(self, start: Array) -> tuple[Array, float, float]:
        """From a start to the optimum near it: (inner, scaled value, scaled gradient)."""
        function = self.function()
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            found = minimise(function, start, tolerance=TOLERANCE * 1e-2)
            for _ in range(2 * len(self.law.terms)):
                better = self._at_zero_or_not(function, found[0], found[1])
                if better is None:
                    break
                found = better
            inner, value, gradient, _ = found
            if self.objective.loss != "lad":
                return inner, value, float(np.abs(gradient).max())
            inner, total, left = lad.minimise(self.residuals, inner)
        return inner, total / self.scale, left

    def _at_zero_or_not(self, function: Function, inner: Array, value: float) -> Found | None:
        """A better optimum without a term that is nearly 0, or with one that is at 0; None where there is none.

        A logarithm has no gradient at 0: it hardly arrives there and never leaves. None says that what is at 0 belongs
        there (the condition of Karush, Kuhn and Tucker).
        """
        k = len(self.law.terms)
        level = inner[:k].max()
        for term in np.flatnonzero(inner[:k] < level + np.log(SMALL_TERM)):
            for share in (SMALLEST, RELEASED):
                tried = inner.copy()
                tried[term] = level + np.log(share)
                if share == SMALLEST and inner[term] <= tried[term] + 1:
                    continue
                if share == RELEASED and function(tried)[0] >= value:
                    continue
                found = minimise(function, tried, tolerance=TOLERANCE * 1e-2)
                if found[1] < value:
                    return found
        return None

    def value(self, scaled: float) -> float:
        """The objective in its own units."""
        return scaled * self.scale if self.objective.loss == "lad" else scaled * self.scale**2


def fit(
    law: Law,
    columns: Columns,
    objective: Objective | None = None,
    *,
    restarts: int = 0,
    seed: int = 0,
    warm: Mapping[str, float] | None = None,
) -> Fit:
    """The law's parameters of least objective over the rows of `columns`.

    `restarts` random starts check the optimum (and are counted in the certificate); with `warm`, parameters to begin
    at, nothing else is tried: for refits. Raises BadInput for a column that is missing, for values without a logarithm,
    for fewer rows than parameters, and where a parameter ends beyond what a float holds.
    """
    began = time.perf_counter()
    objective = objective or Objective()
    problem = Problem.of(law, objective, columns)
    starts = _beginnings(problem) if warm is None else [law.shift(_finite(law.given(warm)), -problem.origin)]
    inner, value, gradient = min((problem.solve(start) for start in starts), key=lambda found: found[1])
    again = [problem.solve(start) for start in random_starts(problem, restarts, seed)]
    first, same = value, AGREES * value + SMALL * len(problem.log_y)
    for other in again:
        if other[1] < value - same:
            inner, value, gradient = other
    agreeing = sum(other[1] <= value + same for other in again)
    certificate = Certificate(gradient, TOLERANCE, restarts, agreeing, 1 - value / first if first else 0.0)
    residuals = -problem.residuals(inner)[0]
    log_c = inner[: len(law.terms)]
    gone = tuple(name for name, at in zip(law.coefficients, log_c, strict=True) if at < log_c.max() + np.log(GONE))
    inner = law.shift(inner, problem.origin)
    seconds = time.perf_counter() - began
    parameters = law.named(inner)
    beyond = [name for name, one in parameters.items() if not np.isfinite(one)]
    if beyond:
        raise BadInput(
            f"law {law.name}: must have an optimum with finite parameters; {', '.join(beyond)} went beyond 1e308; "
            f"fit another law, and look whether {law.target} falls with scale and in which unit it is"
        )
    return Fit(law, objective, parameters, problem.value(value), residuals, certificate, seconds, gone, inner)


def _finite(inner: Array) -> Array:
    return np.maximum(inner, np.log(SMALLEST))


def _beginnings(problem: Problem) -> list[Array]:
    """The best points of the grid that are no neighbours."""
    found, left = project(problem.law, grid_of(problem.law), problem.log_x, problem.log_y, delta=_start_delta(problem))
    terms = len(problem.law.terms)
    steps = np.array([np.log(shape.high / shape.low) / (shape.steps - 1) for shape in problem.law.shapes])
    chosen: list[Array] = []
    for index in np.argsort(left, kind="stable"):
        here = found[index]
        if all(np.abs((here - there)[terms:] / steps).max() > 1.5 for there in chosen):
            chosen.append(here)
        if len(chosen) == BEGINNINGS:
            break
    return chosen


def random_starts(problem: Problem, count: int, seed: int) -> list[Array]:
    """Exponents at random, log-uniform over their range, then variable projection along one axis after the other."""
    generator = np.random.default_rng(seed)
    shapes = problem.law.shapes
    low, high = (np.log([getattr(shape, end) for shape in shapes]) for end in ("low", "high"))
    spacing = (high - low) / np.array([shape.steps - 1 for shape in shapes])
    starts = []
    for _ in range(count):
        point = np.exp(generator.uniform(low, high))
        scales = np.exp(spacing * generator.uniform(-0.5, 0.5, len(shapes)))
        starts.append(
            sweep(problem.law, point, problem.log_x, problem.log_y, delta=_start_delta(problem), scales=scales)
        )
    return starts


def _start_delta(problem: Problem) -> float:
    """Weights of the start: as robust as the objective; least squares weigh all rows alike."""
    return 1e6 if problem.objective.loss == "ls" else max(problem.objective.delta, 1e-6)
