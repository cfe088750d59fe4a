"""Spikes are told by statistics that no bad value can move."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmscale.experiment import SpikesConfig
from bmscale.training.spikes import FLOOR, SpikeDetector

BAD = [math.nan, math.inf, -math.inf]
losses = st.floats(0, 1e6)


def noise(count: int, centre: float = 3.0, deviation: float = 0.05) -> list[float]:
    generator = random.Random(7)
    return [generator.gauss(centre, deviation) for _ in range(count)]


def filled(values: list[float], **config) -> SpikeDetector:
    detector = SpikeDetector(SpikesConfig(**config))
    for value in values:
        detector.accept(value)
    return detector


@pytest.mark.parametrize("threshold", [4.0, 8.0])
def test_the_threshold_is_in_standard_deviations_of_normal_noise(threshold):
    detector = SpikeDetector(SpikesConfig(threshold=threshold, window=1000), noise(1000))
    assert detector.is_spike(3.0 + 1.15 * threshold * 0.05)
    assert not detector.is_spike(3.0 + 0.85 * threshold * 0.05)


def test_a_falling_loss_is_no_spike():
    detector = filled(noise(128))
    assert not detector.is_spike(0.1)
    falling = filled([4 * 0.99**step for step in range(500)], window=128)
    assert len(falling.values) == 128


def test_there_is_no_verdict_before_enough_steps():
    detector = filled(noise(31))
    assert not detector.is_spike(1e9)
    detector.accept(3.0)
    assert detector.is_spike(1e9)


def test_a_steady_loss_makes_no_spike_of_its_noise():
    detector = filled([2.0] * 128, threshold=8)
    assert not detector.is_spike(2.0 + 0.99 * 8 * FLOOR * 2.0)
    assert detector.is_spike(2.0 + 1.01 * 8 * FLOOR * 2.0)


@pytest.mark.parametrize("bad", BAD)
def test_what_is_not_finite_is_refused_from_the_first_step_and_never_kept(bad):
    detector = filled([])
    assert detector.is_spike(bad)
    detector.accept(bad)
    assert detector.values == []


def test_as_many_bad_values_as_good_ones_change_no_verdict():
    """A mean and a standard deviation would take such spikes in, and then call nothing a spike any more."""
    clean = filled(noise(200))
    values = noise(200)
    dirty = filled([found for value in values for found in (value, value, 50.0, math.nan)])
    assert max(dirty.values) < 4 < 50
    assert all(detector.is_spike(4.0) and not detector.is_spike(3.2) for detector in (clean, dirty))


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=60), st.integers(1, 9), st.integers(1, 9))
def test_nothing_bad_enters_and_the_window_is_the_last_that_did(values, window, least):
    detector = SpikeDetector(SpikesConfig(window=max(window, least), least=least))
    taken = []
    for value in values:
        if not detector.is_spike(value):
            taken.append(value)
        detector.accept(value)
    assert all(math.isfinite(value) for value in detector.values)
    assert detector.values == taken[-detector.config.window :]


@given(st.lists(losses, max_size=60), st.lists(losses, max_size=20))
def test_it_goes_on_from_its_values_as_plain_data(before, after):
    config = SpikesConfig(window=20, least=5)
    whole = filled(before, window=20, least=5)
    resumed = SpikeDetector(config, json.loads(json.dumps(whole.values)))
    for value in after:
        assert resumed.is_spike(value) == whole.is_spike(value)
        whole.accept(value)
        resumed.accept(value)
    assert resumed.values == whole.values


def test_a_smaller_window_keeps_the_newest():
    assert SpikeDetector(SpikesConfig(window=2, least=1), [1.0, 2.0, 3.0]).values == [2.0, 3.0]
