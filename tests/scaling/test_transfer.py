"""Transfer of the learning rate: the points of the grid, what is said of them, and that runs are not done twice."""

import json
import math

import pytest

from bmscale.errors import BadInput
from bmscale.scaling.transfer import Transfer, proxy, table


def transfer(*rows, rates=(0.001, 0.002, 0.004, 0.008)):
    return Transfer("mup", [32, 64][: len(rows)], list(rates), [list(row) for row in rows])


def test_the_best_rate_and_how_far_it_moves():
    found = transfer((4, 3, 2, 3), (3, 2, 3, math.inf))
    assert (found.best(32), found.best(64), found.moved(), found.holds) == (0.004, 0.002, 2.0, True)
    assert found.optimum(32) == pytest.approx(0.004)
    assert transfer((4, 3, 2, 3), (2.5, 2, 3.5, 4)).optimum(64) == pytest.approx(0.002 * 2 ** (-1 / 4))
    assert "the best rate moves by a factor of 2: at most 2" in table(found)
    assert "inf" in table(found)
    assert found.to_dict()["losses"][1][3] is None


def test_more_than_a_factor_of_two_does_not_hold():
    found = transfer((5, 4, 3, 2, 3), (3, 2, 3, 4, 5), rates=(0.001, 0.002, 0.004, 0.008, 0.016))
    assert (found.moved(), found.holds) == (4.0, False)
    assert "more than 2" in table(found)


def test_an_optimum_at_the_edge_is_none():
    found = transfer((1, 2, 3, 4), (1, 2, 3, 4))
    assert (found.moved(), found.holds, found.at_the_edge()) == (1.0, False, [32, 64])
    assert "at the edge of the grid at width 32, 64" in table(found)
    assert found.optimum(32) == 0.001


def test_a_training_without_a_number_of_steps_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"training\.max_steps: must be given"):
        proxy("toy", ["training.max_steps=null", "training.max_epochs=1"], {}, 0.1, tmp_path)


def test_the_command_trains_the_grid_once_and_draws_it(bmscale, prepared):
    given = ("scaling", "transfer", "tiny.yaml", "training.max_steps=2", "--widths", "16,32", "--rates", "1e-3,4e-3")
    more = ("--parametrization", "mup", "--output", "grid", "--json", "--plot", "grid.svg")
    first = bmscale(*given, *more, folder=prepared, check=False)
    assert first.returncode == 1, first.stderr  # of two rates each is an edge
    (found,) = json.loads(first.stdout)
    assert (found["widths"], found["rates"], found["at_the_edge"]) == ([16, 32], [0.001, 0.004], [16, 32])
    assert all(4 < loss < 7 for row in found["losses"] for loss in row)
    assert (prepared / "grid.svg").read_text().startswith("<?xml")
    record = (prepared / "grid" / "mup-w32-r0.004" / "run.yaml").read_text()
    assert "parametrization: mup" in record
    assert "base_hidden_size: 16" in record
    again = bmscale(*given, *more, folder=prepared, check=False)
    assert json.loads(again.stdout) == [found]
    assert "trained 2 steps" in first.stderr
    assert "trained 2 steps" not in again.stderr
