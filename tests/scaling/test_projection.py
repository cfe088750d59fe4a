"""Variable projection: coefficients that are never negative, and a start near the optimum."""

import numpy as np
import pytest

from bmscale.scaling.laws import CHINCHILLA, KAPLAN
from bmscale.scaling.projection import grid_of, non_negative_least_squares, project, sweep
from tests.scaling.conftest import TRUTH, runs


def test_least_squares_are_those_of_scipy():
    from scipy.optimize import nnls

    generator = np.random.default_rng(0)
    designs = generator.standard_normal((40, 12, 3))
    target = generator.standard_normal(12)
    found = non_negative_least_squares(np.swapaxes(designs, 1, 2) @ designs, np.swapaxes(designs, 1, 2) @ target)
    for design, c in zip(designs, found, strict=True):
        np.testing.assert_allclose(c, nnls(design, target)[0], atol=1e-9)
    assert (found == 0).any()


def centred(law, table):
    log_x = law.log_columns(table.columns)
    origin = law.origin(log_x)
    return log_x - origin, np.log(table["loss"]), origin


@pytest.mark.parametrize("law", [CHINCHILLA, KAPLAN], ids=["chinchilla", "kaplan"])
def test_at_the_right_exponents_nothing_is_left(law):
    table = runs(noise=0.0)
    truth = TRUTH if law is CHINCHILLA else {"N_c": 6e13, "D_c": 2e13, "alpha_N": 0.08, "alpha_D": 0.1}
    table = table.with_columns(loss=law.predict(truth, table.columns))
    log_x, log_y, origin = centred(law, table)
    expected = law.shift(law.given(truth), -origin)
    shapes = np.exp(expected[len(law.terms) :])[None]
    found, left = project(law, shapes, log_x, log_y, delta=1e-3)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    assert left[0] < 1e-9


def test_blocks_of_the_grid_change_nothing(monkeypatch):
    log_x, log_y, _ = centred(CHINCHILLA, runs())
    whole = project(CHINCHILLA, grid_of(CHINCHILLA), log_x, log_y, delta=1e-3)
    monkeypatch.setattr("bmscale.scaling.projection.MOST_VALUES", 1000)
    parts = project(CHINCHILLA, grid_of(CHINCHILLA), log_x, log_y, delta=1e-3)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other)


def test_a_sweep_comes_near_from_anywhere():
    log_x, log_y, _ = centred(CHINCHILLA, runs())
    for start in ([0.03, 2.0], [2.0, 0.03], [0.1, 0.1]):
        shape = np.exp(sweep(CHINCHILLA, np.array(start), log_x, log_y, delta=1e-3, scales=np.ones(2))[3:])
        assert shape == pytest.approx([TRUTH["alpha"], TRUTH["beta"]], rel=0.5)
