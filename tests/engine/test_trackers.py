"""Trackers through Accelerate: nested settings flattened, TensorBoard files that can be read back."""

import pytest
from accelerate import Accelerator

from bmscale.engine.trackers import Trackers, choose_trackers, flatten
from bmscale.errors import BadInput

SETTINGS = {"training": {"seed": 1, "betas": [0.9, 0.98], "ema": None}, "name": "x"}


def test_nested_settings_are_flattened():
    assert dict(flatten(SETTINGS)) == {
        "training.seed": 1,
        "training.betas.0": 0.9,
        "training.betas.1": 0.98,
        "name": "x",
    }


def test_tensorboard_where_it_is_installed():
    assert choose_trackers(None) == ["tensorboard"]
    assert choose_trackers([]) == []


def test_a_tracker_that_is_not_there_is_refused():
    with pytest.raises(BadInput, match=r"trackers: must name trackers that are installed, .*got 'tensorbord'"):
        choose_trackers(["tensorbord"])


def test_what_is_logged_can_be_read_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = Trackers(Accelerator(cpu=True), ["tensorboard"], "run", tmp_path, SETTINGS, 0)
    for step in (2, 4):
        trackers.log({"step": step, "loss": 5.0 / step, "mfu": None, "memory_gib": [0.5, 0.25], "nan": float("nan")})
    trackers.finish()
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(2, 2.5), (4, 1.25)]
    assert events.Scalars("memory_gib.1")[0].value == 0.25
    assert set(events.Tags()["scalars"]) == {"loss", "memory_gib.0", "memory_gib.1"}


def test_a_tracker_that_fails_does_not_stop_the_run(tmp_path, caplog, monkeypatch):
    accelerator = Accelerator(cpu=True)
    trackers = Trackers(accelerator, ["tensorboard"], "run", tmp_path, SETTINGS, 0)

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(accelerator, "log", fail)
    for step in (1, 2):
        trackers.log({"step": step, "loss": 1.0})
    assert caplog.text.count("a tracker failed and gets nothing more: disk full") == 1
    trackers.finish()
