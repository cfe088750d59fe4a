"""bf16 attention of matrix products against the same attention in fp64, and beside PyTorch's fused kernel."""

import pytest
import torch
from torch.nn import functional as F

from bmscale.model import DecoderOnlyConfig, DecoderOnlyForCausalLM, cpu_attention

B, H, T, S, K = 3, 4, 17, 23, 16


def tensors(groups=H, queries=T, keys=S):
    generator = torch.Generator().manual_seed(1)
    shapes = [(B, queries, H, K), (B, keys, groups, K), (B, keys, groups, K), (B, queries, H, K)]
    made = [torch.randn(shape, generator=generator).bfloat16().transpose(1, 2) for shape in shapes]
    return [tensor.requires_grad_() for tensor in made[:3]], made[3]


def exact(query, key, value, mask, scale):
    return F.scaled_dot_product_attention(
        query.double(), key.double(), value.double(), mask, scale=scale, enable_gqa=True
    )


def distance(got, wanted):
    return float((got.detach().double() - wanted.detach().double()).norm() / wanted.detach().double().norm())


MASKS = {
    "none": (None, False),
    "causal": (None, True),
    "padding": (torch.arange(S) < torch.tensor([S, 5, 11])[:, None, None, None], False),
    "blocks": (torch.rand(B, 1, T, S, generator=torch.Generator().manual_seed(2)) < 0.5, False),
}


@pytest.mark.parametrize("groups", [H, 2, 1])
@pytest.mark.parametrize("kind", MASKS)
def test_values_and_gradients_are_as_near_as_the_fused_kernels(kind, groups):
    mask, is_causal = MASKS[kind]
    keys = T if is_causal else S
    (query, key, value), upstream = tensors(groups, keys=keys)
    seen = torch.ones(T, T, dtype=torch.bool).tril() if is_causal else mask
    if mask is not None:
        mask = mask.expand(B, 1, T, S)
    got = cpu_attention.attention(query, key, value, mask, is_causal=is_causal, scale=0.2).transpose(1, 2)
    wanted = exact(query, key, value, seen, 0.2)
    fused = F.scaled_dot_product_attention(query, key, value, seen, scale=0.2, enable_gqa=True)
    assert got.dtype == torch.bfloat16
    assert distance(got, wanted) < max(1.5 * distance(fused, wanted), 4e-3)
    parts = (query, key, value)
    gradients = [torch.autograd.grad(out, parts, upstream.to(out.dtype)) for out in (got, fused, wanted)]
    for mine, kernels, truth in zip(*gradients, strict=True):
        assert distance(mine, truth) < max(1.5 * distance(kernels, truth), 6e-3)


def test_a_query_that_sees_nothing_gives_numbers():
    (query, key, value), _ = tensors()
    mask = torch.zeros(B, 1, T, S, dtype=torch.bool)
    assert cpu_attention.attention(query, key, value, mask, is_causal=False, scale=1.0).isfinite().all()


def test_it_is_taken_for_training_in_bf16_on_cpu_only():
    (query, key, _), _ = tensors()
    assert cpu_attention.pays(query, key, 0.0)
    assert not cpu_attention.pays(query, key, 0.1)
    assert not cpu_attention.pays(query.float(), key.float(), 0.0)
    assert not cpu_attention.pays(query.to("meta"), key.to("meta"), 0.0)
    with torch.no_grad():
        assert not cpu_attention.pays(query, key, 0.0)
    long = torch.empty(2, 16, 1025, 1, dtype=torch.bfloat16)
    assert not cpu_attention.pays(long, long, 0.0)


def test_a_model_trains_as_with_the_fused_kernel(monkeypatch):
    torch.manual_seed(3)
    config = DecoderOnlyConfig(
        vocab_size=50, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2
    )
    model = DecoderOnlyForCausalLM(config).bfloat16().train()
    pieces = torch.randint(5, 50, (4, 12))
    segments = torch.tensor([[1] * 5 + [2] * 7]).expand(4, -1)

    def loss_and_gradient():
        model.zero_grad()
        loss = model(pieces, labels=pieces, segment_ids=segments).loss
        loss.backward()
        return float(loss.detach()), torch.cat([weight.grad.flatten() for weight in model.parameters()])

    called, attention = [], cpu_attention.attention

    def counted(*arguments, **options):
        called.append(1)
        return attention(*arguments, **options)

    monkeypatch.setattr(cpu_attention, "attention", counted)
    loss, gradient = loss_and_gradient()
    assert called == [1, 1]
    monkeypatch.setattr(cpu_attention, "pays", lambda *_: False)
    fused_loss, fused_gradient = loss_and_gradient()
    assert loss == pytest.approx(fused_loss, rel=2e-3)
    assert distance(gradient, fused_gradient) < 2e-2
