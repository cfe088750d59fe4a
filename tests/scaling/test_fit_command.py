"""`bmscale scaling fit` as a command."""

import json
import subprocess
import sys

import numpy as np
import pytest

from bmscale.cli import main
from bmscale.commands import scaling
from bmscale.scaling.laws import LAWS
from tests.scaling.conftest import TRUTH, runs


@pytest.fixture
def table(tmp_path):
    made = runs(noise=0.001)
    rows = np.stack([made[name] for name in ("N", "D", "loss")], axis=1)
    path = tmp_path / "runs.csv"
    np.savetxt(path, rows, delimiter=",", header="N,D,loss", comments="")
    return path


def test_it_prints_and_draws(table, tmp_path, capsys):
    code = main(
        ["scaling", "fit", str(table), "--law", "chinchilla", "--draws", "20", "--restarts", "2",
         "--drop", "rows=1", "--json", "--plot", str(tmp_path / "fit.svg")]
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["fit"]["parameters"]["alpha"] == pytest.approx(TRUTH["alpha"], rel=0.1)
    assert found["fit"]["rows"] == 34
    assert (tmp_path / "fit.svg").stat().st_size > 10_000


def test_it_needs_no_option(table, capsys):
    assert main(["scaling", "fit", str(table), "--draws", "10"]) == 0
    said = capsys.readouterr().out
    assert "rows: without those held out; the law above is fitted to its window with them" in said
    assert "frontier forecasts only the best run of a budget" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--law", "hoffmann"], "law: must be one of"),
        (["--plot", "fit.pdf"], "must end in .png or .svg"),
        (["--plot", ""], "--plot: must end in .png or .svg; got ''"),
        (["--plot", "/proc/fit.svg"], "--plot: must be where you may write; got '/proc/fit.svg', and /proc cannot be"),
        (["--draws", "-1"], "--draws: must be at least 0; got -1"),
        (["--delta", "0"], "delta: must be above 0"),
        (["--approach", "1"], "approach 1 needs loss curves"),
        (["--law", "encoder-decoder"], "must have the column N_e; got N, D, loss, C"),
        (["--columns", "N=size"], "has the columns N, D, loss; got 'size'"),
    ],
)
def test_mistakes_have_code_2(table, options, said, capsys):
    assert main(["scaling", "fit", str(table), *options]) == 2
    assert said in capsys.readouterr().err


def test_the_help_names_every_law_and_loads_no_numpy():
    assert {name.strip() for name in scaling.LAWS.split(",")} == set(LAWS)
    program = "import sys; from bmscale.cli import build_parser; build_parser(); print('numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
