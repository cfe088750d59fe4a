"""The block of every stack, and what stands before and behind the blocks: token embedding and head.

A residual branch is x + residual_scale * dropout(post_norm(f(norm(x)))); without `sandwich_norm` there is no post_norm.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Cache, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer

from bmscale.model.attention import CrossAttention, SelfAttention
from bmscale.model.buckets import BucketMask
from bmscale.model.config import GATED, TransformerConfig
from bmscale.model.dropout import Dropout
from bmscale.model.init import head_factor, mark_residual_output, residual_branches
from bmscale.model.loss import LossSums, linear_cross_entropy
from bmscale.model.norms import make_norm
from bmscale.model.parametrization import embedding_scale, init_depth, logit_scale, residual_scale
from bmscale.model.positions import Rotation, sinusoids


class TokenEmbedding(nn.Module):
    """Text on its way into a stack: pieces (B, T) to x_BTD. Other kinds of input take this module's place."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.scale = embedding_scale(config)
        self.has_sinusoids = config.positions == "sinusoid"
        self.dropout = Dropout(config.dropout)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, T, D) of pieces (B, T), scaled, without positions."""
        x_BTD = self.tokens(input_ids)
        return x_BTD if self.scale == 1.0 else x_BTD * self.scale

    def place(self, x_BTD: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Add sinusoids of positions (T,) or (B, T) where the configuration has them, and drop out."""
        if self.has_sinusoids:
            x_BTD = x_BTD + sinusoids(position, x_BTD.shape[-1], x_BTD.dtype)
        return self.dropout(x_BTD)


class Head(nn.Linear):
    """Hidden states to logits, or straight to the loss, so that the logits are never held whole.

    The loss is taken inside this module because under ZeRO-3 its weight is only whole while it runs.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config.hidden_size, config.vocab_size, bias=False)
        self.scale = logit_scale(config)
        self.init_factor = head_factor(config)

    def forward(
        self, x_BTD: torch.Tensor, labels: torch.Tensor | None = None, label_smoothing: float = 0.0
    ) -> torch.Tensor | LossSums:
        """Logits (B, T, V); with labels (B, T) the sums of the loss instead."""
        if self.scale != 1.0:
            x_BTD = x_BTD * self.scale
        if labels is None:
            return super().forward(x_BTD)
        return linear_cross_entropy(x_BTD.flatten(0, 1), self.weight, labels.flatten(), label_smoothing)


class FeedForward(nn.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) where it is not gated."""

    def __init__(self, config: TransformerConfig, branches: int) -> None:
        """`branches` is the number of residual branches of the stack."""
        super().__init__()
        self.kind = config.feed_forward
        wide, narrow = config.intermediate_size, config.hidden_size
        self.gate_proj = nn.Linear(narrow, wide, bias=config.bias) if self.kind in GATED else None
        self.up_proj = nn.Linear(narrow, wide, bias=config.bias)
        self.down_proj = mark_residual_output(nn.Linear(wide, narrow, bias=config.bias), branches)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """(B, T, D) to (B, T, D)."""
        if self.gate_proj is None:
            x_BTF = self.up_proj(x_BTD)
            return self.down_proj(F.relu(x_BTF) if self.kind == "relu" else F.gelu(x_BTF))
        gate_BTF = self.gate_proj(x_BTD)
        gate_BTF = F.silu(gate_BTF) if self.kind == "swiglu" else F.gelu(gate_BTF, approximate="tanh")
        return self.down_proj(gate_BTF * self.up_proj(x_BTD))


class Layer(GradientCheckpointingLayer):
    """A block: self-attention, cross-attention to a source where there is one, feed-forward."""

    def __init__(
        self, config: TransformerConfig, index: int, *, depth: int, is_causal: bool, reads_source: bool
    ) -> None:
        """`index` counts the `depth` blocks of a stack from 0; it is the block's place in the cache."""
        super().__init__()
        self.residual_scale = residual_scale(config, depth)
        self.dropout = Dropout(config.dropout)
        branches = residual_branches(init_depth(config, depth), reads_source=reads_source)
        self.self_attention_norm = make_norm(config)
        self.self_attention = SelfAttention(config, index, is_causal=is_causal, branches=branches)
        self.self_attention_post_norm = make_norm(config) if config.sandwich_norm else nn.Identity()
        self.reads_source = reads_source
        if reads_source:
            self.cross_attention_norm = make_norm(config)
            self.cross_attention = CrossAttention(config, index, branches=branches)
            self.cross_attention_post_norm = make_norm(config) if config.sandwich_norm else nn.Identity()
        self.feed_forward_norm = make_norm(config)
        self.feed_forward = FeedForward(config, branches)
        self.feed_forward_post_norm = make_norm(config) if config.sandwich_norm else nn.Identity()

    def add(self, x_BTD: torch.Tensor, branch_BTD: torch.Tensor) -> torch.Tensor:
        """The residual addition."""
        branch_BTD = self.dropout(branch_BTD)
        return x_BTD + (branch_BTD if self.residual_scale == 1.0 else branch_BTD * self.residual_scale)

    def forward(
        self,
        x_BTD: torch.Tensor,
        tables: Rotation | None,
        mask: torch.Tensor | BucketMask | None,
        cache: Cache | None = None,
        source_BSD: torch.Tensor | None = None,
        source_mask: torch.Tensor | BucketMask | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """(B, T, D) to (B, T, D). `cache` is an EncoderDecoderCache where the block reads a source."""
        own_cache = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        branch, _ = self.self_attention(self.self_attention_norm(x_BTD), tables, mask, own_cache, **kwargs)
        x_BTD = self.add(x_BTD, self.self_attention_post_norm(branch))
        if self.reads_source:
            branch, _ = self.cross_attention(self.cross_attention_norm(x_BTD), source_BSD, source_mask, cache, **kwargs)
            x_BTD = self.add(x_BTD, self.cross_attention_post_norm(branch))
        branch = self.feed_forward(self.feed_forward_norm(x_BTD))
        return self.add(x_BTD, self.feed_forward_post_norm(branch))
