"""Attention in bf16 while training on CPU, of plain matrix products.

PyTorch's fused kernel for CPU (2.13) saves memory on long rows and loses time on short ones, most of it in its backward
pass: on 64 rows of 32 tokens with 4 heads of 64, forward and backward take it four times as long as the products below
(Zen 4, one thread), on 8 rows of 256 tokens 1.7 times. The weights (B, H, T, S) are held in bf16 for the backward
pass, so batches of more than `MOST` are left to the fused kernel.

Shape letters: see bmscale/model/transformer.py.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

MOST = 2**25
"""B x H x T x S up to which the weights of a layer (of a bucket of it) are held: 64 MiB in bf16."""


def pays(query_BHTK: torch.Tensor, key_BGSK: torch.Tensor, dropout: float) -> bool:
    """Whether to attend with `attention` below instead of the configured fused kernel."""
    return (
        query_BHTK.device.type == "cpu"
        and query_BHTK.dtype == torch.bfloat16
        and torch.is_grad_enabled()
        and dropout == 0.0
        and query_BHTK.shape[:3].numel() * key_BGSK.shape[2] <= MOST
        and not torch.compiler.is_compiling()
    )


def attention(
    query_BHTK: torch.Tensor,
    key_BGSK: torch.Tensor,
    value_BGSK: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    is_causal: bool,
    scale: float,
) -> torch.Tensor:
    """Weighted values (B, T, H, K). `mask` (B or 1, 1, T, S) is True where a query sees a key; without one every query
    sees every key, or with `is_causal` those that are not behind it. The gradient cannot be differentiated again.
    """
    queries, keys = query_BHTK.shape[2], key_BGSK.shape[2]
    if mask is None and is_causal and queries > 1:
        mask = torch.ones(queries, keys, dtype=torch.bool).tril()
    bias = None
    if mask is not None:
        lowest = torch.finfo(torch.float32).min  # not -inf: a query that sees nothing must not give NaN
        bias = torch.zeros(mask.shape).masked_fill_(~mask, lowest)
    groups = query_BHTK.shape[1] // key_BGSK.shape[1]
    if groups > 1:
        key_BGSK, value_BGSK = key_BGSK.repeat_interleave(groups, dim=1), value_BGSK.repeat_interleave(groups, dim=1)
    with torch.autocast("cpu", enabled=False):  # the scores are wanted in fp32
        heads_BHTK: torch.Tensor = _Attention.apply(query_BHTK, key_BGSK, value_BGSK, bias, scale)
    return heads_BHTK.transpose(1, 2)


class _Attention(torch.autograd.Function):
    """Scores and softmax in fp32 and all other products in bf16, as the fused kernel has them."""

    @staticmethod
    def forward(
        ctx: Any,
        query_BHTK: torch.Tensor,
        key_BHSK: torch.Tensor,
        value_BHSK: torch.Tensor,
        bias: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        score_BHTS = (query_BHTK.float() * scale) @ key_BHSK.float().transpose(-1, -2)
        if bias is not None:
            score_BHTS += bias
        weight_BHTS = score_BHTS.softmax(dim=-1).to(value_BHSK.dtype)
        ctx.save_for_backward(query_BHTK, key_BHSK, value_BHSK, weight_BHTS)
        ctx.scale = scale
        return weight_BHTS @ value_BHSK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_BHTK: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_BHTK, key_BHSK, value_BHSK, weight_BHTS = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            grad_value = weight_BHTS.transpose(-1, -2) @ upstream_BHTK
            grad_weight = upstream_BHTK @ value_BHSK.transpose(-1, -2)
            grad_score = torch._softmax_backward_data(grad_weight, weight_BHTS, -1, weight_BHTS.dtype)
            grad_score *= ctx.scale
            return grad_score @ key_BHSK, grad_score.transpose(-1, -2) @ query_BHTK, grad_value, None, None
