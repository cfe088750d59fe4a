"""Subword sampling: the same pair segmented anew each time it is trained on.

A segmentation drawn from the tokenizer's distribution (Kudo 2018, "Subword Regularization") makes a model of a small
corpus robust to how words happen to be cut.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmscale.data.shards import PairShards
from bmscale.data.tokenizer import Tokenizer


class SampledPairs:
    """Pairs of shards with text, each in a segmentation that is a pure function of (seed, step, pair).

    So the ranks need not agree on anything, and a resumed run sees what the first one saw. A side whose segmentation
    is longer than its limit stays as it is in the shards: the limits are never exceeded, no text is cut.
    """

    def __init__(
        self, shards: PairShards, tokenizer: Tokenizer, alpha: float, key: tuple[int, int], limits: tuple[int, int]
    ) -> None:
        """`key` is (seed, step); `limits` the most tokens of source and target, </s> counted."""
        self._shards, self._tokenizer, self._alpha, self._key, self._limits = shards, tokenizer, alpha, key, limits

    def pair(self, i: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """The token ids of pair `i`, (source, target), each ending with </s>."""
        generator = np.random.default_rng([*self._key, i])
        sampled = [self._tokenizer.sample(text, self._alpha, generator) for text in self._shards.text(i)]
        source, target = (
            np.array(ids) if len(ids) <= limit else kept
            for ids, limit, kept in zip(sampled, self._limits, self._shards.pair(i), strict=True)
        )
        return source, target
