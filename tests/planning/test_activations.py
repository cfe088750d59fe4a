"""What a trace without memory counts is what real tensors take."""

import pytest
import torch

from bmscale.model.config import DecoderOnlyConfig, EncoderDecoderConfig, TransformerConfig
from bmscale.model.layers import Layer
from bmscale.model.positions import rotation
from bmscale.planning.activations import Cost, Shape, measure

DECODER = DecoderOnlyConfig(vocab_size=100, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
GROUPED = DecoderOnlyConfig(
    vocab_size=100, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, qk_norm=True
)
PLAIN = DecoderOnlyConfig(
    vocab_size=100, hidden_size=32, num_attention_heads=4, norm="layer_norm", feed_forward="gelu", positions="sinusoid"
)
PAIRS = EncoderDecoderConfig(vocab_size=100, hidden_size=32, num_attention_heads=4)


def law(config: TransformerConfig, shape: Shape, **options) -> Cost:
    given = {"precision": "fp32", "autocast": False, "packed": False, "on_cpu": True, **options}
    return measure(config, shape, **given)[-1].law(shape)


def really_saved(config: TransformerConfig, shape: Shape, dtype: torch.dtype) -> int:
    """Bytes of storages that a block on real tensors keeps, its input included, parameters and tables not."""
    own = type(config)(**{**config.to_dict(), "attn_implementation": "sdpa"})
    layer = Layer(own, 0, depth=1, is_causal=True, reads_source=shape.source > 0).to(dtype)
    x = torch.randn(shape.rows, shape.target, config.hidden_size, dtype=dtype, requires_grad=True)
    tables = rotation(config, torch.arange(shape.target), dtype) if config.positions == "rope" else None
    source = mask = None
    if shape.source:
        source = torch.randn(shape.rows, shape.source, config.hidden_size, dtype=dtype, requires_grad=True)
        mask = torch.ones(shape.rows, 1, shape.target, shape.source, dtype=torch.bool)
    outside = [tensor for tensor in (*layer.parameters(), *(tables or ()), source, mask) if tensor is not None]
    apart = {tensor.untyped_storage().data_ptr() for tensor in outside}
    kept: dict[int, int] = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in apart:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x, tables, None, None, source, mask)
    assert y.requires_grad  # the graph lives, and with it what it keeps, so that no address came twice
    return sum(kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["decoder", "grouped", "plain", "pairs"])
def test_bytes_for_the_backward_pass_are_those_of_real_tensors(name, precision):
    config = {"decoder": DECODER, "grouped": GROUPED, "plain": PLAIN, "pairs": PAIRS}[name]
    shape = Shape(3, 24 if name == "pairs" else 0, 16)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    assert law(config, shape, precision=precision).saved == pytest.approx(really_saved(config, shape, dtype), rel=1e-6)


def test_the_law_holds_for_other_rows():
    of_one = measure(DECODER, Shape(1, 0, 64), precision="bf16", autocast=False, packed=False, on_cpu=True)[0].law
    direct = law(DECODER, Shape(7, 0, 64), precision="bf16")
    for name in ("saved", "entry", "forward_traffic", "backward_traffic"):
        assert getattr(of_one(Shape(7, 0, 64)), name) == pytest.approx(getattr(direct, name), rel=0.01), name


def test_an_accelerator_keeps_no_scores_unless_a_mask_is_given():
    short, long = (law(DECODER, Shape(2, 0, length), precision="bf16", on_cpu=False).saved for length in (256, 512))
    assert long == pytest.approx(2 * short, rel=1e-6)
    packed = law(DECODER, Shape(2, 0, 512), precision="bf16", on_cpu=False, packed=True).saved
    assert packed == pytest.approx(long + 2 * 2 * 512 * 512)  # a bias of T x T in bf16 for each row


def test_autocast_keeps_casts_of_the_weights():
    plain = law(DECODER, Shape(1, 0, 16), precision="bf16", on_cpu=False)
    casting = law(DECODER, Shape(1, 0, 16), precision="bf16", on_cpu=False, autocast=True)
    weights = 2 * 4 * 32 * 32 + 2 * 3 * 32 * DECODER.intermediate_size
    assert casting.saved - plain.saved >= weights


def test_a_block_of_a_trillion_parameters_takes_no_memory():
    huge = DecoderOnlyConfig(vocab_size=100, hidden_size=25_600, num_hidden_layers=128, num_attention_heads=200)
    cost = law(huge, Shape(1, 0, 2048), precision="bf16", on_cpu=False)
    assert cost.saved > 1e9  # which would take seconds and gigabytes if it were real
