"""Allocation: the three approaches agree where the law is known, and refuse an optimum at the edge of the grid."""

import csv

import numpy as np
import pytest

from bmscale.errors import BadInput
from bmscale.scaling.analysis import analyse
from bmscale.scaling.approaches import describe, from_law, isoflop, minima, training_curves
from bmscale.scaling.fit import fit
from bmscale.scaling.laws import CHINCHILLA, FRONTIER, KAPLAN, TIED
from bmscale.scaling.reading import make_table, open_table
from bmscale.scaling.tables import Table
from tests.scaling.conftest import TRUTH, runs

A = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])


def best_size(compute: float) -> float:
    """N_opt at TRUTH, by looking at a hundred thousand sizes."""
    n = np.geomspace(1e6, 1e13, 100_001)
    return float(n[np.argmin(CHINCHILLA.predict(TRUTH, {"N": n, "D": compute / (6 * n)}))])


def test_a_law_is_minimised():
    found = from_law(CHINCHILLA, TRUTH)
    assert (found.a, found.b) == pytest.approx((A, 1 - A))
    n, d = found.at(1e21)
    assert n == pytest.approx(best_size(1e21), rel=1e-3)
    assert 6 * n * d == pytest.approx(1e21)


def test_the_other_laws():
    kaplan = {"N_c": 8.8e13, "D_c": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.103}
    n, d = from_law(KAPLAN, kaplan).at(1e21)
    loss = KAPLAN.predict(kaplan, {"N": n * np.array([0.9, 1, 1.1]), "D": d / np.array([0.9, 1, 1.1])})
    assert loss.argmin() == 1
    assert from_law(TIED, {"E": 1.0, "A": 100.0, "B": 300.0, "alpha": 0.3}).a == 0.5
    with pytest.raises(BadInput, match="needs a law with a term in N and one in D"):
        from_law(FRONTIER, {"E": 1.0, "A": 1.0, "gamma": 0.1})
    with pytest.raises(BadInput, match="both terms must be above 0"):
        from_law(CHINCHILLA, {**TRUTH, "B": 0.0})


@pytest.mark.parametrize(("curve", "within"), [("parabola", 0.01), ("akima", 0.002)])
def test_isoflop_curves_find_the_exponent(curve, within):
    found = isoflop(runs(noise=0.0), curve=curve)
    assert found.a == pytest.approx(A, abs=within)
    assert found.a + found.b == pytest.approx(1, abs=1e-6)
    assert len(found.optima) == 5
    assert found.a_interval is not None
    assert found.a_interval[0] < found.a < found.a_interval[1]
    if curve == "akima":
        assert pytest.approx(best_size(1e19), rel=0.02) == found.optima[2].N


@pytest.mark.parametrize("curve", ["parabola", "akima"])
@pytest.mark.parametrize(
    ("side", "said"), [(-1, "the largest, .*: add sizes above"), (1, "the smallest, .*: add sizes below")]
)
def test_an_optimum_at_the_edge_is_refused(curve, side, said):
    """Sizes of the top budget all on one side of its best one."""
    table = runs(noise=0.0, sizes=21, span=3.0)
    limit = best_size(1e20) * 2.0 ** (0.5 * side)
    cut = table.select((table["C"] < 9e19) | (side * (table["N"] - limit) > 0))
    with pytest.raises(BadInput, match=rf"at 1e\+20 FLOPs {said} it \(rows=\d"):
        isoflop(cut, curve=curve)
    left = isoflop(cut, curve=curve, leave_out_edges=True)
    assert len(left.optima) == 4
    assert left.notes[0].startswith("left out: at 1e+20 FLOPs")


def cut() -> Table:
    """Five budgets: three sizes around the best one, one size, all, all, and those below the best."""
    table = runs(noise=0.0)
    budget, n = table["C"].round(-17), table["N"]
    near = np.abs(np.log(n / best_size(1e18))) < 0.6
    return table.select(
        ((budget == 1e18) & near)
        | ((budget == 3e18) & (n == n[budget == 3e18][0]))
        | ((budget > 5e18) & (budget < 5e19))
        | ((budget == 1e20) & (n < best_size(1e20)))
    )


def test_every_budget_says_whether_its_minimum_lies_inside():
    """Three sizes are enough to say it, and too few for the exponent."""
    found = minima(cut())
    assert [len(one.sizes) for one in found] == [3, 1, 7, 7, 3]
    assert [one.best is not None for one in found] == [True, False, True, True, False]
    assert found[0].best is not None
    assert best_size(1e18) == pytest.approx(found[0].best.N, rel=0.1)
    assert tuple(one.best for one in found[2:4]) == isoflop(cut()).optima
    assert describe(found) == [
        "isoFLOP curves of at least 3 sizes, parabola: the minimum lies between the smallest and the largest size at 3 "
        "of 4 budgets: 1e+18, 1e+19, 3e+19 FLOPs (1 more have fewer sizes)",
        "the minimum is at an end of the grid: at 1e+20 FLOPs the largest, 5.75e+08 parameters: add sizes above it",
    ]
    assert describe(minima(runs(sizes=2))) == []


def test_approach_2_goes_without_akima_where_budgets_have_four_sizes():
    found = analyse(runs(noise=0.001, sizes=4), law="chinchilla", approach=2, draws=0, restarts=0)
    assert [one.approach for one in found.allocations] == ["approach 2, parabola", "approach 3"]
    assert found.allocations[0].notes[-1] == "by Akima none: it needs 2 budgets of at least 5 sizes"


def test_too_few_sizes_or_budgets():
    with pytest.raises(BadInput, match="needs at least 2 budgets of at least 4 sizes; got 0"):
        isoflop(runs(sizes=3))
    with pytest.raises(BadInput, match="needs the optima of at least 2 budgets"):
        isoflop(runs(noise=0.0, budgets=(1e19,)))


def curves(sizes: np.ndarray) -> Table:
    """Loss curves at TRUTH, 200 points from half a token to 300 tokens a parameter."""
    n = np.repeat(sizes, 200)
    d = n * np.tile(np.geomspace(0.5, 300, 200), len(sizes))
    groups = tuple(f"{size:.3g}" for size in n)
    loss = CHINCHILLA.predict(TRUTH, {"N": n, "D": d})
    return Table("curves", {"N": n, "D": d, "C": 6 * n * d, "loss": loss}, groups)


def test_training_curves_find_the_exponent():
    found = training_curves(curves(np.geomspace(1e7, 1e10, 25)))
    assert found.a == pytest.approx(A, abs=0.02)
    assert found.b == pytest.approx(1 - A, abs=0.02)
    assert "budgets left out" in found.notes[0]
    assert found.a_interval is None


def test_training_curves_refuse_what_they_cannot_answer():
    with pytest.raises(BadInput, match="approach 1 needs loss curves"):
        training_curves(runs())
    with pytest.raises(BadInput, match="needs at least 3 sizes that are the best at some budget"):
        training_curves(curves(np.geomspace(1e7, 1e8, 3)))
    mixed = curves(np.array([1e7, 1e8]))
    with pytest.raises(BadInput, match="run 'one' must have one N"):
        training_curves(Table("mixed", mixed.columns, ("one",) * len(mixed)))


def test_porian(published):
    """Porian et al. 2024, unweighted Akima: tuned and cosine runs on RefinedWeb, and how N is counted (trap 5)."""
    with (published / "porian" / "isoflop_points.csv").open() as file:
        rows = list(csv.DictReader(file))
    keys = ("dataset", "hparams", "warmup", "decay", "param_count", "val")

    def exponent(*chosen: str) -> float:
        part = [row for row in rows if tuple(row[key] for key in keys) == chosen]
        return isoflop(make_table("porian", part), curve="akima", leave_out_edges=True).a

    assert exponent("rw", "tuned", "short", "const", "standard", "val") == pytest.approx(0.497, abs=0.008)
    assert exponent("rw", "base", "short", "chinchilla", "standard", "val") == pytest.approx(0.571, abs=0.008)
    assert exponent("owt2", "tuned", "short", "const", "standard", "val") == pytest.approx(0.518, abs=0.008)
    assert exponent("owt2", "base", "short", "chinchilla", "standard", "val") == pytest.approx(0.574, abs=0.008)
    without_head = exponent("rw", "base", "long", "kaplan", "kaplan", "train")
    with_head = exponent("rw", "base", "long", "kaplan", "standard", "val")
    assert without_head - with_head > 0.1


def test_besiroglu_says_half(chinchilla, published):
    """The three approaches agree that N and D grow alike; all 245 points do not."""
    assert from_law(CHINCHILLA, fit(CHINCHILLA, chinchilla.columns).parameters).a == pytest.approx(0.514, abs=1e-3)
    everything = open_table(published / "chinchilla" / "points.csv")
    assert from_law(CHINCHILLA, fit(CHINCHILLA, everything.columns).parameters).a > 0.55
