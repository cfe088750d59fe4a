"""The layouts of transformers that hold a model of ours: which options each needs, its configuration, its names.

T5Gemma and M2M100 are for encoder-decoders; Llama, Qwen3 and EuroBERT come from model/layouts.py. The four scalars
need no place in a layout: they are folded into the weights (scalars.py).
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import M2M100Config, PreTrainedConfig, T5GemmaConfig

from bmscale.model.config import MUP_BASE, EncoderDecoderConfig, EncoderOnlyConfig, TransformerConfig
from bmscale.model.layouts import layout_config, layout_name

_SCALARS: dict[str, Any] = {
    "scale_embeddings": False,
    "embedding_scale": 1.0,
    "attention_scale": 1.0,
    "residual_scale": 1.0,
    "logit_scale": 1.0,
    "parametrization": "standard",
    **dict.fromkeys(MUP_BASE, 0),
}


@dataclass(frozen=True)
class Layout:
    """One architecture of transformers."""

    name: str
    """Its `model_type`."""
    needed: Callable[[Any], Mapping[str, Any]]
    """What each option must be that the layout fixes."""
    configure: Callable[[Any], PreTrainedConfig]
    rename: Callable[[str], str]
    """The name there of a parameter of ours."""
    embedding_factor: Callable[[Any], float]
    """What the layout multiplies embeddings by itself."""
    norm_offset: float = 0.0
    """What the layout adds to the stored weight of a norm."""

    def misfits(self, config: TransformerConfig) -> list[str]:
        """What of the configuration has no place here: `option must be X; got Y`."""
        return [
            f"{option} must be {needed}; got {getattr(config, option)}"
            for option, needed in self.needed(config).items()
            if getattr(config, option) != needed
        ]

    def state(self, folded: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The weights of the layout; `folded` has the scalars in it."""
        found = {}
        for name, tensor in folded.items():
            is_norm = name.endswith("norm.weight")
            found[self.rename(name)] = tensor - self.norm_offset if is_norm and self.norm_offset else tensor
        return found


def layouts_of(config: TransformerConfig) -> Sequence[Layout]:
    """Those of the model's architecture, whether it fits them or not."""
    if isinstance(config, EncoderDecoderConfig):
        return _OF_TWO_STACKS
    if isinstance(config, EncoderOnlyConfig):
        return (_EUROBERT,)
    return (_QWEN3 if config.qk_norm else _LLAMA,)


def _renamed(pairs: Sequence[tuple[str, str]]) -> Callable[[str], str]:
    def rename(name: str) -> str:
        for pattern, theirs in pairs:
            name = re.sub(pattern, theirs, name)
        return name

    return rename


# ---- T5Gemma (Zhang 2025): the options of preset `gemma`


def _t5gemma_needs(config: EncoderDecoderConfig) -> dict[str, Any]:
    return {
        "norm": "rms_norm",
        "sandwich_norm": True,
        "positions": "rope",
        "feed_forward": "geglu",
        "bias": False,
        "qk_norm": False,
        # Its configuration refuses another width of heads, in words of its own.
        **({"head_dim": config.hidden_size // config.num_attention_heads} if _is_uneven(config) else {}),
    }


def _is_uneven(config: TransformerConfig) -> bool:
    return config.hidden_size % config.num_attention_heads != 0


def _t5gemma_config(config: EncoderDecoderConfig) -> PreTrainedConfig:
    ids = {"pad_token_id": config.pad_token_id, "eos_token_id": config.eos_token_id}
    stack = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "query_pre_attn_scalar": config.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(config.rope_theta)},
        "max_position_embeddings": config.max_position_embeddings,
        "sliding_window": 4096,  # no layer has one, and None is refused
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "tie_word_embeddings": config.tie_word_embeddings,
        # Labels are shifted right behind the decoder's `bos`.
        "bos_token_id": config.decoder_start_token_id,
        **ids,
    }
    depths = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    stacks = {
        name: {**stack, "num_hidden_layers": depth, "layer_types": ["full_attention"] * depth}
        for name, depth in depths.items()
    }
    return T5GemmaConfig(
        architectures=["T5GemmaForConditionalGeneration"],
        **stacks,
        dropout_rate=float(config.dropout),
        attention_dropout=float(config.attention_dropout),
        vocab_size=config.vocab_size,
        tie_word_embeddings=config.tie_word_embeddings,
        bos_token_id=config.bos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        **ids,
    )


_T5GEMMA = Layout(
    "t5gemma",
    _t5gemma_needs,
    _t5gemma_config,
    _renamed(
        (
            (r"\.embed\.tokens\.", ".embed_tokens."),
            (r"\.self_attention_norm\.", ".pre_self_attn_layernorm."),
            (r"\.self_attention_post_norm\.", ".post_self_attn_layernorm."),
            (r"\.self_attention\.", ".self_attn."),
            (r"\.cross_attention_norm\.", ".pre_cross_attn_layernorm."),
            (r"\.cross_attention_post_norm\.", ".post_cross_attn_layernorm."),
            (r"\.cross_attention\.", ".cross_attn."),
            (r"\.feed_forward_norm\.", ".pre_feedforward_layernorm."),
            (r"\.feed_forward_post_norm\.", ".post_feedforward_layernorm."),
            (r"\.feed_forward\.", ".mlp."),
            (r"^lm_head\.", "lm_head.out_proj."),
        )
    ),
    lambda config: float(config.hidden_size**0.5),
    norm_offset=1.0,
)


# ---- M2M100 (Fan 2020): the options of preset `vanilla`


def _m2m_100_needs(config: EncoderDecoderConfig) -> dict[str, Any]:
    return {
        "norm": "layer_norm",
        "norm_eps": 1e-5,
        "sandwich_norm": False,
        "positions": "sinusoid",
        "feed_forward": "gelu" if config.feed_forward == "gelu" else "relu",
        "bias": True,
        "qk_norm": False,
        "num_key_value_heads": config.num_attention_heads,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "tie_word_embeddings": True,
        "pad_token_id": 1,  # positions begin behind it
    }


def _m2m_100_config(config: EncoderDecoderConfig) -> PreTrainedConfig:
    return M2M100Config(
        architectures=["M2M100ForConditionalGeneration"],
        vocab_size=config.vocab_size,
        d_model=config.hidden_size,
        encoder_layers=config.num_encoder_layers,
        decoder_layers=config.num_decoder_layers,
        encoder_attention_heads=config.num_attention_heads,
        decoder_attention_heads=config.num_attention_heads,
        encoder_ffn_dim=config.intermediate_size,
        decoder_ffn_dim=config.intermediate_size,
        activation_function=config.feed_forward,
        scale_embedding=config.scale_embeddings,
        max_position_embeddings=config.max_position_embeddings,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        activation_dropout=0.0,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        tie_word_embeddings=True,
        decoder_start_token_id=config.decoder_start_token_id,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
    )


_M2M_100 = Layout(
    "m2m_100",
    _m2m_100_needs,
    _m2m_100_config,
    _renamed(
        (
            (r"\.embed\.tokens\.", ".embed_tokens."),
            (r"\.self_attention_norm\.", ".self_attn_layer_norm."),
            (r"\.self_attention\.", ".self_attn."),
            (r"\.cross_attention_norm\.", ".encoder_attn_layer_norm."),
            (r"\.cross_attention\.", ".encoder_attn."),
            (r"\.o_proj\.", ".out_proj."),
            (r"\.feed_forward_norm\.", ".final_layer_norm."),
            (r"\.feed_forward\.up_proj\.", ".fc1."),
            (r"\.feed_forward\.down_proj\.", ".fc2."),
            (r"coder\.norm\.", "coder.layer_norm."),
        )
    ),
    lambda config: float(config.hidden_size**0.5) if config.scale_embeddings else 1.0,
)

_OF_TWO_STACKS = (_T5GEMMA, _M2M_100)


# ---- Llama (Touvron 2023), Qwen3 (Yang 2025), EuroBERT (Boizard 2025)


def _without_scalars(config: Any) -> Any:
    plain = copy.deepcopy(config)
    for name, value in _SCALARS.items():
        setattr(plain, name, value)
    return plain


def _single(name: str, **needed: Any) -> Layout:
    common = {"norm": "rms_norm", "sandwich_norm": False, "positions": "rope", "feed_forward": "swiglu", **needed}
    return Layout(
        name,
        lambda config: common,
        lambda config: layout_config(_without_scalars(config)),
        layout_name,
        lambda config: 1.0,
    )


_LLAMA = _single("llama", qk_norm=False)
_QWEN3 = _single("qwen3", qk_norm=True, bias=False)
_EUROBERT = _single("eurobert", qk_norm=False, bias=False)
