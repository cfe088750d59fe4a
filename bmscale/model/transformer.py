"""What the architectures share: the stack of blocks, and what transformers needs to know of a model over it.

Shape letters, here and in every file of this folder: B batch, S source length, T target length, D model width, H
heads, K width of a head, G key and value heads, F feed-forward width, V vocabulary. In an `attention_mask` True (or 1)
is a real token and False (or 0) padding.
"""

from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.output_capturing import capture_outputs

from bmscale.model.attention import SelfAttention
from bmscale.model.buckets import BucketMask, Buckets, positions_in_rows
from bmscale.model.config import TransformerConfig
from bmscale.model.init import initialise_module
from bmscale.model.layers import Head, Layer, TokenEmbedding
from bmscale.model.masks import bidirectional_mask, bucket_mask, find_segments
from bmscale.model.norms import compute_dtype, make_norm
from bmscale.model.positions import find_positions, rotation


class TransformerPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of all our models."""

    config: TransformerConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Layer"]  # noqa: RUF012 - transformers' own spelling of class settings
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # `loss` already divides by `num_items_in_batch`, so Trainer must not scale it for accumulation once more.
    accepts_loss_kwargs = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        initialise_module(module, self.config)


class VocabularyModel(TransformerPreTrainedModel):
    """A model that ends in logits over the vocabulary."""

    lm_head: Head

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Take over the weight of a resized head; the module stays, since it knows the loss."""
        self.lm_head.weight = new_embeddings.weight
        self.lm_head.out_features = new_embeddings.weight.shape[0]


class Stack(TransformerPreTrainedModel):
    """Token embedding, blocks, and a last norm: pieces (B, T) to states (B, T, D)."""

    def __init__(self, config: TransformerConfig, depth: int, *, is_causal: bool, reads_source: bool = False) -> None:
        """`depth` blocks; with `reads_source` each has a cross-attention too."""
        super().__init__(config)
        self.embed = TokenEmbedding(config)
        self.layers = nn.ModuleList(
            [
                Layer(config, index, depth=depth, is_causal=is_causal, reads_source=reads_source)
                for index in range(depth)
            ]
        )
        self.norm = make_norm(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token table."""
        return self.embed.tokens

    def set_input_embeddings(self, new_embeddings: nn.Embedding) -> None:
        """Replace the token table."""
        self.embed.tokens = new_embeddings

    def run(
        self,
        x_BTD: torch.Tensor,
        position: torch.Tensor,
        mask: torch.Tensor | BucketMask | None,
        cache: Cache | None = None,
        source_BSD: torch.Tensor | None = None,
        source_mask: torch.Tensor | BucketMask | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Embeddings (B, T, D) of tokens at `position` (T,) or (B, T) to normed states (B, T, D)."""
        has_rope = self.config.positions == "rope"
        tables = rotation(self.config, position, compute_dtype(x_BTD)) if has_rope else None
        x_BTD = self.embed.place(x_BTD, position)
        for layer in self.layers:
            x_BTD = layer(x_BTD, tables, mask, cache, source_BSD, source_mask, **kwargs)
        return self.norm(x_BTD)


class Encoder(Stack):
    """Every token looks at every other."""

    _can_record_outputs = {"hidden_states": Layer, "attentions": SelfAttention}  # noqa: RUF012

    def __init__(self, config: TransformerConfig, depth: int) -> None:
        super().__init__(config, depth, is_causal=False)

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        buckets: Buckets | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Pieces (B, T), or scaled embeddings (B, T, D) in their place, to states (B, T, D).

        `segment_ids` (B, T) tells the documents of packed rows apart (masks.py); position_ids count from 0 otherwise.
        With `buckets` B is 1 and rows lie one behind the other (buckets.py).
        """
        x_BTD = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        mask: torch.Tensor | BucketMask | None
        if buckets is not None and not (position_ids is None and segment_ids is None):
            raise ValueError(
                "buckets are rows of one document each; they must not be given with position or segment ids"
            )
        if buckets is None:
            segment_ids = find_segments(segment_ids, position_ids, attention_mask, None)
            mask = bidirectional_mask(self.config, x_BTD, attention_mask, segment_ids)
            position = find_positions(x_BTD, position_ids, segment_ids)
        else:
            mask = bucket_mask(self.config, x_BTD, attention_mask, buckets)
            position = positions_in_rows(buckets, x_BTD.device)
        return BaseModelOutput(last_hidden_state=self.run(x_BTD, position, mask, **kwargs))
