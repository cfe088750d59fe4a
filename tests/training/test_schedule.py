"""Learning-rate schedules at the steps where they bend."""

import math
from itertools import pairwise

import pytest

from bmscale.experiment import ScheduleConfig
from bmscale.training.schedule import rate_factor


def factors(steps: int, **config) -> list[float]:
    schedule = ScheduleConfig(**config)
    return [rate_factor(step, schedule, steps) for step in range(steps)]


@pytest.mark.parametrize("kind", ["inverse_sqrt", "cosine", "wsd", "constant"])
def test_warmup_is_linear_and_reaches_the_peak(kind):
    rates = factors(100, type=kind, warmup_steps=10)
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(rates) == pytest.approx(1.0)


def test_inverse_sqrt():
    rates = factors(1000, type="inverse_sqrt", warmup_steps=100)
    assert rates[399] == pytest.approx(0.5)  # four times the warm-up
    assert rates[899] == pytest.approx(1 / 3)


def test_cosine_ends_at_the_final_ratio():
    rates = factors(100, type="cosine", warmup_steps=20, final_ratio=0.1)
    assert rates[59] == pytest.approx(0.55)  # half way
    assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("shape", ["linear", "sqrt"])
def test_wsd_is_flat_then_falls(shape):
    rates = factors(100, type="wsd", warmup_steps=10, cooldown_fraction=0.2, cooldown_shape=shape)
    assert rates[10:81] == pytest.approx([1.0] * 71)
    half = 0.5 if shape == "linear" else 1 - math.sqrt(0.5)
    assert rates[90] == pytest.approx(half)
    assert 0 < rates[-1] < 0.06
    assert all(later < earlier for earlier, later in pairwise(rates[80:]))


def test_no_warmup():
    assert factors(3, type="constant", warmup_steps=0) == [1.0, 1.0, 1.0]
    assert factors(4, type="inverse_sqrt", warmup_steps=0)[0] == 1.0
