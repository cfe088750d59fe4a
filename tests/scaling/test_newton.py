"""Newton's method in a trust region: hard valleys, saddles, and where rounding ends it."""

import numpy as np
import pytest

from bmscale.scaling.newton import minimise


def rosenbrock(point):
    x, y = point
    value = 100 * (y - x * x) ** 2 + (1 - x) ** 2
    return value, np.array([-400 * x * (y - x * x) - 2 * (1 - x), 200 * (y - x * x)])


def test_a_curved_valley():
    point, value, gradient, iterations = minimise(rosenbrock, np.array([-1.2, 1.0]), tolerance=1e-10)
    assert point == pytest.approx([1.0, 1.0], abs=1e-9)
    assert value < 1e-18
    assert np.abs(gradient).max() <= 1e-10
    assert iterations < 60


def test_it_leaves_a_saddle_by_the_way_down():
    def saddle(point):
        x, y = point
        return x**4 / 4 - x * x / 2 + y * y, np.array([x**3 - x, 2 * y])

    point, _, _, _ = minimise(saddle, np.array([1e-3, 1.0]), tolerance=1e-10)
    assert point == pytest.approx([1.0, 0.0], abs=1e-8)


def test_scales_do_not_matter():
    scales = np.array([1e-3, 1.0, 1e3])

    def bowl(point):
        off = scales * (point - 1)
        return float(off @ off), 2 * scales * off

    point, _, _, iterations = minimise(bowl, np.zeros(3), tolerance=1e-9)
    assert point == pytest.approx(np.ones(3), abs=1e-2)
    assert iterations < 20


def test_where_the_function_ends_the_step_is_shortened():
    def barrier(point):
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(point[0] - np.log(point[0])), np.array([1 - 1 / point[0]])

    point, _, _, _ = minimise(barrier, np.array([9.0]), tolerance=1e-10, radius=100.0)
    assert point[0] == pytest.approx(1.0, abs=1e-9)
