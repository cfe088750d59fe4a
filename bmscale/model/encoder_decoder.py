"""The encoder-decoder as a transformers model."""

from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from bmscale.model.attention import CrossAttention, SelfAttention
from bmscale.model.buckets import Buckets, positions_in_rows
from bmscale.model.config import EncoderDecoderConfig
from bmscale.model.layers import Head, Layer
from bmscale.model.loss import IGNORED, LossSums, cross_entropy
from bmscale.model.masks import causal_bucket_mask, cross_bucket_mask
from bmscale.model.positions import positions
from bmscale.model.transformer import Encoder, Stack, TransformerPreTrainedModel, VocabularyModel


class Decoder(Stack):
    """Target pieces and source states to target states."""

    config: EncoderDecoderConfig
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": Layer,
        "attentions": OutputRecorder(SelfAttention, index=1),
        "cross_attentions": OutputRecorder(CrossAttention, index=1),
    }

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__(config, config.num_decoder_layers, is_causal=True, reads_source=True)

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        buckets: tuple[Buckets, Buckets] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Pieces (B, T) and states (B, S, D) to states (B, T, D).

        Without `attention_mask` no mask is built: rows are padded on the right, where the causal order hides it.
        With `buckets`, those of the source and of the target, B is 1 and rows lie one behind the other (buckets.py).
        """
        x_BTD = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        if buckets is not None:
            if encoder_hidden_states is None or past_key_values is not None or attention_mask is not None:
                raise ValueError(
                    "buckets need encoder_hidden_states and know their own padding; they must not be given with "
                    "past_key_values or an attention_mask of the target"
                )
            own = causal_bucket_mask(self.config, x_BTD, buckets[1])
            cross = cross_bucket_mask(self.config, x_BTD, encoder_hidden_states, encoder_attention_mask, buckets)
            position = positions_in_rows(buckets[1], x_BTD.device)
            x_BTD = self.run(x_BTD, position, own, None, encoder_hidden_states, cross, **kwargs)
            return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=x_BTD)
        if past_key_values is None and use_cache and not self.training:
            past_key_values = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        own_cache = None if past_key_values is None else past_key_values.self_attention_cache
        start = 0 if own_cache is None else own_cache.get_seq_length()
        position_T = positions(x_BTD.shape[1], start, x_BTD.device)
        mask = create_causal_mask(self.config, x_BTD, attention_mask, own_cache)
        source_mask = create_bidirectional_mask(
            self.config, x_BTD, encoder_attention_mask, encoder_hidden_states=encoder_hidden_states
        )
        x_BTD = self.run(x_BTD, position_T, mask, past_key_values, encoder_hidden_states, source_mask, **kwargs)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=x_BTD, past_key_values=past_key_values)


class EncoderDecoderModel(TransformerPreTrainedModel):
    """Encoder and decoder without a head: returns the decoder's hidden states."""

    config: EncoderDecoderConfig
    _tied_weights_keys = {"decoder.embed.tokens.weight": "encoder.embed.tokens.weight"}  # noqa: RUF012

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config, config.num_encoder_layers)
        self.decoder = Decoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's token table; where embeddings are tied it is the only one."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, new_embeddings: nn.Embedding) -> None:
        """Replace the encoder's token table, and the decoder's where they are tied."""
        self.encoder.set_input_embeddings(new_embeddings)
        if self.config.tie_word_embeddings:
            self.decoder.set_input_embeddings(new_embeddings)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[torch.Tensor, ...] | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        source_buckets: Buckets | None = None,
        target_buckets: Buckets | None = None,
        **kwargs: Any,
    ) -> Seq2SeqModelOutput:
        """Source (B, S) and target (B, T) to decoder states (B, T, D); `encoder_outputs` saves running the encoder.

        With buckets of both, of as many rows each, B is 1 and rows lie one behind the other (buckets.py).
        """
        if (source_buckets is None) != (target_buckets is None):
            raise ValueError("source_buckets and target_buckets must be given together; got one of them")
        if encoder_outputs is None:
            source: Any = self.encoder(
                input_ids, attention_mask, inputs_embeds=inputs_embeds, buckets=source_buckets, **kwargs
            )
        else:
            is_tuple = isinstance(encoder_outputs, tuple)
            source = BaseModelOutput(*encoder_outputs) if is_tuple else encoder_outputs
        decoder_outputs = self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            source.last_hidden_state,
            attention_mask,
            past_key_values,
            decoder_inputs_embeds,
            self.config.use_cache if use_cache is None else use_cache,
            None if source_buckets is None or target_buckets is None else (source_buckets, target_buckets),
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            past_key_values=decoder_outputs.past_key_values,
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=source.last_hidden_state,
            encoder_hidden_states=source.hidden_states,
            encoder_attentions=source.attentions,
        )


class EncoderDecoderForConditionalGeneration(VocabularyModel, GenerationMixin):
    """The model that is trained, saved and asked to translate."""

    config: EncoderDecoderConfig
    _tied_weights_keys = {  # noqa: RUF012
        "model.decoder.embed.tokens.weight": "model.encoder.embed.tokens.weight",
        "lm_head.weight": "model.encoder.embed.tokens.weight",
    }

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__(config)
        self.model = EncoderDecoderModel(config)
        self.lm_head = Head(config)
        self.post_init()

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels (B, T) shifted right by one behind the decoder's start; -100 becomes padding."""
        start = labels.new_full((labels.shape[0], 1), self.config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == IGNORED, self.config.pad_token_id)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[torch.Tensor, ...] | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        label_smoothing: float = 0.0,
        return_loss_sums: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput | LossSums:
        """Logits (B, T, V), and with labels (B, T; -100 is not counted) the mean loss a target token.

        `return_loss_sums` returns a LossSums instead and never holds the logits: what training uses.
        `num_items_in_batch` replaces this batch's token count under the loss (gradient accumulation in Trainer).
        Rows may lie in `source_buckets` and `target_buckets` (buckets.py), and decoder_input_ids are needed then.
        Raises ValueError for `return_loss_sums` without labels, and for buckets with what they do not go with.
        """
        if return_loss_sums and labels is None:
            raise ValueError("return_loss_sums needs labels; got none")
        if labels is not None:
            use_cache = False
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                if kwargs.get("target_buckets") is not None:
                    raise ValueError("labels in buckets need decoder_input_ids; got none: rows are not shifted apart")
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.model(
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs,
            past_key_values,
            inputs_embeds,
            decoder_inputs_embeds,
            use_cache,
            **kwargs,
        )
        x_BTD = outputs.last_hidden_state
        if return_loss_sums:
            return self.lm_head(x_BTD, labels, label_smoothing)
        logits_BTV = self.lm_head(x_BTD)
        loss = None
        if labels is not None:
            loss = cross_entropy(logits_BTV, labels, label_smoothing).mean(num_items_in_batch)
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits_BTV,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
        )
