"""Transformers of one block family as transformers models. Importing this package registers the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from bmscale.model import tokenization  # registers the tokenizer
from bmscale.model.config import (
    PRESETS,
    DecoderOnlyConfig,
    EncoderDecoderConfig,
    EncoderOnlyConfig,
    TransformerConfig,
)
from bmscale.model.decoder_only import DecoderOnlyForCausalLM, DecoderOnlyModel
from bmscale.model.encoder_decoder import EncoderDecoderForConditionalGeneration, EncoderDecoderModel
from bmscale.model.encoder_only import (
    EncoderOnlyForMaskedLM,
    EncoderOnlyForSequenceClassification,
    EncoderOnlyModel,
)
from bmscale.model.loss import LossSums, cross_entropy, linear_cross_entropy

for _config, _model in (
    (EncoderDecoderConfig, EncoderDecoderModel),
    (DecoderOnlyConfig, DecoderOnlyModel),
    (EncoderOnlyConfig, EncoderOnlyModel),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
AutoModelForSeq2SeqLM.register(EncoderDecoderConfig, EncoderDecoderForConditionalGeneration, exist_ok=True)
AutoModelForCausalLM.register(DecoderOnlyConfig, DecoderOnlyForCausalLM, exist_ok=True)
AutoModelForMaskedLM.register(EncoderOnlyConfig, EncoderOnlyForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(EncoderOnlyConfig, EncoderOnlyForSequenceClassification, exist_ok=True)

__all__ = [
    "PRESETS",
    "DecoderOnlyConfig",
    "DecoderOnlyForCausalLM",
    "DecoderOnlyModel",
    "EncoderDecoderConfig",
    "EncoderDecoderForConditionalGeneration",
    "EncoderDecoderModel",
    "EncoderOnlyConfig",
    "EncoderOnlyForMaskedLM",
    "EncoderOnlyForSequenceClassification",
    "EncoderOnlyModel",
    "LossSums",
    "TransformerConfig",
    "cross_entropy",
    "linear_cross_entropy",
    "tokenization",
]
