"""The global step: which sentence pairs step k trains on.

`StepPlan` chooses the set of pairs of every step from (lengths, seed, tokens_per_step) alone. It knows nothing of
ranks, and splitting a step over them (micro_batches.py) changes no set: so the number of ranks, the micro-batch size
and the ZeRO stage never move the data order, and resuming is arithmetic on the step number.

An epoch is each pair once, or, with a `Mixture`, as many pairs drawn from several sources by their shares.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmscale.errors import BadInput

Ids = NDArray[np.int64]
Lengths = NDArray[np.int32]

# An epoch is shuffled, then sorted by length inside pools of this many steps. The larger the pool the less padding, but
# the more the same pairs meet again in every epoch.
POOL_STEPS = 64

# A step is made of this many bundles of alike length, drawn from all over the epoch. Steps of one length alone pad
# least but learn worst: after 400 steps of 1,536 tokens a small model stood at 5.04 nats a token on held-out text, and
# at 4.79 with pairs in random order, where half of the slots was padding. Four bundles are alike enough to be laid out
# with a few per cent of it (micro_batches.py).
BUNDLES_PER_STEP = 4

# Target lengths within this factor of each other count as equal, and are ordered by source length: sorting by the
# target alone leaves the sources ragged (half as much padding again on 35,000 pairs of package descriptions).
LENGTH_RATIO = 1.1


def length_order(source_lengths: Lengths, target_lengths: Lengths, pool: Ids | None = None) -> Ids:
    """The order (n,) that puts pairs of alike source and target length next to each other, pool by pool.

    Buckets of target length alternate between rising and falling source length, so that neighbours stay alike across
    the border of a bucket.
    """
    bucket = np.floor(np.log(target_lengths) / np.log(LENGTH_RATIO)).astype(np.int64)
    source = np.where(bucket % 2, -source_lengths.astype(np.int64), source_lengths)
    keys = (source, bucket) if pool is None else (source, np.where(pool % 2, -bucket, bucket), pool)
    return np.lexsort(keys)


@dataclass(frozen=True)
class Mixture:
    """Sources of pairs that lie one after the other, and how often each is drawn.

    An epoch has as many pairs as the sources have together, `quotas` of each. A source whose quota is below its size
    goes on in the next epoch where it stopped; one whose quota is above it starts again, in another order. So its
    pairs come equally often, however the shares are.
    """

    sizes: tuple[int, ...]
    """Pairs of each source."""
    shares: tuple[float, ...]
    """Of the pairs of an epoch, in sum 1."""

    @classmethod
    def by_temperature(cls, sizes: Sequence[int], temperature: float) -> "Mixture":
        """Shares in proportion to size^(1/T): T = 1 leaves the sizes as they are, a large T makes all sources alike
        (Arivazhagan 2019, section 3)."""
        largest = max(sizes)
        return cls.by_weight(sizes, [(size / largest) ** (1 / temperature) for size in sizes])

    @classmethod
    def by_weight(cls, sizes: Sequence[int], weights: Sequence[float]) -> "Mixture":
        """Shares in proportion to weights, one a source."""
        return cls(tuple(sizes), tuple(weight / math.fsum(weights) for weight in weights))

    @property
    def quotas(self) -> list[int]:
        """Pairs of each source in an epoch: the shares rounded by the largest remainder."""
        total = sum(self.sizes)
        exact = [share * total for share in self.shares]
        floors = [math.floor(value) for value in exact]
        rest = sorted(range(len(exact)), key=lambda i: (floors[i] - exact[i], i))[: total - sum(floors)]
        return [floor + (index in rest) for index, floor in enumerate(floors)]

    def draw(self, seed: int, epoch: int) -> Ids:
        """The pairs of an epoch, source by source."""
        drawn, first = [], 0
        for index, (size, quota) in enumerate(zip(self.sizes, self.quotas, strict=True)):
            position, end = epoch * quota, (epoch + 1) * quota
            while position < end:
                round_, start = divmod(position, size)
                stop = min(size, start + end - position)
                order = np.random.default_rng([seed, index, round_]).permutation(size)
                drawn.append(first + order[start:stop])
                position += stop - start
            first += size
        return np.concatenate(drawn)


@dataclass(frozen=True)
class _Epoch:
    """One pass over the data: the pairs in order, and where each step begins (the last entry is the end)."""

    order: Ids
    starts: Ids


def _fill(sizes: NDArray[Any], budget: int) -> Ids:
    """Cut items, in order, into parts of at most `budget` in sum, or of one item that is larger: cuts, with 0 and n."""
    ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    cuts = [0]
    while cuts[-1] < len(sizes):
        last = int(np.searchsorted(ends, ends[cuts[-1]] + budget, side="right")) - 1
        cuts.append(max(last, cuts[-1] + 1))
    return np.array(cuts)


class Plan:
    """Epochs of whole steps, one after the other: any step found by arithmetic."""

    def __init__(self) -> None:
        self._first_steps = [0]  # the first step of epochs 0, 1, …, as far as known

    def steps_in_epoch(self, epoch: int) -> int:
        """How many steps the epoch has; epochs differ by a few."""
        raise NotImplementedError

    def locate(self, step: int) -> tuple[int, int]:
        """The (epoch, step within the epoch) of global step `step`, all counted from 0."""
        while self._first_steps[-1] <= step:
            self._first_steps.append(self._first_steps[-1] + self.steps_in_epoch(len(self._first_steps) - 1))
        epoch = int(np.searchsorted(self._first_steps, step, side="right")) - 1
        return epoch, step - self._first_steps[epoch]

    def first_step_of_epoch(self, epoch: int) -> int:
        """The global step with which an epoch begins: so also the number of steps of all epochs before it."""
        while len(self._first_steps) <= epoch:
            self._first_steps.append(self._first_steps[-1] + self.steps_in_epoch(len(self._first_steps) - 1))
        return self._first_steps[epoch]


class StepPlan(Plan):
    """The pairs of every global step: a pure function of (lengths, mixture, seed, tokens_per_step, step).

    `tokens_per_step` bounds the target tokens of a step, the end of sentence included and padding not. A step never
    crosses an epoch; the last of an epoch is smaller; each pair comes exactly once an epoch, or as often as `mixture`
    says. Within a step, pairs come in a few bundles of alike length.

    Raises BadInput when a single pair is longer than a step, or when there are no pairs.
    """

    def __init__(
        self,
        source_lengths: Lengths,
        target_lengths: Lengths,
        *,
        seed: int,
        tokens_per_step: int,
        mixture: Mixture | None = None,
    ) -> None:
        super().__init__()
        if not len(target_lengths):
            raise BadInput("the training data must hold at least one pair; got none")
        longest = int(target_lengths.max())
        if longest > tokens_per_step:
            raise BadInput(
                f"training.tokens_per_step: must hold the longest target, {longest} tokens; got {tokens_per_step}. "
                "Raise it, or prepare the data with a smaller data.max_target_tokens"
            )
        self.source_lengths, self.target_lengths = source_lengths, target_lengths
        self.seed, self.tokens_per_step, self.mixture = seed, tokens_per_step, mixture
        self._epoch = lru_cache(maxsize=2)(self._plan_epoch)

    def _plan_epoch(self, epoch: int) -> _Epoch:
        generator = np.random.default_rng([self.seed, epoch])
        pairs: int | Ids = len(self.target_lengths) if self.mixture is None else self.mixture.draw(self.seed, epoch)
        shuffled = generator.permutation(pairs)
        targets = self.target_lengths[shuffled].astype(np.int64)
        pool = (np.cumsum(targets) - targets) // (POOL_STEPS * self.tokens_per_step)
        order = shuffled[length_order(self.source_lengths[shuffled], targets.astype(np.int32), pool)]

        bundles = _fill(self.target_lengths[order], max(1, self.tokens_per_step // BUNDLES_PER_STEP))
        pieces = [order[begin:end] for begin, end in pairwise(bundles.tolist())]
        pieces = [pieces[index] for index in generator.permutation(len(pieces))]
        tokens = np.array([int(self.target_lengths[piece].sum()) for piece in pieces])
        sizes = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])
        return _Epoch(np.concatenate(pieces), sizes[_fill(tokens, self.tokens_per_step)])

    def steps_in_epoch(self, epoch: int) -> int:
        return len(self._epoch(epoch).starts) - 1

    def pairs(self, step: int) -> Ids:
        """The ids of the pairs of global step `step` (counted from 0)."""
        epoch, index = self.locate(step)
        plan = self._epoch(epoch)
        return plan.order[plan.starts[index] : plan.starts[index + 1]]
