"""Least absolute deviation: linear programs on the linearised residuals, which end where the optimum is a corner.

Osborne and Watson 1971, "On an algorithm for discrete nonlinear L1 approximation". As many residuals as there are
parameters are zero at such an optimum; what certifies it is a choice of their signs in [−1, 1] that makes the gradient
zero.
"""

from collections.abc import Callable

import numpy as np

from bmscale.scaling.law import Array

Residuals = Callable[[Array], tuple[Array, Array]]


def minimise(residuals: Residuals, start: Array, *, iterations: int = 50) -> tuple[Array, float, float]:
    """From a point near the optimum: (point, Σ |r|, largest component of the best subgradient there)."""
    point, radius = start, 0.1
    residual, slopes = residuals(point)
    total = float(np.abs(residual).sum())
    for _ in range(iterations):
        step, expected = _linear(residual, slopes, radius)
        if total - expected <= 1e-13 * total:
            break
        new_residual, new_slopes = residuals(point + step)
        new_total = float(np.abs(new_residual).sum())
        if new_total < total:
            if total - new_total > 0.75 * (total - expected):
                radius *= 2
            point, residual, slopes, total = point + step, new_residual, new_slopes, new_total
        else:
            radius = 0.25 * min(radius, float(np.abs(step).max()))
            if radius < 1e-14:
                break
    return point, total, _subgradient(residual, slopes)


def _linear(residual: Array, slopes: Array, radius: float) -> tuple[Array, float]:
    """The step of at most `radius` a component with the least Σ |r + J·step|, and that sum."""
    from scipy.optimize import linprog

    rows, parameters = slopes.shape
    cost = np.concatenate([np.zeros(parameters), np.ones(2 * rows)])
    equal = np.hstack([slopes, -np.eye(rows), np.eye(rows)])
    bounds = [(-radius, radius)] * parameters + [(0, None)] * (2 * rows)
    found = linprog(cost, A_eq=equal, b_eq=-residual, bounds=bounds, method="highs")
    if found.x is None:
        return np.zeros(parameters), float(np.abs(residual).sum())
    step = found.x[:parameters]
    return step, float(np.abs(residual + slopes @ step).sum())


def _subgradient(residual: Array, slopes: Array) -> float:
    """The largest component of Σ s·∂r, with s the sign of r, and for r = 0 what makes the sum least."""
    from scipy.optimize import lsq_linear

    zero = np.abs(residual) <= 1e-9 * max(float(np.abs(residual).max()), 1e-300)
    fixed = np.sign(residual[~zero]) @ slopes[~zero]
    if not zero.any():
        return float(np.abs(fixed).max())
    found = lsq_linear(slopes[zero].T, -fixed, bounds=(-1, 1), tol=1e-14)
    return float(np.abs(found.fun).max())
