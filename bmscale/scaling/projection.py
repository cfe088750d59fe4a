"""Variable projection: for given exponents the best coefficients of a law, at many points of a grid at once."""

import itertools
from collections.abc import Sequence

import numpy as np

from bmscale.scaling.law import Array, Law

SMALLEST = 1e-30
"""Stands for a coefficient of 0, whose logarithm is needed."""
MOST_VALUES = 3_000_000
"""Of one block of the grid: grid points × rows × terms."""


def project(
    law: Law, shapes: Array, log_x: Array, log_y: Array, *, delta: float, rounds: int = 3
) -> tuple[Array, Array]:
    """The best log c for each row of `shapes`, and what robust error is left.

    `shapes` (grid, shapes); `log_x` (rows, columns) and `log_y` (rows,) centred. Non-negative least squares of the
    relative error of the sum, weighted anew `rounds` times by 1/max(|residual|, delta): an approximation to the least
    Huber error, good enough to begin at. Returns (log c, log θ) of shape (grid, parameters) and Σ Huber(r/delta)
    (grid,).
    """
    block = max(1, MOST_VALUES // (len(log_y) * len(law.terms)))
    found = [
        _project(law, shapes[start : start + block], log_x, log_y, delta, rounds)
        for start in range(0, len(shapes), block)
    ]
    return np.concatenate([inner for inner, _ in found]), np.concatenate([left for _, left in found])


def _project(law: Law, shapes: Array, log_x: Array, log_y: Array, delta: float, rounds: int) -> tuple[Array, Array]:
    power = np.ones((len(shapes), 1)) if law.power_index is None else shapes[:, [law.power_index]]
    exponents = np.swapaxes(law.exponents(shapes), 1, 2)
    weights = np.ones((len(shapes), len(log_y)))
    log_c: Array | None = None
    x: Array | None = None
    residual = weights
    for _ in range(rounds + 1):
        effective = law.effective(log_c, shapes, log_x)
        if effective is not x:
            x = effective
            terms = np.clip(-(x @ exponents) - (log_y / power)[:, :, None], -300, 300)
            top = terms.max(axis=1, keepdims=True)
            terms = np.exp(terms - top)
        weighted = np.swapaxes(terms * weights[:, :, None], 1, 2)
        c = non_negative_least_squares(weighted @ terms, weighted.sum(axis=2))
        residual = np.abs(power * np.log(np.maximum((terms @ c[:, :, None])[:, :, 0], 1e-300)))
        log_c = np.log(np.maximum(c, SMALLEST)) - top[:, 0]
        weights = 1 / np.maximum(residual, delta)
    scaled = residual / delta
    left = np.where(scaled < 1, scaled * scaled / 2, scaled - 0.5).sum(axis=1)
    assert log_c is not None
    return np.concatenate([log_c, np.log(shapes)], axis=1), left


def non_negative_least_squares(gram: Array, moment: Array) -> Array:
    """The c ≥ 0 of least c·G·c − 2 h·c, for many (G, h) at once: the best of all sets of columns that may be positive.

    `gram` (many, k, k), `moment` (many, k), k small: 2^k − 1 sets are tried.
    """
    many, k = moment.shape
    least, best = np.full(many, np.inf), np.zeros((many, k))
    for size in range(1, k + 1):
        for chosen in map(list, itertools.combinations(range(k), size)):
            part, right = gram[:, chosen][:, :, chosen], moment[:, chosen]
            ridge = 1e-13 * np.trace(part, axis1=1, axis2=2)[:, None, None] * np.eye(size)
            c = np.linalg.solve(part + ridge, right[:, :, None])[:, :, 0]
            value = -(right * c).sum(axis=1)
            better = (c > 0).all(axis=1) & (value < least)
            least[better] = value[better]
            best[better] = 0.0
            best[np.flatnonzero(better)[:, None], chosen] = c[better]
    return best


def grid_of(law: Law, scales: Sequence[float] | None = None) -> Array:
    """(grid, shapes): every combination of the values of each shape's grid, each axis times its scale."""
    axes = [shape.grid * (1.0 if scales is None else scales[i]) for i, shape in enumerate(law.shapes)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def sweep(law: Law, shape: Array, log_x: Array, log_y: Array, *, delta: float, scales: Array, cycles: int = 8) -> Array:
    """From one point (shapes,): along one axis of the grid after the other to its best point, until none is
    better; (log c, log θ) there."""
    best = np.array(shape, dtype=np.float64)
    inner = best
    for _ in range(cycles):
        before = best
        for axis, values in enumerate(law.shapes):
            line = np.tile(best, (values.steps + 1, 1))
            line[1:, axis] = values.grid * scales[axis]
            found, left = project(law, line, log_x, log_y, delta=delta)
            inner = found[np.argmin(left)]
            best = np.exp(inner[len(law.terms) :])
        if np.allclose(best, before, rtol=1e-9):
            break
    return inner
