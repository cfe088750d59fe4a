"""Multi-head attention with shared key heads, over the library's kernels and caches.

Shape letters: see bmscale/model/transformer.py. G is the number of key and value heads.
"""

from typing import Any

import torch
from torch import nn
from transformers import Cache, EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bmscale.model import cpu_attention
from bmscale.model.buckets import BucketMask, cut, join
from bmscale.model.config import TransformerConfig
from bmscale.model.init import mark_residual_output
from bmscale.model.norms import RMSNorm
from bmscale.model.parametrization import attention_scale
from bmscale.model.positions import Rotation, rotate


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float = 1.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, for the weights themselves and as the reference for the fused kernels.

    query is (B, H, T, K), key and value (B, G, S, K), the mask is added to the scores (B, H, T, S).
    Returns (B, T, H, K) and the weights (B, H, T, S).
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    score_BHTS = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        score_BHTS = score_BHTS + attention_mask
    # Softmax in bf16 loses the tail of long rows.
    weight_BHTS = score_BHTS.softmax(dim=-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(value.dtype)
    weight_BHTS = nn.functional.dropout(weight_BHTS, p=dropout, training=module.training)
    return (weight_BHTS @ value).transpose(1, 2).contiguous(), weight_BHTS


def added_mask(
    mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, *, is_causal: bool
) -> torch.Tensor | None:
    """The mask of `eager_attention` from that of the fused kernel, where True is seen and None hides nothing, or the
    future of several queries."""
    if mask is None and is_causal and query.shape[2] > 1:
        targets, sources = query.shape[2], key.shape[2]
        mask = torch.ones(targets, sources, dtype=torch.bool, device=query.device).tril(sources - targets)
    if mask is None:
        return None
    least = torch.finfo(query.dtype).min
    return torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(~mask, least)


class Attention(nn.Module):
    """What self-attention and cross-attention share: projections and the call into the chosen kernel."""

    def __init__(self, config: TransformerConfig, layer: int, *, is_causal: bool, branches: int) -> None:
        """`layer` is the index in the cache; `branches` the number of residual branches of the stack."""
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer, is_causal
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = attention_scale(config) * config.head_dim**-0.5
        query_width = config.num_attention_heads * config.head_dim
        key_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=config.bias)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=config.bias)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=config.bias)
        self.o_proj = mark_residual_output(nn.Linear(query_width, config.hidden_size, bias=config.bias), branches)

    def heads(self, x_BSD: torch.Tensor) -> torch.Tensor:
        """(B, S, heads x K) as (B, S, heads, K)."""
        return x_BSD.unflatten(-1, (-1, self.head_dim))

    def attend(
        self,
        query_BTHK: torch.Tensor,
        key_BSGK: torch.Tensor,
        value_BSGK: torch.Tensor,
        mask: torch.Tensor | BucketMask | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Kernel and output projection: (B, T, D) and the weights (B, H, T, S), where the kernel is eager or a call
        asks for them by `output_attentions`; of rows in buckets no weights."""
        if isinstance(mask, BucketMask):
            queries = cut(query_BTHK, mask.queries)
            keys, values = cut(key_BSGK, mask.keys), cut(value_BSGK, mask.keys)
            parts = zip(queries, keys, values, mask.masks, strict=True)
            heads_BTHK, weights = join([self._kernel(*part, **kwargs)[0] for part in parts]), None
        else:
            heads_BTHK, weights = self._kernel(query_BTHK, key_BSGK, value_BSGK, mask, **kwargs)
        return self.o_proj(heads_BTHK.flatten(2)), weights

    def _kernel(
        self,
        query_BTHK: torch.Tensor,
        key_BSGK: torch.Tensor,
        value_BSGK: torch.Tensor,
        mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weighted values (B, T, H, K), and the weights where the kernel tells them."""
        query_BHTK, key_BGSK, value_BGSK = (heads.transpose(1, 2) for heads in (query_BTHK, key_BSGK, value_BSGK))
        implementation = self.config._attn_implementation
        dropout = self.config.attention_dropout if self.training else 0.0
        # A caller's own mask may be added to the scores instead.
        is_plain = implementation == "sdpa" and (mask is None or mask.dtype == torch.bool)
        if is_plain and kwargs.get("output_attentions"):
            # This call alone: exchanging the kernel of the model would reach into what other threads compute with it.
            added = added_mask(mask, query_BHTK, key_BGSK, is_causal=self.is_causal)
            return eager_attention(self, query_BHTK, key_BGSK, value_BGSK, added, dropout=dropout, scaling=self.scaling)
        if is_plain and cpu_attention.pays(query_BHTK, key_BGSK, dropout):
            heads_BTHK = cpu_attention.attention(
                query_BHTK, key_BGSK, value_BGSK, mask, is_causal=self.is_causal, scale=self.scaling
            )
            return heads_BTHK, None
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        # `is_causal` is read from the module: a None mask in the decoder still means causal.
        heads_BTHK, weights = kernel(
            self, query_BHTK, key_BGSK, value_BGSK, mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return heads_BTHK, weights


class SelfAttention(Attention):
    """Tokens of one sequence look at each other; positions enter here when they are rotary."""

    def __init__(self, config: TransformerConfig, layer: int, *, is_causal: bool, branches: int) -> None:
        super().__init__(config, layer, is_causal=is_causal, branches=branches)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None

    def forward(
        self,
        x_BTD: torch.Tensor,
        tables: Rotation | None,
        mask: torch.Tensor | BucketMask | None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`mask` is what transformers.masking_utils makes for the kernel; None hides nothing but the future. A
        BucketMask says that x is (1, N, D), rows in buckets."""
        query, key = self.heads(self.q_proj(x_BTD)), self.heads(self.k_proj(x_BTD))
        value = self.heads(self.v_proj(x_BTD))
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if tables is not None:
            query, key = rotate(query, tables), rotate(key, tables)
        if cache is not None:
            key, value = cache.update(key.transpose(1, 2), value.transpose(1, 2), self.layer_idx)
            key, value = key.transpose(1, 2), value.transpose(1, 2)
        return self.attend(query, key, value, mask, **kwargs)


class CrossAttention(Attention):
    """Target tokens look at the source; its keys and values are the same at every step of generation."""

    def __init__(self, config: TransformerConfig, layer: int, *, branches: int) -> None:
        super().__init__(config, layer, is_causal=False, branches=branches)

    def forward(
        self,
        x_BTD: torch.Tensor,
        source_BSD: torch.Tensor,
        mask: torch.Tensor | BucketMask | None,
        cache: EncoderDecoderCache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`mask` hides padding of the source; None hides nothing. A BucketMask says that target and source are
        (1, N, D), rows in buckets."""
        query = self.heads(self.q_proj(x_BTD))
        if cache is not None and cache.is_updated.get(self.layer_idx):
            kept = cache.cross_attention_cache.layers[self.layer_idx]
            return self.attend(query, kept.keys.transpose(1, 2), kept.values.transpose(1, 2), mask, **kwargs)
        key, value = self.heads(self.k_proj(source_BSD)), self.heads(self.v_proj(source_BSD))
        if cache is not None:
            kept = cache.cross_attention_cache.update(key.transpose(1, 2), value.transpose(1, 2), self.layer_idx)
            key, value = kept[0].transpose(1, 2), kept[1].transpose(1, 2)
            cache.is_updated[self.layer_idx] = True
        return self.attend(query, key, value, mask, **kwargs)
