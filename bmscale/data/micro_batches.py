"""How a global step is split over ranks and micro-batches, and a micro-batch into buckets of rows of alike length.

Which pairs a step trains on is decided before (steps.py) and is not changed here.
"""

import heapq
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bmscale.data.steps import Ids, Lengths, length_order
from bmscale.errors import BadInput

# What a bucket costs besides its slots, in slots: a call more of each kernel of attention. A small model on CPU (width
# 256, 4,500 slots) is as fast at 16 as at 256; as a share of what a micro-batch holds, since on a GPU a call costs the
# time of more slots and micro-batches hold more of them (not measured there).
BUCKET_COST = 1 / 256
LEAST_BUCKET_COST = 16

# Borders of buckets are looked for between so many blocks of neighbours.
BLOCKS = 96

MicroBatch = list[Ids]
"""The pairs of each bucket; nothing where a rank has no pairs."""


def padded_slots(buckets: MicroBatch, source_lengths: Lengths, target_lengths: Lengths) -> int:
    """Slots of a micro-batch: rows x (longest source + longest target) of each bucket, what memory and time go by."""
    return sum(len(ids) * (int(source_lengths[ids].max()) + int(target_lengths[ids].max())) for ids in buckets)


def split_step(
    pairs: Ids, source_lengths: Lengths, target_lengths: Lengths, *, world_size: int, max_micro_batch_tokens: int
) -> list[list[MicroBatch]]:
    """Cut a step's pairs into rounds of one micro-batch a rank: `result[round][rank][bucket]` holds pair ids.

    Every rank gets the same number of micro-batches, since ZeRO-2 and 3 hang otherwise; in the last round a rank may
    get an empty one. No micro-batch has more than `max_micro_batch_tokens` padded slots (source and target together),
    and there are as few rounds as are found for that. All hold as nearly the same number of tokens as their pairs let
    them, since each round waits for its slowest rank, and are mixed in length alike.

    Raises BadInput when one pair alone has more slots than that.
    """
    sizes = source_lengths[pairs].astype(np.int64) + target_lengths[pairs]
    longest = int(sizes.max())
    if longest > max_micro_batch_tokens:
        raise BadInput(
            f"training.max_micro_batch_tokens: must hold the longest pair, {longest} tokens of source and target; "
            f"got {max_micro_batch_tokens}. Raise it, or prepare the data with smaller data.max_source_tokens and "
            "data.max_target_tokens"
        )
    splitter = _Splitter(pairs, sizes, source_lengths, target_lengths, max_micro_batch_tokens)
    most = -(-len(pairs) // world_size)  # each pair alone, which fits
    failed = -(-int(sizes.sum()) // (world_size * max_micro_batch_tokens)) - 1
    rounds, stride = min(most, failed + 1), 1
    while (batches := splitter.split(rounds * world_size)) is None:
        failed, rounds, stride = rounds, min(most, rounds + stride), 2 * stride
    while rounds - failed > 1:
        middle = (rounds + failed) // 2
        fewer = splitter.split(middle * world_size)
        if fewer is None:
            failed = middle
        else:
            rounds, batches = middle, fewer
    return [batches[first : first + world_size] for first in range(0, len(batches), world_size)]


@dataclass(frozen=True)
class _Splitter:
    """Splits a step's pairs into so many micro-batches as are asked for."""

    pairs: Ids
    sizes: NDArray[np.int64]
    sources: Lengths
    targets: Lengths
    max_slots: int

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """Of each pair in the order of lengths."""
        places = np.empty(len(self.pairs), np.int64)
        places[length_order(self.sources[self.pairs], self.targets[self.pairs])] = np.arange(len(self.pairs))
        return places

    def split(self, parts: int) -> list[MicroBatch] | None:
        """The micro-batches, those with the most slots first; None where one has more than memory allows."""
        members = _deal(self.sizes, parts)
        if max(int(self.sizes[part].sum()) for part in members) > self.max_slots:
            return None
        cost = max(LEAST_BUCKET_COST, BUCKET_COST * int(self.sizes.sum()) / parts)
        batches = []
        for part in members:
            ids = self.pairs[part[np.argsort(self._places[part])]]
            batch = self._cut(ids, cost)
            if self._slots(batch) > self.max_slots:
                batch = self._cut(ids, 0.0)
            batches.append(batch)
        slots = [self._slots(batch) for batch in batches]
        if max(slots) > self.max_slots:
            return None
        # So that the ranks of a round are alike.
        return [batches[index] for index in sorted(range(parts), key=lambda index: -slots[index])]

    def _slots(self, batch: MicroBatch) -> int:
        return padded_slots(batch, self.sources, self.targets)

    def _cut(self, ids: Ids, cost: float) -> MicroBatch:
        return _cut(ids, self.sources[ids], self.targets[ids], cost)


def _deal(sizes: NDArray[np.int64], parts: int) -> list[Ids]:
    """Indices of items in parts of nearly the same sum: the largest first, each to whoever has least (Graham 1969)."""
    loads = [(0, part) for part in range(parts)]
    members: list[list[int]] = [[] for _ in loads]
    for item in np.argsort(-sizes, kind="stable").tolist():
        load, part = loads[0]
        members[part].append(item)
        heapq.heapreplace(loads, (load + int(sizes[item]), part))
    return [np.array(part, np.int64) for part in members]


def _cut(ids: Ids, sources: Lengths, targets: Lengths, cost: float) -> MicroBatch:
    """Cut neighbours into buckets such that their slots, and `cost` for each, are least in sum (by dynamic
    programming over blocks of neighbours)."""
    if not len(ids):
        return []
    edges = np.unique(np.linspace(0, len(ids), min(len(ids), BLOCKS) + 1).astype(np.int64))
    longest = [np.maximum.reduceat(side.astype(np.int64), edges[:-1]) for side in (sources, targets)]
    least = np.zeros(len(edges))  # for what lies before each edge
    begins = np.zeros(len(edges), np.int64)
    for end in range(1, len(edges)):
        # Of a last bucket of one block before `end`, of two, …
        width = sum(np.maximum.accumulate(side[:end][::-1]) for side in longest)
        totals = least[:end][::-1] + (edges[end] - edges[:end][::-1]) * width + cost
        blocks = int(totals.argmin())
        least[end], begins[end] = totals[blocks], end - 1 - blocks
    buckets, end = [], len(edges) - 1
    while end:
        begin = int(begins[end])
        buckets.append(ids[edges[begin] : edges[end]])
        end = begin
    return buckets[::-1]
