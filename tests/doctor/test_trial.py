"""What the trial's figures mean. That a broken engine leads to such figures, test_doctor.py shows on real ranks."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from bmscale.doctor import trial
from bmscale.doctor.trial import Trial
from bmscale.experiment import ScheduleConfig

GOOD = Trial(
    norm=1.0,
    deviation=1e-6,
    clipped=1.0,
    steps_counted=[1, 2, 3],
    rates=[(1, 1e-6, 1.001e-6), (100, 1e-3, 1e-3), (1000, 0.0, 0.0)],
    computed_in=["torch.bfloat16"],
    stepped_in=["torch.float32"],
    accumulated_in="torch.float32",
)


def engine(world_size: int, in_deepspeed: int | None) -> Any:
    wrapped = SimpleNamespace(dp_world_size=in_deepspeed)
    return SimpleNamespace(world_size=world_size, file=in_deepspeed, wrapped=wrapped)


def test_ranks_that_train_alone():
    assert trial.check_world(engine(2, 2), 2).status == "ok"
    assert trial.check_world(engine(1, None), 1).found == "1 rank launched, as many in the process group"
    found = trial.check_world(engine(2, 1), 2)
    assert found.status == "fail"
    assert found.found == "2 ranks were launched, and DeepSpeed has 1"


@pytest.mark.parametrize(
    ("changed", "precision", "status"),
    [
        ({}, "fp32", "ok"),
        ({"steps_counted": [3, 6, 9]}, "fp32", "fail"),
        ({"deviation": 0.01}, "bf16", "ok"),
        ({"deviation": 0.01}, "fp32", "fail"),
        ({"norm": 0.5}, "bf16", "fail"),
        ({"norm": float("nan")}, "bf16", "fail"),
    ],
)
def test_gradients_that_are_not_those_of_the_whole_step(changed, precision, status):
    assert trial.check_accumulation(replace(GOOD, **changed), precision).status == status


@pytest.mark.parametrize(
    ("clip_norm", "clipped", "status"), [(1.0, 1.0, "ok"), (1.0, 10.0, "fail"), (None, 10.0, "ok"), (None, 1.0, "fail")]
)
def test_clipping_as_asked_and_none_where_none_is(clip_norm, clipped, status):
    assert trial.check_clipping(replace(GOOD, clipped=clipped), clip_norm).status == status


@pytest.mark.parametrize(
    ("changed", "precision", "status"),
    [
        ({}, "bf16", "ok"),
        ({"accumulated_in": None}, "bf16", "ok"),
        ({"accumulated_in": "torch.bfloat16"}, "bf16", "fail"),
        ({"stepped_in": ["torch.bfloat16"]}, "bf16", "fail"),
        ({"stepped_in": []}, "bf16", "fail"),
        ({"computed_in": ["torch.bfloat16", "torch.float32"]}, "bf16", "fail"),
        ({}, "fp32", "fail"),
        ({"computed_in": ["torch.float32"]}, "fp32", "ok"),
    ],
)
def test_types(changed, precision, status):
    assert trial.check_precision(replace(GOOD, **changed), precision).status == status


def test_rates():
    schedule = ScheduleConfig(type="wsd", warmup_steps=100)
    found = trial.check_schedule(GOOD, schedule, 1000)
    assert found.found == "wsd: the rate is 1e-06 in step 1, 0.001 in step 100, 0 in step 1,000"
    assert found.status == "ok"
    twice = replace(GOOD, rates=[*GOOD.rates[:1], (100, 1e-3, 2e-3)])
    assert trial.check_schedule(twice, schedule, 1000).found == "step 100: 0.001 was asked for, moved by 0.002"
    assert trial.check_schedule(GOOD, schedule, 100).status == "warn"
    assert "once the data is prepared" in trial.check_schedule(GOOD, schedule, None).found
