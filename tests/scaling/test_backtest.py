"""The back-test: what is held out, which candidate is taken, and what is refused."""

import numpy as np
import pytest

from bmscale.errors import BadInput
from bmscale.scaling.backtest import BackTest, Candidate, backtest, frontier_of, split, window
from bmscale.scaling.laws import CHINCHILLA, KAPLAN_D, SATURATING
from bmscale.scaling.tables import Table
from tests.scaling.conftest import runs


def test_the_top_budget_is_held_out():
    table = runs()
    below, held = split(table)
    assert held["C"].min() == pytest.approx(1e20)
    assert below["C"].max() == pytest.approx(3e19)
    assert len(below) + len(held) == len(table)


def test_a_window_keeps_whole_budgets():
    table = runs()
    assert np.unique(window(table, 0.5)["C"]).tolist() == [1e19, 3e19, 1e20]
    assert len(window(table, 1.0)) == len(table)


def test_the_law_that_made_the_runs_is_taken():
    found = backtest(runs(noise=0.001))
    assert found.chosen.law in ("chinchilla", "tied")
    assert found.factor == pytest.approx(1e20 / 3e19)
    wrong = found.of("kaplan-n", 1.0)
    assert wrong is not None
    assert wrong.error is not None
    assert found.chosen.error is not None
    assert found.chosen.error < 0.004
    assert wrong.error > 5 * found.chosen.error
    assert found.of("kaplan-n", 0.3) is None
    fitted = [one.law for one in found.candidates if one.error is not None]
    assert fitted.index("frontier") == len(fitted) - fitted.count("frontier")


def test_a_form_that_was_not_there_in_small_runs_loses():
    """Runs below 1e19 FLOPs are off the law by 10 %: the window without them is taken."""
    table = runs(noise=0.0005, budgets=(1e18, 3e18, 1e19, 2e19, 4e19, 8e19))
    off = table.with_columns(loss=table["loss"] * np.where(table["C"] < 9e18, 1.1, 1.0))
    assert backtest(off, laws=[CHINCHILLA]).chosen.window < 1.0
    assert backtest(table, laws=[CHINCHILLA]).chosen.window == 1.0


def test_alike_errors_go_to_more_rows_and_fewer_parameters():
    def one(law: str, share: float, rows: int, error: float) -> Candidate:
        return Candidate(law, share, rows, error, error)

    tested = BackTest("C", 7, 3.0, (one("chinchilla", 0.5, 10, 0.0100), one("chinchilla", 1.0, 20, 0.0105)))
    assert tested.chosen.rows == 20
    tested = BackTest("C", 7, 3.0, (one("chinchilla", 1.0, 20, 0.0100), one("tied", 1.0, 20, 0.0105)))
    assert tested.chosen.law == "tied"
    tested = BackTest("C", 7, 3.0, (one("chinchilla", 0.5, 10, 0.0100), one("tied", 1.0, 20, 0.0120)))
    assert tested.chosen.law == "chinchilla"


def test_a_law_that_cannot_be_fitted_is_left_out():
    """The loss rises with scale: Kaplan's N_c goes beyond every float."""
    table = runs()
    rising = table.with_columns(loss=10 / table["loss"])
    found = backtest(rising)
    refused = {one.law: one.refused for one in found.candidates if one.error is None}
    assert "N_c went beyond 1e308" in refused["kaplan"]
    assert found.chosen.law != "kaplan"


def test_data_alone():
    """Bansal et al. 2022: one model over data sizes; the saturating form beats a power of D."""
    d = np.geomspace(5e5, 5e8, 11)
    table = Table("made", {"D": d, "loss": 20 * (1 / d + 1e-8) ** 0.27})
    found = backtest(table)
    assert found.scale == "D"
    assert found.chosen.law == SATURATING.name
    assert {one.law for one in found.candidates} == {SATURATING.name, KAPLAN_D.name}
    assert {one.window for one in found.candidates if one.error is not None and one.law == SATURATING.name} == {1.0}


def test_the_frontier_is_the_best_of_each_budget():
    best = frontier_of(runs())
    assert len(best) == 5
    for compute, loss in zip(best["C"], best["loss"], strict=True):
        assert loss == min(runs()["loss"][runs()["C"] == compute])


def test_refusals():
    with pytest.raises(BadInput, match="holds out the top budget and needs at least 2 below it; got 1"):
        backtest(runs(budgets=(1e18, 1e19)))
    with pytest.raises(BadInput, match="no law can be fitted to what is below the top budget"):
        backtest(Table("made", {"price": np.arange(1.0, 9.0), "loss": np.arange(1.0, 9.0)}))
