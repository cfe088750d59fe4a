"""What a bmscale model is made of, and the presets that choose among it.

`TransformerConfig` holds the options of the block family; `EncoderDecoderConfig`, `DecoderOnlyConfig` and
`EncoderOnlyConfig` add the stacks. They are transformers configurations: saved as config.json and checked when made.
"""

import inspect
import types
from typing import Any, Literal, Union, get_args, get_origin

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

MUP_BASE = {"base_hidden_size": 256, "base_layers": 4, "base_head_dim": 64}
"""The base shape of `parametrization: mup` where none is given: a constant, so that it is the same in all sizes."""

GATED = ("swiglu", "geglu")
"""The feed-forward kinds with three matrices: gate, up and down."""


@strict
class TransformerConfig(PreTrainedConfig):
    """Options of one pre-norm block family, shared by every architecture over it."""

    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - transformers' own spelling of a class setting

    vocab_size: int = 32_000
    """Pieces of the (joint) vocabulary, V."""
    hidden_size: int = 512
    """Width of the residual stream, D."""
    num_attention_heads: int = 8
    """Query heads of an attention, H."""
    num_key_value_heads: int = 0
    """Key and value heads: H is multi-head attention, 1 multi-query, between them grouped (Ainslie 2023). 0: H."""
    head_dim: int = 0
    """Width of one head, K; free of D. 0: D / H."""
    intermediate_size: int = 0
    """Width of the feed-forward layer, F. 0: 4 D, or 8/3 D (same parameters, Shazeer 2020) where it is gated,
    rounded up to a multiple of 64 (256 from D = 1024 on)."""
    norm: Literal["rms_norm", "layer_norm"] = "rms_norm"
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba 2016), before each sub-layer and after each stack."""
    sandwich_norm: bool = False
    """A second norm behind each sub-layer, before the residual addition (Ding 2021; Gemma 2)."""
    norm_eps: float | int = 1e-6
    """Added to the mean square (or variance) under the root."""
    positions: Literal["rope", "sinusoid"] = "rope"
    """Rotary positions in self-attention (Su 2021), or sinusoids added to the embeddings (Vaswani 2017)."""
    rope_theta: float | int = 10_000.0
    """Base of the rotary wavelengths, which grow from 2 pi to 2 pi theta positions."""
    feed_forward: Literal["swiglu", "geglu", "gelu", "relu"] = "swiglu"
    """Gated by SiLU or by tanh-approximated GELU (Shazeer 2020), or plain with exact GELU or ReLU."""
    bias: bool = False
    """Biases on every projection of attention and feed-forward; the head never has one."""
    qk_norm: bool = False
    """RMSNorm over each query and key head of self-attention, before the rotation (Qwen3). Never in cross-attention:
    CTranslate2 computes that wrongly."""
    tie_word_embeddings: bool = True
    """One V x D matrix for every embedding and the head (Press and Wolf 2017)."""
    scale_embeddings: bool = False
    """Multiply embeddings by sqrt(D) (Vaswani 2017)."""
    dropout: float | int = 0.0
    """Probability with which an element of the embedding or of a residual branch is dropped while training."""
    attention_dropout: float | int = 0.0
    """Probability with which an attention weight is dropped while training."""
    embedding_scale: float | int = 1.0
    """Multiplies embeddings, besides sqrt(D) where that is on."""
    attention_scale: float | int = 1.0
    """Multiplies attention scores, besides K^-1/2."""
    residual_scale: float | int = 1.0
    """Multiplies each residual branch before it is added."""
    logit_scale: float | int = 1.0
    """Multiplies logits."""
    parametrization: Literal["standard", "mup"] = "standard"
    """How scales, first values and rates follow width and depth: mup (Yang 2022) with CompleteP's depth rule (Dey 2025)
    lets a recipe that was tuned on a small model hold for a large one (parametrization.py)."""
    base_hidden_size: int = 0
    """mup: the width at which it is the standard parametrization, the same for all that share a recipe. 0: 256."""
    base_layers: int = 0
    """mup: the blocks of a stack (of each one) at which it is the standard parametrization. 0: 4."""
    base_head_dim: int = 0
    """mup: the head size at which attention scores have the standard scale. 0: 64."""
    max_position_embeddings: int = 1024
    """The longest sequence, in pieces, that the model is meant to read or generate. No table ends there: positions are
    computed, so longer input runs and is the caller's risk."""
    use_cache: bool = True
    """Keep keys and values while generating."""
    pad_token_id: int = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    unk_token_id: int | None = 3

    def __post_init__(self, **kwargs: Any) -> None:
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        if not self.head_dim and self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads == 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        self.intermediate_size = self.intermediate_size or default_intermediate_size(
            self.hidden_size, self.feed_forward
        )
        if self.parametrization == "mup":
            for name, value in MUP_BASE.items():
                setattr(self, name, getattr(self, name) or value)
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Called by transformers when a configuration is made or saved. Raises ValueError."""
        self._check_ranges()
        self._check_base()
        if self.head_dim == 0:  # it was not given, and could not be derived
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads where head_dim is not given; got hidden_size "
                f"{self.hidden_size} and num_attention_heads {self.num_attention_heads}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads must divide num_attention_heads; got {self.num_key_value_heads} and "
                f"{self.num_attention_heads}"
            )
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(f"head_dim must be even with positions: rope; got {self.head_dim}")
        if self.positions == "sinusoid" and (self.hidden_size % 2 or self.hidden_size < 4):
            raise ValueError(
                f"hidden_size must be even and at least 4 with positions: sinusoid; got {self.hidden_size}"
            )

    def _check_base(self) -> None:
        for name in MUP_BASE:
            value = getattr(self, name)
            if self.parametrization != "mup" and value:
                raise ValueError(
                    f"{name} goes with parametrization: mup only; got {value} and parametrization: "
                    f"{self.parametrization}"
                )
            if self.parametrization == "mup" and not 0 < value <= 2**20:
                raise ValueError(f"{name} must be between 1 and {2**20:,}, or 0 for {MUP_BASE[name]}; got {value}")

    def _check_ranges(self) -> None:
        for name in _POSITIVE:
            derived_later = name == "head_dim" and self.head_dim == 0
            if hasattr(self, name) and not derived_later and not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be above 0 and finite; got {getattr(self, name)}")
            if name in _MOST and hasattr(self, name) and getattr(self, name) > _MOST[name]:
                raise ValueError(f"{name} must be at most {_MOST[name]:,}; got {getattr(self, name):,}")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1); got {getattr(self, name)}")


@strict
class EncoderDecoderConfig(TransformerConfig):
    """An encoder and a decoder of the same width over one vocabulary."""

    model_type = "bmscale_encoder_decoder"
    # The generation cache is the decoder's and asks for its depth under the library's name.
    attribute_map = {"num_hidden_layers": "num_decoder_layers"}  # noqa: RUF012

    num_encoder_layers: int = 6
    """Blocks of the encoder."""
    num_decoder_layers: int = 6
    """Blocks of the decoder, each with a cross-attention."""
    is_encoder_decoder: bool = True
    decoder_start_token_id: int = 2


@strict
class DecoderOnlyConfig(TransformerConfig):
    """One causal stack: it writes text on."""

    model_type = "bmscale_decoder_only"

    num_hidden_layers: int = 12
    """Blocks of the stack."""


@strict
class EncoderOnlyConfig(TransformerConfig):
    """One stack in which every token looks at every other: it reads text."""

    model_type = "bmscale_encoder_only"

    num_hidden_layers: int = 12
    """Blocks of the stack."""
    classifier_pooling: Literal["mean", "first"] = "mean"
    """What a text is classified by: the mean of its states, or the state of its first token."""
    mask_token_id: int | None = None
    """The piece that hides a token from a masked language model; null where there is none."""

    def validate_architecture(self) -> None:
        """Called by transformers when a configuration is made or saved. Raises ValueError."""
        super().validate_architecture()
        if self.mask_token_id is not None and not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(f"mask_token_id must be one of {self.vocab_size} pieces; got {self.mask_token_id}")


CLASSIFIER = "EncoderOnlyForSequenceClassification"
"""The class of a classifier, as `architectures` of its configuration names it."""


def is_classifier(config: TransformerConfig) -> bool:
    """Whether the configuration says that its encoder classifies, and does not predict tokens."""
    return isinstance(config, EncoderOnlyConfig) and config.architectures == [CLASSIFIER]


_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "num_encoder_layers",
    "num_decoder_layers",
    "num_hidden_layers",
    "norm_eps",
    "rope_theta",
    "embedding_scale",
    "attention_scale",
    "residual_scale",
    "logit_scale",
    "max_position_embeddings",
)

# Far above any model there is: beyond them sizes of tensors leave 64 bits, and so many blocks take for ever to make.
_MOST = {
    "hidden_size": 2**20,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "intermediate_size": 2**23,
    "num_encoder_layers": 2**14,
    "num_decoder_layers": 2**14,
    "num_hidden_layers": 2**14,
    "max_position_embeddings": 2**40,
}

# What the experiment does not choose: the tokenizer does, or the architecture.
_NOT_OPTIONS = (
    "vocab_size",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "unk_token_id",
    "mask_token_id",
    "decoder_start_token_id",
    "is_encoder_decoder",
)

PRESETS: dict[str, dict[str, Any]] = {
    # Pre-norm RMSNorm, RoPE, SwiGLU, no bias, tied embeddings.
    "modern": {
        "norm": "rms_norm",
        "positions": "rope",
        "feed_forward": "swiglu",
        "bias": False,
        "tie_word_embeddings": True,
    },
    # The options of T5Gemma, to whose layout it exports.
    "gemma": {
        "norm": "rms_norm",
        "sandwich_norm": True,
        "positions": "rope",
        "feed_forward": "geglu",
        "bias": False,
        "tie_word_embeddings": True,
        "scale_embeddings": True,
    },
    # Vaswani 2017 with the norms in front, as fairseq and M2M100 have it, to whose layout it exports.
    "vanilla": {
        "norm": "layer_norm",
        "norm_eps": 1e-5,
        "positions": "sinusoid",
        "feed_forward": "relu",
        "bias": True,
        "tie_word_embeddings": True,
        "scale_embeddings": True,
    },
}
"""Named sets of options of an encoder-decoder, chosen by where the model can be served."""

# What Llama, Qwen3 and EuroBERT have in common, and `modern` with them.
_MODERN = {**PRESETS["modern"], "norm_eps": 1e-5}

DECODER_PRESETS: dict[str, dict[str, Any]] = {
    # Touvron 2023, with the rotary base of Llama 3.
    "llama": {**_MODERN, "rope_theta": 500_000.0},
    # Yang 2025: Llama's with a norm on queries and keys.
    "qwen3": {**_MODERN, "norm_eps": 1e-6, "qk_norm": True, "rope_theta": 1_000_000.0},
}
"""Those of a decoder, named for the layout that it exports to exactly (layouts.py). Tied embeddings; untied ones are
of these layouts too."""

ENCODER_PRESETS: dict[str, dict[str, Any]] = {
    # Boizard 2025.
    "eurobert": {**_MODERN, "rope_theta": 250_000.0},
}
"""Those of an encoder, named as those of a decoder."""


def default_intermediate_size(hidden_size: int, feed_forward: str) -> int:
    """The width F that gives gated and plain feed-forward layers of width D about the same 8 D^2 parameters."""
    exact = -(-8 * hidden_size // 3) if feed_forward in GATED else 4 * hidden_size
    multiple = 256 if hidden_size >= 1024 else 64  # what matrix units like
    return -(-exact // multiple) * multiple


def option_types(config: type[TransformerConfig] = EncoderDecoderConfig) -> dict[str, Any]:
    """The options of an architecture that an experiment may set, by name, with their types (`float | int` is given as
    `float`)."""
    found: dict[str, Any] = {}
    for owner in (TransformerConfig, config):
        declared = inspect.get_annotations(owner)
        found |= {name: _plain(kind) for name, kind in declared.items() if name not in _NOT_OPTIONS}
    return found


def _plain(annotation: Any) -> Any:
    """`float | int`, which transformers needs to take `dropout=0`, as float."""
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return float if is_union and float in get_args(annotation) else annotation
