"""The encoder-only models: a masked language model, and a classifier over the same stack."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput
from transformers.utils import can_return_tuple

from bmscale.model.buckets import Buckets, cut
from bmscale.model.config import EncoderOnlyConfig
from bmscale.model.init import classifier_factor
from bmscale.model.layers import Head
from bmscale.model.loss import LossSums, cross_entropy
from bmscale.model.transformer import Encoder, TransformerPreTrainedModel, VocabularyModel


class EncoderOnlyModel(Encoder):
    """The stack without a head: returns its states."""

    config: EncoderOnlyConfig

    def __init__(self, config: EncoderOnlyConfig) -> None:
        super().__init__(config, config.num_hidden_layers)


class EncoderOnlyForMaskedLM(VocabularyModel):
    """The model that is trained to say what stands under a mask."""

    config: EncoderOnlyConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed.tokens.weight"}  # noqa: RUF012

    def __init__(self, config: EncoderOnlyConfig) -> None:
        super().__init__(config)
        self.model = EncoderOnlyModel(config)
        self.lm_head = Head(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        return_loss_sums: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput | LossSums:
        """Logits (B, T, V), and with labels (B, T; -100 where nothing is predicted) the mean loss a predicted token.

        `segment_ids` (B, T) tells the documents of packed rows apart (masks.py). `return_loss_sums` returns a LossSums
        instead, and computes logits of predicted tokens alone: what training uses. `num_items_in_batch` replaces this
        batch's count under the loss. Raises ValueError for `return_loss_sums` without labels.
        """
        if return_loss_sums and labels is None:
            raise ValueError("return_loss_sums needs labels; got none")
        outputs: BaseModelOutput = self.model(
            input_ids, attention_mask, position_ids, inputs_embeds, segment_ids, **kwargs
        )
        if return_loss_sums:
            return self.lm_head(outputs.last_hidden_state, labels, label_smoothing)
        logits_BTV = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = cross_entropy(logits_BTV, labels, label_smoothing).mean(num_items_in_batch)
        return MaskedLMOutput(
            loss=loss, logits=logits_BTV, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class EncoderOnlyForSequenceClassification(TransformerPreTrainedModel):
    """The model that is trained to give a text one of `config.num_labels` labels, L."""

    config: EncoderOnlyConfig

    def __init__(self, config: EncoderOnlyConfig) -> None:
        super().__init__(config)
        self.model = EncoderOnlyModel(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.classifier.init_factor = classifier_factor(config)  # type: ignore[assignment]
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        return_loss_sums: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        buckets: Buckets | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | LossSums:
        """Logits (B, L), and with labels (B,; -100 is not counted) the mean loss a text; each row is one text.

        With `buckets` the texts lie one behind the other in one row (buckets.py), and B is how many they are.

        `return_loss_sums` returns a LossSums instead, whose `tokens` are texts. `num_items_in_batch` replaces this
        batch's count under the loss. Raises ValueError for `return_loss_sums` without labels, and for packed rows.
        """
        if return_loss_sums and labels is None:
            raise ValueError("return_loss_sums needs labels; got none")
        if kwargs.get("segment_ids") is not None:
            raise ValueError("a classifier reads one text a row; got segment_ids, which describe several")
        outputs: BaseModelOutput = self.model(
            input_ids, attention_mask, position_ids, inputs_embeds, buckets=buckets, **kwargs
        )
        pooled_BD = self._pool(outputs.last_hidden_state, attention_mask, buckets)
        x_BD = self.dropout(F.gelu(self.dense(pooled_BD)))
        logits_BL = self.classifier(x_BD)
        sums = None if labels is None else cross_entropy(logits_BL, labels, label_smoothing)
        if return_loss_sums:
            return sums
        return SequenceClassifierOutput(
            loss=None if sums is None else sums.mean(num_items_in_batch),
            logits=logits_BL,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _pool(
        self, x_BTD: torch.Tensor, attention_mask: torch.Tensor | None, buckets: Buckets | None = None
    ) -> torch.Tensor:
        """States (B, T, D) of real tokens to one vector (B, D) a row."""
        if buckets is not None:
            reals = [None] * len(buckets) if attention_mask is None else cut(attention_mask, buckets)
            return torch.cat([self._pool(*part) for part in zip(cut(x_BTD, buckets), reals, strict=True)])
        if self.config.classifier_pooling == "first":
            return x_BTD[:, 0]
        if attention_mask is None:
            return x_BTD.mean(dim=1)
        real_BT1 = attention_mask[:, :, None].to(x_BTD.dtype)
        return (x_BTD * real_BT1).sum(dim=1) / real_BT1.sum(dim=1).clamp(min=1)
