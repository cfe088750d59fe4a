"""Least absolute deviation: medians and lines, exactly."""

import numpy as np
import pytest

from bmscale.scaling import lad


def test_the_median():
    values = np.array([1.0, 2.0, 3.0, 50.0, 1000.0])

    def residuals(point):
        return point[0] - values, np.ones((5, 1))

    point, total, left = lad.minimise(residuals, np.array([2.9]))
    assert point[0] == pytest.approx(3.0, abs=1e-12)
    assert total == pytest.approx(2 + 1 + 0 + 47 + 997)
    assert left < 1e-9


def test_a_curve_through_outliers():
    """Two thirds of the points lie on 2 e^(0.5 x); what the others do does not matter."""
    x = np.linspace(0, 2, 30)
    y = 2 * np.exp(0.5 * x)
    y[::3] += 5.0

    def residuals(point):
        inside = np.exp(point[0] + point[1] * x)
        return inside - y, np.stack([inside, inside * x], axis=1)

    point, _, left = lad.minimise(residuals, np.array([0.8, 0.45]))
    assert np.exp(point[0]) == pytest.approx(2.0, rel=1e-9)
    assert point[1] == pytest.approx(0.5, abs=1e-9)
    assert left < 1e-9


def test_what_is_no_optimum_has_no_certificate():
    values = np.array([1.0, 2.0, 30.0])

    def residuals(point):
        return point[0] - values, np.ones((3, 1))

    assert lad.minimise(residuals, np.array([20.0]), iterations=0)[2] == pytest.approx(1.0)
