"""Pictures of the report: they show what the analysis found, and their captions are true of the table."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from bmscale.scaling.analysis import Analysis, analyse
from bmscale.scaling.approaches import Minimum, isoflop
from bmscale.scaling.figures import MARKERS, figures
from bmscale.scaling.figures import _isoflops as isoflops
from bmscale.scaling.figures import _parabolas as parabolas
from bmscale.scaling.law import Array
from bmscale.scaling.tables import Table
from tests.scaling.conftest import runs


def found_of(table: Table) -> Analysis:
    return analyse(table, law="chinchilla", draws=0, restarts=0)


Lines = list[tuple[Array, str]]


def drawn_lines(table: Table, curves: list[Minimum]) -> tuple[Lines, Lines, Lines]:
    """(points, 2) and mark of each budget's rows, curve and minimum."""
    axes = Canvas().add_subplot()
    parabolas(axes, table, curves)
    lines = [(np.asarray(line.get_xydata(), dtype=np.float64), str(line.get_marker())) for line in axes.lines]
    return lines[0::3], lines[1::3], lines[2::3]


@pytest.fixture(scope="module")
def repeated() -> Table:
    """Seven sizes at three budgets, the third size of each five times, four of them 5 % worse."""
    table = runs(noise=0.0, budgets=(1e18, 1e19, 1e20))
    again = [row for row in range(len(table)) for _ in range(5 if row % 7 == 2 else 1)]
    worse = np.array([1.05 if row in again[:place] else 1.0 for place, row in enumerate(again)])
    numbered = replace(table.select(again), groups=(), runs=(), rows=tuple(range(1, len(again) + 1)))
    return Table("repeated", {**numbered.columns, "loss": numbered["loss"] * worse})


def test_isoflop_curves_are_those_of_approach_2(repeated):
    """Through the mean of a size's seeds, not through each of them, and the marks at the optima."""
    found = found_of(repeated)
    rows, curves, minima = ([points for points, _ in lines] for lines in drawn_lines(repeated, isoflops(found.minima)))
    assert [len(one) for one in rows] == [11, 11, 11]
    for drawn, curve in zip(rows, curves, strict=True):
        sizes = np.unique(drawn[:, 0])
        means = [drawn[drawn[:, 0] == size, 1].mean() for size in sizes]
        through = np.polyfit(np.log(sizes / 1e9), means, 2)
        np.testing.assert_allclose(curve[:, 1], np.polyval(through, np.log(curve[:, 0] / 1e9)), rtol=1e-9)
        np.testing.assert_allclose(curve[[0, -1], 0], sizes[[0, -1]])
    optima = [[best.N, best.loss] for best in isoflop(repeated).optima]
    np.testing.assert_allclose(np.concatenate(minima), optima)


@pytest.mark.parametrize("side", [1, -1])
def test_a_minimum_beyond_the_grid_is_a_cross_at_its_end(side):
    table = runs(noise=0.0, budgets=(1e18, 1e19, 1e20), sizes=21, span=3.0)
    table = table.select(side * (table["N"] - 2.0**side * np.sqrt(table["C"] / 120)) > 0)
    end = 0 if side > 0 else -1
    curves = isoflops(found_of(table).minima)
    assert len(curves) == 3
    for (rows, _), (curve, _), (cross, mark) in zip(*drawn_lines(table, curves), strict=True):
        assert mark == "x"
        np.testing.assert_allclose(cross[0], curve[end], rtol=1e-9)
        assert cross[0, 0] == pytest.approx(np.sort(rows[:, 0])[end])


def captions(table: Table) -> dict[str, str]:
    return {one.name: one.caption for one in figures(found_of(table), [])}


def test_captions_are_true_of_runs_and_of_loss_curves():
    """Rows of a loss curve are no runs, and sizes without a line have none said."""
    table = runs()
    curves = replace(table, groups=tuple(f"{n:.4g}" for n in table["N"]), runs=())
    curves = Table("curves", curves.columns, curves.groups)
    of_runs, of_curves = captions(table), captions(curves)
    assert of_runs == of_curves
    assert of_runs["loss"].startswith("A mark is a row: a run, or a point of its loss curve")
    assert "the mean of each size" in of_runs["isoflop"]
    assert len(np.unique(table["N"])) > len(MARKERS)
    assert "a thin line one size" not in of_runs["loss"]
    same = np.tile(2.0 ** np.arange(7), 5) * 1e8
    few = table.with_columns(N=same, D=table["C"] / (6 * same))
    assert "a thin line one size" in captions(few)["loss"]
