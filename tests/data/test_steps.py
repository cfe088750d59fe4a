"""Global steps: the same pairs whatever the ranks, every pair once an epoch, little padding."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmscale.data.steps import Mixture, StepPlan, padded_slots, split_step
from bmscale.errors import BadInput


def lengths(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Lengths like those of real text: log-normal, the sides correlated."""
    generator = np.random.default_rng(seed)
    source = np.clip(generator.lognormal(3.0, 0.7, count), 2, 200)
    target = np.clip(source * generator.lognormal(0.1, 0.2, count), 2, 200)
    return source.astype(np.int32), target.astype(np.int32)


def plan_of(source, target, seed=1, tokens_per_step=2048) -> StepPlan:
    return StepPlan(source, target, seed=seed, tokens_per_step=tokens_per_step)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("max_micro_batch_tokens", [500, 4096, 100_000])
def test_ranks_and_micro_batches_never_move_the_data(world_size, max_micro_batch_tokens):
    source, target = lengths(3000)
    plan, other = plan_of(source, target), plan_of(source, target)
    for step in range(0, plan.steps_in_epoch(0) + 5, 3):
        rounds = split_step(
            plan.pairs(step), source, target, world_size=world_size, max_micro_batch_tokens=max_micro_batch_tokens
        )
        split = np.concatenate([ids for ranks in rounds for ids in ranks])
        assert sorted(split) == sorted(other.pairs(step))
        assert all(len(ranks) == world_size for ranks in rounds)
        assert all(padded_slots(source[i], target[i]) <= max_micro_batch_tokens for ranks in rounds for i in ranks)


def test_every_pair_exactly_once_an_epoch():
    source, target = lengths(2500)
    plan = plan_of(source, target)
    step = 0
    for epoch in range(3):
        seen: list[int] = []
        for index in range(plan.steps_in_epoch(epoch)):
            assert plan.locate(step) == (epoch, index)
            assert target[plan.pairs(step)].sum() <= 2048
            seen.extend(plan.pairs(step))
            step += 1
        assert sorted(seen) == list(range(2500))
        assert plan.first_step_of_epoch(epoch + 1) == step


def test_steps_are_full_but_for_the_last_of_an_epoch():
    source, target = lengths(5000)
    plan = plan_of(source, target)
    sizes = [target[plan.pairs(step)].sum() for step in range(plan.steps_in_epoch(0))]
    assert min(sizes[:-1]) > 2048 * 0.75
    assert np.mean(sizes[:-1]) > 2048 * 0.9
    assert sizes[-1] == target.sum() - sum(sizes[:-1])


def test_a_step_is_a_pure_function_of_its_number():
    source, target = lengths(1000)
    forward, direct = plan_of(source, target), plan_of(source, target)
    steps = [forward.pairs(step).tolist() for step in range(40)]
    for step in (37, 5, 22, 0):
        assert direct.pairs(step).tolist() == steps[step]


def test_seeds_and_epochs_differ():
    source, target = lengths(1000)
    one, two = plan_of(source, target, seed=1), plan_of(source, target, seed=2)
    assert one.pairs(0).tolist() != two.pairs(0).tolist()
    assert one.pairs(0).tolist() != one.pairs(one.first_step_of_epoch(1)).tolist()


def test_padding_is_below_ten_percent_and_ranks_are_even():
    source, target = lengths(30_000)
    plan = plan_of(source, target, tokens_per_step=4096)
    real = slots = slowest = 0
    for step in range(0, plan.steps_in_epoch(0) - 1, 5):
        pairs = plan.pairs(step)
        real += int(source[pairs].sum() + target[pairs].sum())
        for ranks in split_step(pairs, source, target, world_size=2, max_micro_batch_tokens=3000):
            of_ranks = [padded_slots(source[ids], target[ids]) for ids in ranks]
            slots += sum(of_ranks)
            slowest += 2 * max(of_ranks)
    assert 1 - real / slots < 0.10
    assert slots / slowest > 0.95


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_large_micro_batch_is_cut_where_that_saves_padding(world_size):
    """Forty short pairs and ten long ones: one batch would fit, with 72 % padding."""
    lengths = np.array([5] * 40 + [50] * 10, dtype=np.int32)
    rounds = split_step(np.arange(50), lengths, lengths, world_size=world_size, max_micro_batch_tokens=5000)
    slots = sum(padded_slots(lengths[ids], lengths[ids]) for ranks in rounds for ids in ranks)
    assert slots == 2 * lengths.sum()
    assert len(rounds) == 2 // world_size
    # Where nothing is saved, a round more is not worth its price.
    equal = np.full(50, 20, dtype=np.int32)
    assert len(split_step(np.arange(50), equal, equal, world_size=1, max_micro_batch_tokens=5000)) == 1


def test_more_ranks_than_pairs_leaves_some_empty():
    source, target = np.array([5, 6], np.int32), np.array([4, 7], np.int32)
    rounds = split_step(np.array([0, 1]), source, target, world_size=4, max_micro_batch_tokens=100)
    assert len(rounds) == 1
    assert sum(len(ids) == 0 for ids in rounds[0]) >= 2


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=60), st.integers(1, 5))
def test_any_lengths(pairs, world_size):
    source, target = (np.array(side, np.int32) for side in zip(*pairs, strict=True))
    plan = plan_of(source, target, tokens_per_step=60)
    seen: list[int] = []
    for step in range(plan.steps_in_epoch(0)):
        rounds = split_step(plan.pairs(step), source, target, world_size=world_size, max_micro_batch_tokens=120)
        seen.extend(i for ranks in rounds for ids in ranks for i in ids)
        assert {len(ranks) for ranks in rounds} == {world_size}
    assert sorted(seen) == list(range(len(pairs)))


def test_too_small_budgets_are_refused():
    source, target = np.array([90, 5], np.int32), np.array([80, 7], np.int32)
    with pytest.raises(BadInput, match=r"training\.tokens_per_step.* 80 tokens; got 79"):
        plan_of(source, target, tokens_per_step=79)
    with pytest.raises(BadInput, match=r"training\.max_micro_batch_tokens.* 170 tokens.*got 169"):
        split_step(np.array([0, 1]), source, target, world_size=1, max_micro_batch_tokens=169)
    with pytest.raises(BadInput, match="at least one pair"):
        plan_of(source[:0], target[:0])


def test_a_step_mixes_lengths():
    """Steps of one length alone pad least and learn worst."""
    source, target = lengths(20_000)
    plan = plan_of(source, target, tokens_per_step=4096)
    means = np.array([target[plan.pairs(step)].mean() for step in range(plan.steps_in_epoch(0) - 1)])
    ordered = np.sort(target)
    cuts = np.searchsorted(np.cumsum(ordered), np.arange(0, ordered.sum(), 4096))
    alike = [ordered[begin:end].mean() for begin, end in pairwise(cuts)]  # what steps of one length would be
    assert means.std() < 0.5 * np.std(alike)


def test_shares_by_temperature_and_weight():
    assert Mixture.by_temperature([900, 100], 1).shares == pytest.approx((0.9, 0.1))
    assert Mixture.by_temperature([900, 100], 2).shares == pytest.approx((0.75, 0.25))
    assert Mixture.by_temperature([900, 100], 1e9).shares == pytest.approx((0.5, 0.5))
    assert Mixture.by_weight([10, 20, 30], [1, 1, 2]).quotas == [15, 15, 30]
    assert sum(Mixture.by_weight([7, 7, 7], [1, 1, 1]).quotas) == 21
    assert sum(Mixture.by_weight([5, 5], [1, 2]).quotas) == 10


def test_a_mixture_draws_each_pair_of_a_source_equally_often():
    source, target = lengths(1000)
    mixture = Mixture.by_weight([900, 100], [1, 1])
    plan = StepPlan(source, target, seed=1, tokens_per_step=2048, mixture=mixture)
    counts = np.zeros(1000, dtype=int)
    for epoch in range(9):
        first = plan.first_step_of_epoch(epoch)
        ids = np.concatenate([plan.pairs(first + index) for index in range(plan.steps_in_epoch(epoch))])
        assert len(ids) == 1000
        assert (ids < 900).sum() == 500
        counts += np.bincount(ids, minlength=1000)
        spread = counts[:900].max() - counts[:900].min(), counts[900:].max() - counts[900:].min()
        assert max(spread) <= 1
    assert set(counts[:900]) == {5}  # 9 epochs of 500 are 5 rounds of 900
    assert set(counts[900:]) == {45}


def test_a_mixture_is_a_function_of_seed_and_step():
    source, target = lengths(1000)
    mixture = Mixture.by_temperature([900, 100], 5)

    def plan(seed):
        return StepPlan(source, target, seed=seed, tokens_per_step=2048, mixture=mixture)

    late = plan(1).first_step_of_epoch(4) + 3
    assert np.array_equal(plan(1).pairs(late), plan(1).pairs(late))
    assert not np.array_equal(plan(2).pairs(late), plan(1).pairs(late))
