"""The planner against real ranks, on the smallest shapes that say anything."""

import json

import pytest

from bmscale.benchmark import prediction
from bmscale.benchmark.prediction import RUNS, Row, Run
from bmscale.cli import main
from bmscale.errors import BadInput


def row(predicted: float, measured: float, seconds: float = 1.0, run: Run = RUNS[0]) -> Row:
    return Row(run, 10**6, predicted, measured, 2.0, seconds)


def test_the_runs_span_what_was_asked():
    assert len(RUNS) >= 24
    assert len({run.name for run in RUNS}) == len(RUNS)
    assert {run.choice.name for run in RUNS} == {"none", "zero0", "zero1", "zero2", "zero3"}
    assert {run.choice.ranks for run in RUNS} == {1, 2}
    assert {run.precision for run in RUNS} == {"bf16", "fp32"}
    assert {run.checkpointing for run in RUNS} == {True, False}
    assert any(run.name.startswith(prediction.CALIBRATING) for run in RUNS)


def test_errors_are_of_what_was_measured():
    rows = [row(110, 100), row(95, 100, 4.0, RUNS[1])]
    found = prediction.summary(rows)
    assert found["memory"] == pytest.approx({"median": 0.075, "worst": 0.1})
    assert found["fitted"] == RUNS[0].name
    assert found["time"] == pytest.approx({"median": 0.75, "worst": 0.75})
    text = prediction.table(rows)
    assert "+10.0%" in text
    assert "fitted" in text
    assert "worst 10.0%" in text
    assert prediction.summary(rows[:1])["time"] is None


def test_names_of_runs_that_are_not():
    with pytest.raises(BadInput, match="must be the beginnings of names"):
        prediction.choose(["rows/mini/fp64"])
    assert {run.kind for run in prediction.choose(["pairs"])} == {"pairs"}


def test_mistakes_of_the_command(capsys):
    assert main(["plan", "toy", "--verify"]) == 2
    assert "must stand without CONFIG" in capsys.readouterr().err
    assert main(["plan"]) == 2
    assert "CONFIG: must be given" in capsys.readouterr().err
    assert main(["plan", "--verify", "--steps", "0"]) == 2


SMALL = (Run("pairs", "mini", "bf16", "none", 32, 32), Run("rows", "mini", "fp32", "zero2x2", 8, 128))


def test_predicted_and_measured(monkeypatch, capsys):
    """Real ranks: bounds are those of the command, and a little besides, since the runs are small."""
    monkeypatch.setattr(prediction, "RUNS", SMALL)
    assert main(["plan", "--verify", "--steps", "1", "--warmup-steps", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in found["runs"]] == [run.name for run in SMALL]
    assert all(run["memory"] > 2**27 and run["seconds"] > 0 for run in found["runs"])
    assert found["memory"]["worst"] < 0.17
