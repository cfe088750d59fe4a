"""How a global step is split over ranks and micro-batches, and a micro-batch into buckets of rows of alike length.

Which pairs a step trains on is decided before (steps.py) and is not changed here.
"""

import heapq

import numpy as np
from numpy.typing import NDArray

from bmscale.data.steps import Ids, Lengths, length_order
from bmscale.errors import BadInput

# What a bucket costs besides its slots, as a share of max_micro_batch_tokens in slots: one more call of each kernel of
# attention. A small model on CPU (width 256, 8,192) is as fast with 16 slots as with 256.
BUCKET_COST = 1 / 512

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

    Every rank gets the same number of micro-batches, since ZeRO-2 and 3 hang otherwise; a rank may get an empty one.
    There are as few rounds as memory allows: no micro-batch has more than `max_micro_batch_tokens` padded slots (source
    and target together). All hold nearly as many tokens, since each round waits for its slowest rank, and are mixed in
    length alike.

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
    place = np.empty(len(pairs), np.int64)  # of each pair in the order of lengths
    place[length_order(source_lengths[pairs], target_lengths[pairs])] = np.arange(len(pairs))
    cost = max_micro_batch_tokens * BUCKET_COST
    rounds = max(1, -(-int(sizes.sum()) // (world_size * max_micro_batch_tokens)))
    while True:
        batches = []
        for members in _deal(sizes, rounds * world_size):
            ids = pairs[members[np.argsort(place[members])]]
            batches.append(_cut(ids, source_lengths[ids], target_lengths[ids], cost))
        slots = [padded_slots(batch, source_lengths, target_lengths) for batch in batches]
        worst = max(slots)
        if worst <= max_micro_batch_tokens:  # at the latest where each pair is alone
            break
        rounds = max(rounds + 1, rounds * worst // max_micro_batch_tokens)
    order = sorted(range(len(batches)), key=lambda index: -slots[index])  # so that those of a round are alike
    batches = [batches[index] for index in order]
    return [batches[first : first + world_size] for first in range(0, len(batches), world_size)]


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
