"""The 15-minute tier: the shipped study `quick`, where two ways to the compute-optimal size must agree.

`bash tests/run.sh --full -s tests/scaling/test_quick.py` trains its cells and prints what they say; without --full the
losses of its cells are those of a known law.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bmscale.scaling.analysis import Analysis, analyse, to_text
from bmscale.scaling.approaches import describe, minima
from bmscale.scaling.laws import CHINCHILLA
from bmscale.scaling.reading import make_table, open_table
from bmscale.scaling.records import columns_of
from bmscale.scaling.study import read_study
from bmscale.scaling.tables import Table

LAW = {"E": 0.44, "A": 40.0, "B": 110.0, "alpha": 0.33, "beta": 0.37}
"""Its best sizes are inside the grid of `quick`, as those of its cells are to be."""


def pretended(folder: Path) -> Table:
    """The table of `quick` as it would be were LAW true, with noise of each trunk and of each cell."""
    study, generator, rows = read_study("quick", [], str(folder)), np.random.default_rng(0), []
    for trunk in study.trunks:
        shared = 0.001 * generator.standard_normal()
        for cell in trunk.cells:
            columns = columns_of(study, trunk, cell)
            loss = CHINCHILLA.predict(LAW, {name: np.array([columns[name]]) for name in "ND"})[0]
            noise = shared + 0.0005 * generator.standard_normal()
            rows.append(
                {"cell": cell.name, "group": trunk.name, "run": cell.name, **columns, "loss": loss * np.exp(noise)}
            )
    return make_table("quick", rows)


def trained(folder: Path) -> Table:
    """The table of `quick`, trained as a user trains it."""
    command = [sys.executable, "-m", "bmscale", "scaling", "run", "quick", "--folder", str(folder)]
    subprocess.run(command, cwd=folder.parent, check=True, timeout=7200)
    return open_table(folder / "table.jsonl")


def check(found: Analysis) -> None:
    """Every isoFLOP curve has its minimum between two sizes, and its exponent is inside the law's interval."""
    assert len(found.minima) == 4
    assert [one.at_edge for one in found.minima] == [""] * 4
    assert all(one.best is not None for one in found.minima)
    curves, law = found.allocations[0], found.allocations[-1]
    assert (curves.approach, law.approach) == ("approach 2, parabola", "approach 3")
    assert law.a_interval is not None
    assert law.a_interval[0] <= curves.a <= law.a_interval[1]


def test_two_ways_to_the_best_size_agree(pytestconfig, tmp_path):
    full = pytestconfig.getoption("--full")
    table = (trained if full else pretended)(tmp_path / "quick")
    print("", *describe(minima(table)), sep="\n")  # before a minimum at the edge is refused
    found = analyse(table, law="chinchilla", approach=2, draws=1000 if full else 100)
    print(to_text(found))
    check(found)
    curves, law = found.allocations[0], found.allocations[-1]
    assert law.a_interval is not None
    outside = replace(found, allocations=(replace(curves, a=law.a_interval[1] + 0.01), law))
    with pytest.raises(AssertionError):
        check(outside)


def test_sizes_on_one_side_of_the_best_do_not_pass(tmp_path):
    table = pretended(tmp_path / "quick")
    small = table.select((table["C"] < 2e12) | (table["N"] < 1.5e5))
    with pytest.raises(AssertionError, match="add sizes above it"):
        check(analyse(small, law="chinchilla", draws=0, restarts=0))
