"""Memory: what was published to fit fits, what was published not to does not, and parts go the way they must."""

from dataclasses import replace

import pytest
import torch

from bmscale.model import loss
from bmscale.model.config import DecoderOnlyConfig, TransformerConfig
from bmscale.planning import memory
from bmscale.planning.activations import _Live
from bmscale.planning.hardware import CALIBRATION, GIB, Machine, find_accelerator
from bmscale.planning.memory import estimate
from bmscale.planning.plan import assess, make
from bmscale.planning.workload import Workload
from bmscale.planning.zero import NVME_SUB_GROUP, Zero


def gpt(width: int, layers: int, vocabulary: int = 50_304) -> TransformerConfig:
    return DecoderOnlyConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        feed_forward="gelu",
        norm="layer_norm",
    )


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


def work(config: TransformerConfig, length: int, rows_per_step: int, **options) -> Workload:
    return Workload(config, 0, length, "bf16", length * rows_per_step, **options)


ONE_V100 = Machine.of(find_accelerator("v100"), 1, ram_gib=1536)


@pytest.mark.parametrize(("width", "layers", "billions", "fits"), [(5120, 40, 13, True), (6144, 44, 20, False)])
def test_zero_offload_on_one_v100(width, layers, billions, fits):
    """Ren 2021 (ZeRO-Offload): 13B on one V100 of 32 GB, the weights being on the card."""
    workload = work(gpt(width, layers), 1024, 16)
    assert workload.parameters / 1e9 == pytest.approx(billions, rel=0.05)
    assert (assess(workload, Zero(2, "cpu"), ONE_V100, 1, checkpointing=True).lacks is None) == fits


def test_zero_3_offload_of_40b_on_one_v100_with_1_5_tb():
    """DeepSpeed's post of 2021-03-08; less RAM is not enough."""
    workload = work(gpt(8192, 50), 1024, 16)
    assert workload.parameters > 40e9
    zero = Zero(3, "cpu", "cpu", reuse=0)
    assert assess(workload, zero, ONE_V100, 1, checkpointing=True).lacks is None
    poor = assess(workload, zero, replace(ONE_V100, host_memory=512 * GIB), 1, checkpointing=True).lacks
    assert poor is not None
    assert "RAM" in poor


def test_zero_infinity_of_1t_on_512_v100():
    """Rajbhandari 2021: 32 DGX-2 nodes; a quarter of the disks is not enough."""
    workload = work(gpt(25_600, 128), 1024, 512)
    assert workload.parameters > 1e12
    machine = Machine.of(find_accelerator("v100"), 16, 32)
    zero = Zero(3, "nvme", "nvme", reuse=0, sub_group=NVME_SUB_GROUP)
    assert assess(workload, zero, machine, 1, checkpointing=True).lacks is None
    assert assess(workload, Zero(2, "cpu"), machine, 1, checkpointing=True).lacks is not None


def test_llama_8b_of_8192_tokens_on_8_h100():
    workload, machine = work(llama_8b(), 8192, 16), Machine.of(find_accelerator("h100"))
    assert assess(workload, Zero(3, overlap=True), machine, 1, checkpointing=True).lacks is None
    assert assess(workload, Zero(1), machine, 1, checkpointing=False).lacks is not None
    assert make(workload, machine).chosen is not None


def total(zero: Zero, gpus: int, rows: int = 1, *, checkpointing: bool = False) -> float:
    machine = Machine.of(find_accelerator("h100"), gpus)
    workload = work(gpt(2048, 8), 1024, 64)
    return estimate(workload, zero, machine, rows, checkpointing=checkpointing).accelerator.total


def test_states_follow_the_stage():
    machine, workload = Machine.of(find_accelerator("h100"), 8), work(gpt(2048, 8), 1024, 64)
    count = workload.parameters
    for stage, expected in {
        0: (4, 0, 8),
        1: (2, 4 / 8, 8 / 8),
        2: (2, 4 / 8, 8 / 8),
        3: (2 / 8, 4 / 8, 8 / 8),
    }.items():
        parts = estimate(workload, Zero(stage), machine, 1, checkpointing=True).accelerator
        found = (parts.parameters, parts.masters, parts.optimizer)
        assert found == pytest.approx([each * count for each in expected]), stage
    kept = replace(workload, keeps_average=True)
    assert estimate(kept, Zero(0), machine, 1, checkpointing=False).accelerator.optimizer == 12 * count


def test_more_sharding_less_memory():
    for stage in (1, 2, 3):
        assert total(Zero(stage), 8) < total(Zero(stage), 2)
    assert total(Zero(2), 8) < total(Zero(1), 8) < total(Zero(0), 8)
    assert total(Zero(2, "cpu"), 8) < total(Zero(2), 8)
    assert total(Zero(3, reuse=0), 8) < total(Zero(3), 8)
    assert total(Zero(2), 8, rows=8, checkpointing=True) < total(Zero(2), 8, rows=8)


def test_ranks_on_cpu_share_the_memory_of_the_host():
    machine = Machine.of(find_accelerator("cpu"), 2, ram_gib=8)
    assert machine.accelerator.memory == 4 * GIB
    workload = Workload(gpt(256, 4, 1000), 0, 128, "fp32", 128 * 32, on_cpu=True)
    memory = estimate(workload, Zero(2), machine, 4, checkpointing=False)
    assert memory.host >= memory.accelerator.total > CALIBRATION.interpreter + 16 * workload.parameters / 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rows", [1, 4])
def test_the_loss_takes_what_it_really_takes(rows, precision, monkeypatch):
    """The real loss on real tensors, its live bytes counted, in one chunk and in several."""
    vocabulary, width, length = 3000, 32, 100
    monkeypatch.setattr(loss, "_LOGITS_PER_CHUNK", 150 * vocabulary)
    monkeypatch.setattr(memory, "_LOGITS_PER_CHUNK", 150 * vocabulary)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    hidden = torch.randn(rows * length, width).to(dtype).requires_grad_()
    head = torch.randn(vocabulary, width).to(dtype).requires_grad_()
    labels = torch.randint(vocabulary, (rows * length,))
    with _Live([hidden, head, labels]) as live:
        sums = loss.linear_cross_entropy(hidden, head, labels, 0.1)
        forward = live.peak
        live.begin()
        sums.loss.backward()
    config = DecoderOnlyConfig(vocab_size=vocabulary, hidden_size=width, num_attention_heads=2)
    workload = Workload(config, 0, length, precision, length * rows, on_cpu=True)
    predicted = memory._loss(workload, rows)
    assert forward == pytest.approx(predicted.states + predicted.head + predicted.chunk, rel=0.05)
    assert live.peak == pytest.approx(2 * (predicted.states + predicted.head) + predicted.cast, rel=0.05)
