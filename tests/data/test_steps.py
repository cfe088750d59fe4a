"""Global steps: a pure function of their number, every pair once an epoch."""

from itertools import pairwise

import numpy as np
import pytest

from bmscale.data.steps import Mixture, StepPlan
from bmscale.errors import BadInput


def lengths(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Lengths like those of real text: log-normal, the sides correlated."""
    generator = np.random.default_rng(seed)
    source = np.clip(generator.lognormal(3.0, 0.7, count), 2, 200)
    target = np.clip(source * generator.lognormal(0.1, 0.2, count), 2, 200)
    return source.astype(np.int32), target.astype(np.int32)


def plan_of(source, target, seed=1, tokens_per_step=2048) -> StepPlan:
    return StepPlan(source, target, seed=seed, tokens_per_step=tokens_per_step)


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


def test_too_small_budgets_are_refused():
    source, target = np.array([90, 5], np.int32), np.array([80, 7], np.int32)
    with pytest.raises(BadInput, match=r"training\.tokens_per_step.* 80 tokens; got 79"):
        plan_of(source, target, tokens_per_step=79)
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
