"""Encoder-decoder Transformers as transformers models. Importing this package registers the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM

from bmscale.model import tokenization  # registers the tokenizer
from bmscale.model.config import PRESETS, EncoderDecoderConfig, TransformerConfig
from bmscale.model.encoder_decoder import EncoderDecoderForConditionalGeneration, EncoderDecoderModel
from bmscale.model.loss import LossSums, cross_entropy, linear_cross_entropy

AutoConfig.register(EncoderDecoderConfig.model_type, EncoderDecoderConfig, exist_ok=True)
AutoModel.register(EncoderDecoderConfig, EncoderDecoderModel, exist_ok=True)
AutoModelForSeq2SeqLM.register(EncoderDecoderConfig, EncoderDecoderForConditionalGeneration, exist_ok=True)

__all__ = [
    "PRESETS",
    "EncoderDecoderConfig",
    "EncoderDecoderForConditionalGeneration",
    "EncoderDecoderModel",
    "LossSums",
    "TransformerConfig",
    "cross_entropy",
    "linear_cross_entropy",
    "tokenization",
]
