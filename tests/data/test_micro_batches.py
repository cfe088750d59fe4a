"""Splitting a step: every pair once whatever the ranks, within memory, ranks even, little padding."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmscale.data.micro_batches import padded_slots, split_step
from bmscale.data.steps import StepPlan
from bmscale.errors import BadInput


def lengths(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Lengths like those of real text: log-normal, the sides correlated."""
    generator = np.random.default_rng(seed)
    source = np.clip(generator.lognormal(3.0, 0.7, count), 2, 200)
    target = np.clip(source * generator.lognormal(0.1, 0.2, count), 2, 200)
    return source.astype(np.int32), target.astype(np.int32)


def flat(rounds) -> list[int]:
    return [int(i) for ranks in rounds for buckets in ranks for ids in buckets for i in ids]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("max_micro_batch_tokens", [500, 4096, 100_000])
def test_ranks_and_micro_batches_never_move_the_data(world_size, max_micro_batch_tokens):
    source, target = lengths(3000)
    plan = StepPlan(source, target, seed=1, tokens_per_step=2048)
    for step in range(0, plan.steps_in_epoch(0) + 5, 3):
        rounds = split_step(
            plan.pairs(step), source, target, world_size=world_size, max_micro_batch_tokens=max_micro_batch_tokens
        )
        assert sorted(flat(rounds)) == sorted(plan.pairs(step).tolist())
        assert all(len(ranks) == world_size for ranks in rounds)
        slots = [padded_slots(buckets, source, target) for ranks in rounds for buckets in ranks]
        assert max(slots) <= max_micro_batch_tokens
        assert all(any(ranks) for ranks in rounds)
        # As few rounds as memory allows, but for the padding.
        tokens = int(source[plan.pairs(step)].sum() + target[plan.pairs(step)].sum())
        assert len(rounds) <= 1.25 * tokens / (world_size * max_micro_batch_tokens) + 1


def test_padding_is_below_five_percent_and_ranks_are_even():
    source, target = lengths(30_000)
    plan = StepPlan(source, target, seed=1, tokens_per_step=4096)
    real = slots = slowest = 0
    for step in range(0, plan.steps_in_epoch(0) - 1, 5):
        pairs = plan.pairs(step)
        real += int(source[pairs].sum() + target[pairs].sum())
        for ranks in split_step(pairs, source, target, world_size=2, max_micro_batch_tokens=8000):
            of_ranks = [padded_slots(buckets, source, target) for buckets in ranks]
            slots += sum(of_ranks)
            slowest += 2 * max(of_ranks)
    assert 1 - real / slots < 0.05
    assert slots / slowest > 0.97


@pytest.mark.parametrize("world_size", [1, 2])
def test_rows_of_unlike_length_lie_in_buckets(world_size):
    """Forty short pairs and ten long ones: padded to the longest, 72 % of one batch would be padding."""
    lengths = np.array([5] * 40 + [50] * 10, dtype=np.int32)
    rounds = split_step(np.arange(50), lengths, lengths, world_size=world_size, max_micro_batch_tokens=5000)
    assert len(rounds) == 1
    assert sum(padded_slots(buckets, lengths, lengths) for buckets in rounds[0]) == 2 * lengths.sum()
    rows = [[len(ids) for ids in buckets] for buckets in rounds[0]]
    assert rows == [[40 // world_size, 10 // world_size]] * world_size
    # Where nothing is saved, a bucket more is not worth its price.
    equal = np.full(50, 20, dtype=np.int32)
    assert len(split_step(np.arange(50), equal, equal, world_size=1, max_micro_batch_tokens=5000)[0][0]) == 1


def test_a_pair_as_long_as_memory_stands_alone():
    """One long pair among short ones costs one micro-batch more, not one for each pair."""
    lengths = np.array([50] + [2] * 60, dtype=np.int32)
    rounds = split_step(np.arange(61), lengths, lengths, world_size=1, max_micro_batch_tokens=100)
    assert len(rounds) <= 5
    assert [0] in [[int(i) for ids in buckets for i in ids] for (buckets,) in rounds]


@pytest.mark.parametrize(("length", "most", "rounds"), [(513, 1024, 2000), (513, 768, 2000), (40, 100, 1000)])
def test_pairs_that_fill_memory_badly_are_split_at_once(length, most, rounds):
    """Pairs of which a half, or all, of the budget is just too small: no search through every number of rounds."""
    target = np.ones(2000, np.int32)
    begun = time.monotonic()
    split = split_step(np.arange(2000), target * (length - 1), target, world_size=1, max_micro_batch_tokens=most)
    assert time.monotonic() - begun < 5
    assert len(split) == rounds
    assert all(any(ranks) for ranks in split)


@pytest.mark.parametrize("max_micro_batch_tokens", [20_000, 1_000_000])
def test_more_memory_than_a_step_needs_is_not_filled_with_padding(max_micro_batch_tokens):
    source, target = lengths(5000)
    pairs = np.arange(200)
    ((buckets,),) = split_step(pairs, source, target, world_size=1, max_micro_batch_tokens=max_micro_batch_tokens)
    assert padded_slots(buckets, source, target) < 1.15 * (source[pairs].sum() + target[pairs].sum())


def test_more_ranks_than_pairs_leaves_some_empty():
    source, target = np.array([5, 6], np.int32), np.array([4, 7], np.int32)
    rounds = split_step(np.array([0, 1]), source, target, world_size=4, max_micro_batch_tokens=100)
    assert len(rounds) == 1
    assert sum(not buckets for buckets in rounds[0]) == 2


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=60), st.integers(1, 5))
def test_any_lengths(pairs, world_size):
    source, target = (np.array(side, np.int32) for side in zip(*pairs, strict=True))
    rounds = split_step(np.arange(len(pairs)), source, target, world_size=world_size, max_micro_batch_tokens=120)
    assert {len(ranks) for ranks in rounds} == {world_size}
    assert sorted(flat(rounds)) == list(range(len(pairs)))
    assert max(padded_slots(buckets, source, target) for ranks in rounds for buckets in ranks) <= 120


def test_too_small_micro_batches_are_refused():
    source, target = np.array([90, 5], np.int32), np.array([80, 7], np.int32)
    with pytest.raises(BadInput, match=r"training\.max_micro_batch_tokens.* 170 tokens.*got 169"):
        split_step(np.array([0, 1]), source, target, world_size=1, max_micro_batch_tokens=169)
