"""Gaps are found again, and what was never written takes nothing; a step played through against another order."""

import random
from itertools import pairwise

import pytest

from bmscale.model.config import DecoderOnlyConfig
from bmscale.planning.activations import Cost
from bmscale.planning.rehearsal import Loss, Rehearsal
from bmscale.planning.space import Block, Space
from bmscale.planning.workload import Workload
from bmscale.planning.zero import Zero


def test_a_gap_takes_what_left_it_and_what_is_smaller():
    space = Space()
    first, second, third = (space.take("a", size) for size in (10, 20, 30))
    space.free(second)
    assert space.take("a", 15).address == second.address
    assert space.take("a", 6).address == 60  # the gap has 5 left
    space.free(first)
    assert space.take("a", 10).address == 0
    space.free(third)
    assert space.resident == 66


def test_neighbours_become_one_gap_and_the_end_comes_back():
    space = Space()
    blocks = [space.take("a", 10) for _ in range(4)]
    space.free(blocks[0], blocks[2], blocks[1])
    assert space.take("a", 30).address == 0
    space.free(blocks[3])
    assert space.end == 30
    assert space.peak == {"a": 40}


def test_what_is_not_written_takes_nothing():
    space = Space()
    bucket = space.take("b", 100, written=0)
    above = space.take("a", 10)
    assert (space.resident, space.live["b"]) == (10, 0)
    space.write(bucket, 30)
    assert space.resident == 40
    space.free(bucket)
    space.take("a", 50)
    assert space.resident == 60
    assert above.address == 100


def test_blocks_never_overlap():
    space, rng = Space(), random.Random(0)
    held: list[Block] = []
    for _ in range(600):
        if held and rng.random() < 0.5:
            space.free(held.pop(rng.randrange(len(held))))
        else:
            held.append(space.take("a", rng.randint(1, 50), rng.randint(0, 50)))
        places = sorted((block.address, block.address + block.size) for block in held)
        assert all(before[1] <= after[0] for before, after in pairwise(places))
        assert sum(space.live.values()) <= space.resident <= max([space.end, space._written])


def played(zero: Zero, ranks: int = 1, micro_batches: int = 1, precision: str = "fp32", saved=1e6, **options) -> Space:
    config = DecoderOnlyConfig(vocab_size=100, hidden_size=64, num_hidden_layers=4, num_attention_heads=4)
    workload = Workload(config, 0, 16, precision, 16 * ranks * micro_batches, **options)
    cost = Cost(
        saved=saved, entry=saved / 10, forward=saved / 5, backward=saved / 3, forward_traffic=0, backward_traffic=0
    )
    rehearsal = Rehearsal(
        *(workload, zero, ranks, [cost], Loss(1e4, 4.0 * workload.table, 5e4, 0.0, 1e4)),
        checkpointing=False,
        micro_batches=micro_batches,
        gathered=workload.parameters,
    )
    return rehearsal.play()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_after_a_step_only_states_are_left(stage, precision, on_cpu):
    config = DecoderOnlyConfig(vocab_size=100, hidden_size=64, num_hidden_layers=4, num_attention_heads=4)
    count = Workload(config, 0, 16, precision, 16).parameters
    space = played(Zero(stage, bucket=50_000), 2, 2, precision, on_cpu=on_cpu)
    own = count if stage == 0 else count / 2
    assert [space.live[part] for part in ("activations", "logits", "live")] == pytest.approx([0, 0, 0], abs=1)
    assert space.live["optimizer"] == pytest.approx(8 * own)
    # Stage 3 keeps a bucket and fp32 gradients, stage 1 in bf16 fp32 gradients of all parameters.
    kept = {(3, "fp32"): 4 * own, (3, "bf16"): 4 * own, (1, "bf16"): 4 * count}.get((stage, precision), 0)
    assert space.live["gradients"] == pytest.approx(kept, abs=1)
    assert (space.live["buffers"] > 1) == (stage == 3)


def test_deepspeed_takes_more_than_torch_and_accumulation_more_than_one_batch():
    plain, wrapped = (sum(played(Zero(0, plain=plain), saved=1e3).peak.values()) for plain in (True, False))
    assert plain < wrapped
    once, twice = (sum(played(Zero(0, plain=True), micro_batches=count).peak.values()) for count in (1, 2))
    assert once < twice
