"""Gaps are found again, and what was never written takes nothing; a step played through against another order."""

import random
from itertools import pairwise

import pytest

from bmscale.experiment import OptimizerConfig
from bmscale.model.config import DecoderOnlyConfig
from bmscale.model.sizes import count_blocks
from bmscale.model.tasks import TASKS
from bmscale.planning.activations import Cost
from bmscale.planning.rehearsal import Loss, Rehearsal
from bmscale.planning.space import PAGE, Block, Space
from bmscale.planning.workload import Workload
from bmscale.planning.zero import Zero
from bmscale.training.optimizer import parameter_groups


def test_a_gap_takes_what_left_it_and_what_is_smaller():
    space = Space()
    first, second, third = (space.take("a", size * PAGE) for size in (10, 20, 30))
    space.free(second)
    assert space.take("a", 15 * PAGE).address == second.address
    assert space.take("a", 6 * PAGE).address == 60 * PAGE  # the gap has 5 left
    space.free(first)
    assert space.take("a", 10 * PAGE).address == 0
    space.free(third)
    assert space.resident == 66 * PAGE


def test_neighbours_become_one_gap_and_the_end_comes_back():
    space = Space()
    blocks = [space.take("a", 9.7 * PAGE) for _ in range(4)]  # 10 pages each
    space.free(blocks[0], blocks[2], blocks[1])
    assert space.take("a", 30 * PAGE).address == 0
    space.free(blocks[3])
    assert space.end == 30 * PAGE
    assert space.peak == pytest.approx({"a": 39.7 * PAGE})


def test_what_is_not_written_takes_nothing():
    space = Space()
    bucket = space.take("b", 100 * PAGE, written=0)
    above = space.take("a", 10 * PAGE)
    assert (space.resident, space.live["b"]) == (10 * PAGE, 0)
    space.write(bucket, 30 * PAGE)
    assert space.resident == 40 * PAGE
    space.free(bucket)
    space.take("a", 50 * PAGE)
    assert space.resident == 60 * PAGE
    assert above.address == 100 * PAGE


def test_blocks_never_overlap():
    space, rng = Space(), random.Random(0)
    held: list[Block] = []
    for _ in range(600):
        if held and rng.random() < 0.5:
            space.free(held.pop(rng.randrange(len(held))))
        else:
            held.append(space.take("a", rng.uniform(0, 50) * PAGE if rng.random() < 0.9 else 0, rng.randint(0, 50)))
        places = sorted((block.address, block.address + block.size) for block in held if block.size)
        assert all(before[1] <= after[0] for before, after in pairwise(places))
        assert all(start + size < after for (start, size), (after, _) in pairwise(space._gaps))  # none touches the next
        assert sum(space.live.values()) <= space.resident <= max(space.end, space._written)


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


def test_a_second_bucket_costs_one_more_on_a_gpu():
    small, large = (
        sum(played(Zero(2, bucket=50_000, overlap=overlap), ranks=2, saved=1.0).peak.values())
        for overlap in (False, True)
    )
    assert large - small == pytest.approx(4 * 50_000)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_weights_that_lie_elsewhere_are_whole_on_the_device_for_a_while(on_cpu):
    """Also of one rank; on CPU they lie where they are worked on."""
    space = played(Zero(3, "cpu", "cpu", bucket=50_000), saved=1.0, on_cpu=on_cpu)
    config = DecoderOnlyConfig(vocab_size=100, hidden_size=64, num_hidden_layers=4, num_attention_heads=4)
    count = Workload(config, 0, 16, "fp32", 16).parameters
    assert space.peak.get("live", 0) == pytest.approx(0 if on_cpu else 4 * count)


def test_blocks_and_groups_are_those_of_the_model():
    """count_blocks and Workload.groups against the modules themselves and what the optimizer makes of them."""
    task = TASKS["translation"]
    config = task.configure(**{**task.presets["vanilla"], **task.sizes["tiny"], "vocab_size": 300})
    model = task.model(config)
    blocks = count_blocks(config)
    stacks = (model.model.encoder.layers, model.model.decoder.layers)
    for (depth, size), layers in zip(blocks, stacks, strict=True):
        assert depth == len(layers)
        assert {size} == {sum(parameter.numel() for parameter in layer.parameters()) for layer in layers}
    decayed, plain = (
        sum(parameter.numel() for parameter in group["params"]) for group in parameter_groups(model, OptimizerConfig())
    )
    matrices, tables = Workload(config, 16, 16, "fp32", 16).groups
    assert matrices + tables == decayed + plain
    assert tables <= plain <= 1.02 * tables + 0.02 * matrices  # norms and biases are few
