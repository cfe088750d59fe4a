"""Logits against the model once more, as plain functions over a state dict: slow, written out, and independent."""

import math
from typing import Any

import pytest
import torch

from bmscale.model import EncoderDecoderConfig, EncoderDecoderForConditionalGeneration
from bmscale.model.config import DECODER_PRESETS, ENCODER_PRESETS, PRESETS
from bmscale.model.init import initialise
from bmscale.model.tasks import TASKS

V = 40
VARIANTS = {
    **PRESETS,
    "gqa": {"num_key_value_heads": 2, "head_dim": 10, "rope_theta": 5e5},
    "mqa-bias": {"num_key_value_heads": 1, "bias": True, "feed_forward": "gelu"},
    "qk_norm": {"qk_norm": True},
    "sandwich-layer_norm-free": {"norm": "layer_norm", "sandwich_norm": True, "tie_word_embeddings": False},
    "scaled": {"embedding_scale": 3.0, "attention_scale": 0.5, "residual_scale": 0.7, "logit_scale": 1.5},
}


def build(name="modern", *, attention="sdpa", dtype=torch.float32, **options):
    """A tiny model with every parameter, norms and biases included, away from its trivial first value."""
    shape = {"vocab_size": V, "hidden_size": 32, "num_attention_heads": 4, "num_encoder_layers": 2}
    config = EncoderDecoderConfig(**{**shape, "num_decoder_layers": 2, **VARIANTS[name], **options})
    model = EncoderDecoderForConditionalGeneration._from_config(config, attn_implementation=attention)
    return shaken(model).to(dtype)


def shaken(model):
    initialise(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(2)
    source = torch.randint(4, V, (3, 9), generator=generator)
    source[1, 6:], source[2, 2:] = 1, 1
    target = torch.randint(4, V, (3, 7), generator=generator)
    target[:, 0] = 2
    return source, source != 1, target


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_those_of_the_plain_implementation(name, attention, pairs):
    model = build(name, attention=attention)
    source, real, target = pairs
    with torch.no_grad():
        got = model(input_ids=source, attention_mask=real, decoder_input_ids=target).logits
        expected = plain_logits(model.state_dict(), model.config, source, real, target)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert float(got.std()) > 0.1


ONE_STACK = {
    **DECODER_PRESETS,
    **ENCODER_PRESETS,
    "gqa": {"num_key_value_heads": 2, "head_dim": 10, "tie_word_embeddings": False},
    "vanilla": PRESETS["vanilla"],
    "sandwich-scaled": {"sandwich_norm": True, **VARIANTS["scaled"]},
}


@pytest.mark.parametrize("name", ONE_STACK)
@pytest.mark.parametrize("task", ["language_model", "masked_lm", "classification"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_of_one_stack(name, task, attention, pairs):
    """Right padding is hidden by the order from a decoder, and by the mask from an encoder."""
    model = one_stack(task, name, attention)
    ids, real, _ = pairs
    length = ids.shape[1]
    seen = real[:, None, None, :]
    if task == "language_model":
        seen = seen & past(length)
    with torch.no_grad():
        got = model(input_ids=ids, attention_mask=real).logits
        expected = plain_one_stack(model, task, ids, seen, torch.arange(length).expand(3, -1), real)
    if task != "classification":  # what stands in a padded slot means nothing
        got, expected = got[real], expected[real]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert float(got.std()) > 0.05


@pytest.mark.parametrize("name", ["llama", "qwen3", "eurobert", "vanilla"])
@pytest.mark.parametrize("task", ["language_model", "masked_lm"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_of_packed_rows(name, task, attention):
    model = one_stack(task, name, attention)
    segments = torch.tensor([[1, 1, 1, 2, 3, 3, 3, 3, 0], [7, 7, 7, 7, 7, 9, 9, 9, 9]])
    position = torch.tensor([[0, 1, 2, 0, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 0, 1, 2, 3]])
    ids = torch.randint(4, V, (2, 9), generator=torch.Generator().manual_seed(3))
    seen = torch.tensor([[[[row[q] == row[k] for k in range(9)] for q in range(9)]] for row in segments.tolist()])
    if task == "language_model":
        seen = seen & past(9)
    with torch.no_grad():
        got = model(input_ids=ids, segment_ids=segments).logits
        expected = plain_one_stack(model, task, ids, seen, position, segments != 0)
    torch.testing.assert_close(got[segments != 0], expected[segments != 0], atol=1e-5, rtol=1e-5)


def one_stack(task, name, attention):
    shape = {"vocab_size": V, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = TASKS[task].configure(**{**shape, **ONE_STACK[name]}, num_labels=5)
    model_class: Any = TASKS[task].model
    return shaken(model_class._from_config(config, attn_implementation=attention))


def plain_one_stack(model, task, ids, seen, position, real):
    weights = model.state_dict()
    x = stack(weights, model.config, "model.", 2, ids, seen, position)
    if task != "classification":
        return torch.einsum("btd,vd->btv", x, weights["lm_head.weight"]) * model.config.logit_scale
    pooled = torch.stack([states[is_real].mean(0) for states, is_real in zip(x, real, strict=True)])
    hidden = pooled @ weights["dense.weight"].T + weights["dense.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return hidden @ weights["classifier.weight"].T + weights["classifier.bias"]


Weights = dict[str, torch.Tensor]


def plain_logits(
    weights: Weights, config: Any, source: torch.Tensor, source_real: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """Source (B, S), which of it is real (B, S), target inputs (B, T) -> (B, T, V)."""
    source_seen = source_real[:, None, None, :]
    position = torch.arange(max(source.shape[1], target.shape[1]))
    states = stack(
        weights, config, "model.encoder.", config.num_encoder_layers, source, source_seen, position[: source.shape[1]]
    )
    position = position[: target.shape[1]]
    seen = past(len(position))
    x = stack(weights, config, "model.decoder.", config.num_decoder_layers, target, seen, position, states, source_seen)
    return torch.einsum("btd,vd->btv", x, weights["lm_head.weight"]) * config.logit_scale


def past(length):
    return torch.tensor([[i >= j for j in range(length)] for i in range(length)])[None, None]


def stack(weights, config, prefix, depth, ids, seen, position, states=None, states_seen=None):
    x = weights[prefix + "embed.tokens.weight"][ids] * config.embedding_scale
    if config.scale_embeddings:
        x = x * math.sqrt(config.hidden_size)
    if config.positions == "sinusoid":
        x = x + sinusoid_table(ids.shape[1], config.hidden_size).to(x)[position]
    for layer in range(depth):
        at = f"{prefix}layers.{layer}."
        h = norm(x, weights, config, at + "self_attention_norm")
        h = attention(h, h, weights, config, at + "self_attention.", seen, position)
        x = residual(x, h, weights, config, at + "self_attention")
        if states is not None:
            h = norm(x, weights, config, at + "cross_attention_norm")
            h = attention(h, states, weights, config, at + "cross_attention.", states_seen, None)
            x = residual(x, h, weights, config, at + "cross_attention")
        h = feed_forward(norm(x, weights, config, at + "feed_forward_norm"), weights, config, at + "feed_forward.")
        x = residual(x, h, weights, config, at + "feed_forward")
    return norm(x, weights, config, prefix + "norm")


def residual(x, branch, weights, config, name):
    if config.sandwich_norm:
        branch = norm(branch, weights, config, name + "_post_norm")
    return x + config.residual_scale * branch


def norm(x, weights, config, name):
    if config.norm == "layer_norm":
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + config.norm_eps)
        return scaled * weights[name + ".weight"] + weights[name + ".bias"]
    return rms(x, weights[name + ".weight"], config)


def rms(x, weight, config):
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + config.norm_eps) * weight


def project(x, weights, name):
    y = torch.einsum("bsd,ed->bse", x, weights[name + ".weight"])
    return y + weights[name + ".bias"] if name + ".bias" in weights else y


def attention(x, other, weights, config, name, seen, position):
    """`position` is None where another stack is looked at."""
    is_self = position is not None
    query, key, value = (
        project(y, weights, f"{name}{letter}_proj").unflatten(-1, (-1, config.head_dim))
        for y, letter in ((x, "q"), (other, "k"), (other, "v"))
    )
    if is_self and config.qk_norm:
        query, key = (
            rms(query, weights[name + "q_norm.weight"], config),
            rms(key, weights[name + "k_norm.weight"], config),
        )
    if is_self and config.positions == "rope":
        query, key = rope(query, config, position), rope(key, config, position)
    shared_by = config.num_attention_heads // config.num_key_value_heads
    heads = []
    for head in range(config.num_attention_heads):
        score = query[:, :, head] @ key[:, :, head // shared_by].transpose(1, 2)
        score = score * config.attention_scale / math.sqrt(config.head_dim)
        score = score.masked_fill(~seen[:, 0], -math.inf)
        heads.append(torch.softmax(score, -1) @ value[:, :, head // shared_by])
    return project(torch.cat(heads, -1), weights, name + "o_proj")


def rope(x, config, position):
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = (position[..., None].double() * frequency)[..., None, :].to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def feed_forward(x, weights, config, name):
    up = project(x, weights, name + "up_proj")
    if config.feed_forward == "relu":
        h = up.clamp(min=0)
    elif config.feed_forward == "gelu":
        h = up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))
    else:
        gate = project(x, weights, name + "gate_proj")
        if config.feed_forward == "swiglu":
            gate = gate * torch.sigmoid(gate)
        else:
            gate = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        h = gate * up
    return project(h, weights, name + "down_proj")


def sinusoid_table(length, width):
    half = width // 2
    rows = [[(t + 2) * 10_000 ** (-k / (half - 1)) for k in range(half)] for t in range(length)]
    angle = torch.tensor(rows, dtype=torch.float64)
    return torch.cat([angle.sin(), angle.cos()], -1)
