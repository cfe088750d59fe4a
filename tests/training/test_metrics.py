"""metrics.jsonl and MFU."""

import json

import pytest

from bmscale.training.metrics import Metrics, model_flops_utilisation


def test_resuming_forgets_what_comes_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path, enabled=True)
    for step in (2, 4, 6):
        metrics.write({"step": step, "loss": float("nan") if step == 2 else 1.0})
    path.write_text(path.read_text() + '{"step": 8, "lo')
    metrics.resume(4)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 2, "loss": None},
        {"step": 4, "loss": 1.0},
    ]


def test_resuming_keeps_samples_whole(tmp_path):
    path = tmp_path / "samples.jsonl"
    samples = Metrics(path, enabled=True)
    odd = "one\u2028two\x85three\x0b"
    for step in (2, 4):
        samples.write({"step": step, "source": odd})
    samples.resume(2)
    assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == [{"step": 2, "source": odd}]


def test_other_ranks_write_nothing(tmp_path):
    Metrics(tmp_path / "metrics.jsonl", enabled=False).write({"step": 1})
    assert not list(tmp_path.iterdir())


def test_mfu_is_against_the_dense_peak_of_all_devices():
    assert model_flops_utilisation(989.4e12, 2, "NVIDIA H100 80GB HBM3") == pytest.approx(0.5)
    assert model_flops_utilisation(1e12, 1, "cpu") is None


def test_a_validation_that_the_state_does_not_know_is_forgotten(tmp_path):
    """It is done again, and would stand there twice."""
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path, enabled=True)
    rows = [{"step": 2, "valid_loss": 1.0}, {"step": 4, "loss": 1.0}, {"step": 4, "valid_loss": 1.0}]
    for row in rows:
        metrics.write(row)
    metrics.resume(4)
    assert len(path.read_text().splitlines()) == 3
    metrics.resume(4, validated=False)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows[:2]


def test_a_full_disk_keeps_lines_waiting(tmp_path, monkeypatch):
    path = tmp_path / "runs" / "metrics.jsonl"
    metrics = Metrics(path, enabled=True)
    metrics.write({"step": 1})  # there is no such folder
    path.parent.mkdir()
    metrics.write({"step": 2})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    assert metrics.holds("saved") is False
    metrics.write({"step": 3, "event": "saved"})
    assert metrics.holds("saved")
