"""Predicted speeds against published ones, all with the same assumed efficiencies, and how they scale."""

from dataclasses import dataclass, replace

import pytest

from bmscale.errors import BadInput
from bmscale.model.config import DecoderOnlyConfig, TransformerConfig
from bmscale.planning.hardware import Accelerator, Machine, find_accelerator
from bmscale.planning.throughput import predict, scaling
from bmscale.planning.workload import Workload
from bmscale.planning.zero import Zero


def llama_8b() -> TransformerConfig:
    return DecoderOnlyConfig(
        vocab_size=128_256,
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14_336,
        tie_word_embeddings=False,
    )


def mpt(width: int, heads: int, layers: int, vocabulary: int = 50_368) -> TransformerConfig:
    return DecoderOnlyConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        feed_forward="gelu",
        norm="layer_norm",
    )


@dataclass(frozen=True)
class Row:
    """One published measurement."""

    config: TransformerConfig
    length: int
    rows: int
    accumulation: int
    card: Accelerator
    gpus: int
    nodes: int
    recomputed: float
    """Share of the blocks' forward pass that is computed twice."""
    zero: Zero
    published: float
    """Tokens/s a card."""


H100, H200, A100 = (find_accelerator(name) for name in ("h100", "h200", "a100-80"))
# "96GB HBM2e with 2.4 TB/sec", "the default 500W power limit"
TITAN = replace(H100.limited_to(500), bandwidth=2.4e12)
FULL = Zero(3, overlap=True)
MEGATRON = mpt(2304, 24, 24, 131_072)

PUBLISHED = {
    # torchtitan benchmarks/llama3_h100_202412_torchtitan.md, tables 1 and 3; selective recomputation of every other
    # product.
    "torchtitan 8B, 8 cards": Row(llama_8b(), 8192, 2, 1, TITAN, 8, 1, 0.5, FULL, 5762),
    "torchtitan 8B, 8 cards, compiled": Row(llama_8b(), 8192, 2, 1, TITAN, 8, 1, 0.5, FULL, 6667),
    "torchtitan 8B, 128 cards, compiled": Row(llama_8b(), 8192, 2, 1, TITAN, 8, 16, 0.5, FULL, 6514),
    # llm-foundry scripts/train/benchmarking/README.md
    "llm-foundry 1B, 8 cards": Row(mpt(2048, 16, 24), 2048, 14, 1, H100, 8, 1, 0, FULL, 45_455),
    "llm-foundry 1B, 64 cards": Row(mpt(2048, 16, 24), 2048, 20, 1, H100, 8, 8, 0, FULL, 44_402),
    "llm-foundry 760M, 8 cards": Row(mpt(1536, 12, 24), 2048, 24, 2, H100, 8, 1, 0, FULL, 63_147),
    "llm-foundry 760M, 16 cards": Row(mpt(1536, 12, 24), 2048, 24, 1, H100, 8, 2, 0, FULL, 68_551),
    "llm-foundry 7B, 8 cards": Row(mpt(4096, 32, 32), 2048, 6, 1, H100, 8, 1, 0, FULL, 10_643),
    "llm-foundry 1B, 8 A100": Row(mpt(2048, 16, 24), 2048, 8, 4, A100, 8, 1, 0, FULL, 20_513),
    # KempnerForge benchmarks/mfu_scaling/mfu_scaling_2026-04-05.md
    "KempnerForge 7B, 1 card": Row(llama_8b(), 4096, 4, 2, H200, 1, 1, 1, Zero(2), 10_471),
    "KempnerForge 7B, 4 cards": Row(llama_8b(), 4096, 4, 2, H200, 4, 1, 1, FULL, 38_983 / 4),
    # Megatron-LM images/model_table.png: 408.8 TFLOP/s, from which the tokens follow; its micro-batch is not stated.
    "Megatron 1.7B, 48 cards": Row(
        *(MEGATRON, 4096, 4, 1, H100, 8, 6, 0, Zero(1, overlap=True)),
        408.8e12 * 4096 / Workload(MEGATRON, 0, 4096, "bf16", 4096).flops(1),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_within_a_quarter_of_what_was_published(name):
    row = PUBLISHED[name]
    machine = Machine.of(row.card, row.gpus, row.nodes)
    tokens = row.length * row.rows * row.accumulation * machine.world_size
    workload = Workload(row.config, 0, row.length, "bf16", tokens)
    without, again = (
        predict(workload, row.zero, machine, row.rows, checkpointing=checkpointing) for checkpointing in (False, True)
    )
    seconds = without.seconds + row.recomputed * (again.seconds - without.seconds)
    assert tokens / seconds / machine.world_size == pytest.approx(row.published, rel=0.25)


def small(tokens: int = 8 * 1024 * 64) -> Workload:
    return Workload(mpt(1024, 8, 12), 0, 1024, "bf16", tokens)


def test_a_power_limit_slows_by_the_cube_root():
    assert H100.limited_to(700) == H100
    assert H100.limited_to(350).bf16 == pytest.approx(H100.bf16 / 2 ** (1 / 3))


def test_weak_scaling_grows_with_the_cards_and_loses_to_the_network():
    points = scaling(small(), FULL, Machine.of(H100), 8, checkpointing=False, kind="weak")
    assert [point.gpus for point in points] == [1, 8, 16, 32, 64, 128, 256, 512, 1024]
    rates = [point.step.tokens_per_second for point in points]
    assert rates == sorted(rates)
    assert points[0].efficiency == 1.0
    assert 0.5 < points[-1].efficiency < points[1].efficiency < 1.0
    assert len({point.step.micro_batches for point in points}) == 1


def test_strong_scaling_ends_where_ranks_would_have_no_row():
    points = scaling(small(1024 * 64), FULL, Machine.of(H100), 8, checkpointing=False, kind="strong")
    assert [point.gpus for point in points] == [1, 8, 16, 32, 64]
    assert points[-1].efficiency < points[1].efficiency
    assert {point.step.tokens for point in points} == {1024 * 64}


def test_stage_2_reduces_every_micro_batch_and_stage_1_once():
    def waits(zero: Zero, rows: int) -> float:
        return predict(small(), zero, Machine.of(H100), rows, checkpointing=False).communication

    assert waits(Zero(1), 8) == pytest.approx(waits(Zero(1), 64), rel=1e-6)
    assert waits(Zero(2), 8) > 2 * waits(Zero(2), 64)
    assert waits(Zero(2, overlap=True), 8) < waits(Zero(2), 8)


def test_offload_costs_time():
    def seconds(zero: Zero) -> float:
        return predict(small(), zero, Machine.of(H100), 8, checkpointing=False).seconds

    on_disk = Zero(3, "nvme", "nvme", reuse=0)
    assert seconds(Zero(3)) < seconds(Zero(3, "cpu")) < seconds(Zero(3, "cpu", "cpu")) < seconds(on_disk)


def test_a_step_that_cannot_be_split_names_what_can():
    with pytest.raises(BadInput, match=r"holds 4 rows .* nearest valid choices are 4 ranks, or .*=8192"):
        predict(small(4 * 1024), FULL, Machine.of(H100), 1, checkpointing=False)
    with pytest.raises(BadInput, match=r"must fill nodes of 8; got 12. The nearest is 8"):
        scaling(small(), FULL, Machine.of(H100), 8, checkpointing=False, kind="weak", counts=[12])
