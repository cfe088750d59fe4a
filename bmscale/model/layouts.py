"""The layouts of transformers that a model is exactly one of: Llama, Qwen3, EuroBERT.

Names differ, weights and logits do not: RoPE is half-split here and there, so nothing is permuted.
"""

import re
from typing import Any

from transformers import EuroBertConfig, LlamaConfig, PreTrainedConfig, Qwen3Config

from bmscale.model.config import DecoderOnlyConfig, EncoderOnlyConfig, TransformerConfig, is_classifier

_NAMES = (
    (r"\.embed\.tokens\.", ".embed_tokens."),
    (r"\.self_attention_norm\.", ".input_layernorm."),
    (r"\.feed_forward_norm\.", ".post_attention_layernorm."),
    (r"\.self_attention\.", ".self_attn."),
    (r"\.feed_forward\.", ".mlp."),
)
_POOLINGS = {"mean": "mean", "first": "bos"}
_NEEDED: dict[str, Any] = {
    "norm": "rms_norm",
    "sandwich_norm": False,
    "positions": "rope",
    "feed_forward": "swiglu",
    "scale_embeddings": False,
    "embedding_scale": 1.0,
    "attention_scale": 1.0,
    "residual_scale": 1.0,
    "logit_scale": 1.0,
    "parametrization": "standard",
}


def layout_name(name: str) -> str:
    """The name that a parameter of ours has in the layout."""
    for pattern, theirs in _NAMES:
        name = re.sub(pattern, theirs, name)
    return name


def layout_config(config: TransformerConfig) -> PreTrainedConfig:
    """The configuration of the same model in a layout: Qwen3 for a decoder with qk_norm, else Llama; EuroBERT for an
    encoder. Raises ValueError, naming the option, for a model that has no layout."""
    if not isinstance(config, DecoderOnlyConfig | EncoderOnlyConfig):
        raise ValueError(f"only a decoder-only or encoder-only model has a layout; got {config.model_type}")
    for option, needed in _needed(config).items():
        if getattr(config, option) != needed:
            raise ValueError(f"{option} must be {needed} in this layout; got {getattr(config, option)}")
    shape: dict[str, Any] = {
        name: getattr(config, name)
        for name in (
            "architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "attention_dropout",
            "pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings", "use_cache",
        )
    }  # fmt: skip
    shape |= {
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": config.bias,
        "hidden_act": "silu",
    }
    if isinstance(config, DecoderOnlyConfig):
        if config.qk_norm:
            return Qwen3Config(**{**shape, "architectures": ["Qwen3ForCausalLM"]})
        return LlamaConfig(**{**shape, "architectures": ["LlamaForCausalLM"], "mlp_bias": config.bias})
    kind = "EuroBertForSequenceClassification" if is_classifier(config) else "EuroBertForMaskedLM"
    masked = {} if config.mask_token_id is None else {"mask_token_id": config.mask_token_id}
    return EuroBertConfig(
        **{**shape, **masked, "architectures": [kind]},
        classifier_pooling=_POOLINGS[config.classifier_pooling],
        id2label=config.id2label,
        label2id=config.label2id,
    )


def _needed(config: DecoderOnlyConfig | EncoderOnlyConfig) -> dict[str, Any]:
    """The options that a layout fixes."""
    if isinstance(config, EncoderOnlyConfig):
        return {**_NEEDED, "bias": False, "qk_norm": False}
    return {**_NEEDED, "bias": False} if config.qk_norm else _NEEDED
