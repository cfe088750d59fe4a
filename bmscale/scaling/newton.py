"""Newton's method in a trust region, for a handful of parameters and a gradient that is exact."""

from collections.abc import Callable

import numpy as np

from bmscale.scaling.law import Array

Function = Callable[[Array], tuple[float, Array]]
STEP = 1e-6


def minimise(
    function: Function, start: Array, *, tolerance: float, iterations: int = 200, radius: float = 0.3
) -> tuple[Array, float, Array, int]:
    """A local minimum near `start`: (point, value, gradient, iterations).

    `function` gives a value and its exact gradient; the second derivative is the gradient's difference quotient, so
    that the last steps converge fast whatever the scales of the parameters are. Ends where the largest component of
    the gradient is at most `tolerance`, or where rounding allows no better point.
    """
    point = start
    value, gradient = function(point)
    for iteration in range(iterations):
        if np.abs(gradient).max() <= tolerance:
            return point, value, gradient, iteration
        curvature, axes = np.linalg.eigh(_second_derivative(function, point, gradient))
        slope = axes.T @ gradient
        while True:
            step = _step(curvature, slope, radius)
            length = float(np.linalg.norm(step))
            new_value, new_gradient = function(point + axes @ step)
            expected = -float(slope @ step + 0.5 * curvature @ (step * step))
            gained = value - new_value
            # Within rounding of the value the gradient alone says whether a point is better.
            flat = abs(gained) <= 1e-12 * abs(value) and np.abs(new_gradient).max() < np.abs(gradient).max()
            if np.isfinite(new_value) and (flat or (expected > 0 and gained > 1e-4 * expected)):
                break
            radius = 0.25 * min(radius, length)
            if radius < 1e-13:
                return point, value, gradient, iteration
        if gained > 0.75 * expected:
            radius = max(radius, 2 * length)
        elif gained < 0.25 * expected and not flat:
            radius *= 0.5
        point, value, gradient = point + axes @ step, new_value, new_gradient
    return point, value, gradient, iterations


def _second_derivative(function: Function, point: Array, gradient: Array) -> Array:
    found = np.stack([(function(point + step)[1] - gradient) / STEP for step in STEP * np.eye(len(point))])
    return (found + found.T) / 2


def _step(curvature: Array, slope: Array, radius: float) -> Array:
    """The best step of the quadratic model that is no longer than `radius`, in the axes of the curvature."""
    largest = float(np.abs(curvature).max()) or 1.0
    if curvature[0] > 1e-12 * largest:
        step = -slope / curvature
        if np.linalg.norm(step) <= radius:
            return step
    low = max(0.0, -float(curvature[0])) + 1e-14 * largest
    high = low + float(np.linalg.norm(slope)) / radius + 1e-300
    for _ in range(60):
        middle = (low * high) ** 0.5
        if np.linalg.norm(slope / (curvature + middle)) > radius:
            low = middle
        else:
            high = middle
        if high < 1.0001 * low:
            break
    return -slope / (curvature + high)
