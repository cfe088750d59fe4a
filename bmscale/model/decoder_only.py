"""The decoder-only model: a causal language model as a transformers model."""

from typing import Any

import torch
from torch.nn import functional as F
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from bmscale.model.attention import SelfAttention
from bmscale.model.config import DecoderOnlyConfig
from bmscale.model.layers import Head, Layer
from bmscale.model.loss import IGNORED, LossSums, cross_entropy
from bmscale.model.masks import causal_mask, find_segments
from bmscale.model.positions import find_positions
from bmscale.model.transformer import Stack, VocabularyModel


class DecoderOnlyModel(Stack):
    """Every token looks at itself and the earlier ones of its document."""

    config: DecoderOnlyConfig
    _can_record_outputs = {"hidden_states": Layer, "attentions": SelfAttention}  # noqa: RUF012

    def __init__(self, config: DecoderOnlyConfig) -> None:
        super().__init__(config, config.num_hidden_layers, is_causal=True)

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        segment_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Pieces (B, T), or scaled embeddings (B, T, D) in their place, to states (B, T, D).

        `attention_mask` (B, T, earlier tokens of the cache included) is needed for padding on the left only, and moves
        positions with it. `segment_ids` (B, T) tells the documents of packed rows apart (masks.py) and excludes a
        cache. Raises ValueError for both.
        """
        x_BTD = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        segment_ids = find_segments(segment_ids, position_ids, attention_mask, past_key_values)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if past_key_values is None and use_cache and segment_ids is None and not self.training:
            past_key_values = DynamicCache(config=self.config)
        start = 0 if past_key_values is None else past_key_values.get_seq_length()
        mask = causal_mask(self.config, x_BTD, attention_mask, segment_ids, past_key_values)
        position = find_positions(x_BTD, position_ids, segment_ids, attention_mask, start)
        x_BTD = self.run(x_BTD, position, mask, past_key_values, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=x_BTD, past_key_values=past_key_values)


class DecoderOnlyForCausalLM(VocabularyModel, GenerationMixin):
    """The language model that is trained, saved and asked to write on."""

    config: DecoderOnlyConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed.tokens.weight"}  # noqa: RUF012

    def __init__(self, config: DecoderOnlyConfig) -> None:
        super().__init__(config)
        self.model = DecoderOnlyModel(config)
        self.lm_head = Head(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        segment_ids: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        return_loss_sums: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | LossSums:
        """Logits (B, T, V), and with labels the mean loss a token.

        `shift_labels` (B, T) holds what each slot must predict, -100 where nothing: what training uses. `labels` is
        transformers' form, the input itself (-100 is not counted), and shifted here; a token that another document
        begins with is no target. `return_loss_sums` returns a LossSums and never holds the logits.
        `num_items_in_batch` replaces this batch's token count under the loss (gradient accumulation in Trainer).
        `logits_to_keep` gives logits of the last so many slots only (0: all), or of the slots of an index.

        Raises ValueError for both forms of labels, `return_loss_sums` without either, and segments beside a cache.
        """
        if labels is not None:
            if shift_labels is not None:
                raise ValueError("labels are shifted here, shift_labels are already; got both")
            segment_ids = find_segments(segment_ids, position_ids, attention_mask, past_key_values)
            shift_labels = next_labels(labels, segment_ids)
        if return_loss_sums and shift_labels is None:
            raise ValueError("return_loss_sums needs labels or shift_labels; got none")
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache if shift_labels is None else False,
            segment_ids,
            **kwargs,
        )
        x_BTD = outputs.last_hidden_state
        if return_loss_sums:
            return self.lm_head(x_BTD, shift_labels, label_smoothing)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BTV = self.lm_head(x_BTD[:, kept])
        loss = None
        if shift_labels is not None:
            loss = cross_entropy(logits_BTV, shift_labels[:, kept], label_smoothing).mean(num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits_BTV,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def next_labels(labels: torch.Tensor, segment_ids: torch.Tensor | None = None) -> torch.Tensor:
    """What each slot (B, T) must predict: the label of the next one, -100 at the end of a row and of a document."""
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    if segment_ids is None:
        return shifted
    is_last = F.pad(segment_ids.diff(dim=-1) != 0, (0, 1))
    return shifted.masked_fill(is_last, IGNORED)
