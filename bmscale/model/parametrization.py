"""How a model's width and depth enter its scales, first values and rates: the standard way, and μP.

`parametrization: mup` is μP (Yang 2022, Tensor Programs V, table 8) with the depth rule of CompleteP (Dey 2025, table
1, alpha = 1). What was tuned on a narrow and shallow model then holds for a wide and deep one. With m = hidden_size /
base_hidden_size and l = blocks of the stack / base_layers:

|                                     | first values        | rate  | decay | epsilon   | forward                 |
|-------------------------------------|---------------------|-------|-------|-----------|-------------------------|
| embedding, head (tied or not)       | of the base width   | 1     | 1     | 1 / m     | logits x 1 / m          |
| matrix of a block                   | as standard         | 1 / m | m     | 1 / (m l) | residual branch x 1 / l |
| norm and bias of a block            | as standard         | 1     | 0     | 1 / (m l) |                         |
| last norm of a stack                | as standard         | 1     | 0     | 1 / m     |                         |
| a classifier's inner matrix         | as standard         | 1 / m | m     | 1 / m     |                         |
| a classifier's last matrix          | standard x m^-1/2   | 1 / m | m     | 1         |                         |
| attention, head size K              |                     |       |       |           | x (base size / K)^1/2   |

AdamW multiplies decay by the rate, so what a matrix loses a step is the same at every width. An encoder and a decoder
have an l each; the third branch of a decoder's block is in its base model too, so it changes nothing. A residual output
(o_proj, down_proj) begins as in a stack of base_layers. Table 1 has the epsilon of blocks only; the others follow from
the same count: logits x 1 / m make every gradient below them 1 / m. At the base shape all of this is the standard
parametrization.
"""

from dataclasses import dataclass
from typing import Any

from bmscale.model.config import EncoderDecoderConfig, TransformerConfig


@dataclass(frozen=True)
class AdamScales:
    """What one parameter multiplies the optimizer's settings by."""

    rate: float = 1.0
    decay: float = 1.0
    """Of weight decay, where the parameter has any."""
    epsilon: float = 1.0


def is_mup(config: TransformerConfig) -> bool:
    """Whether the configuration asks for μP."""
    return config.parametrization == "mup"


def width_multiplier(config: TransformerConfig) -> float:
    """m: the width over that of the base model; 1 in the standard parametrization."""
    return config.hidden_size / config.base_hidden_size if is_mup(config) else 1.0


def depth_multiplier(config: TransformerConfig, depth: int) -> float:
    """l: the `depth` of a stack over that of the base model; 1 in the standard parametrization."""
    return depth / config.base_layers if is_mup(config) else 1.0


def init_depth(config: TransformerConfig, depth: int) -> int:
    """The blocks by which first values of residual outputs go: l is in the forward pass already."""
    return config.base_layers if is_mup(config) else depth


def embedding_scale(config: TransformerConfig) -> float:
    """What embeddings are multiplied by in all."""
    width = config.base_hidden_size if is_mup(config) else config.hidden_size
    return float(config.embedding_scale * (width**0.5 if config.scale_embeddings else 1.0))


def attention_scale(config: TransformerConfig) -> float:
    """What attention scores are multiplied by, besides K^-1/2."""
    return float(config.attention_scale * ((config.base_head_dim / config.head_dim) ** 0.5 if is_mup(config) else 1.0))


def residual_scale(config: TransformerConfig, depth: int) -> float:
    """What each residual branch of a stack with `depth` blocks is multiplied by."""
    return float(config.residual_scale / depth_multiplier(config, depth))


def logit_scale(config: TransformerConfig) -> float:
    """What logits over the vocabulary are multiplied by."""
    return float(config.logit_scale / width_multiplier(config))


def depth_of(name: str, config: Any) -> int:
    """Blocks of the stack that a parameter is part of, by its name in the whole model."""
    if not isinstance(config, EncoderDecoderConfig):
        return int(config.num_hidden_layers)
    return config.num_decoder_layers if "decoder." in name else config.num_encoder_layers


def adam_scales(name: str, config: TransformerConfig) -> AdamScales:
    """Of the parameter of that name in `named_parameters()` of the whole model; it may be partitioned, so its own shape
    is not asked. All 1 in the standard parametrization."""
    if not is_mup(config):
        return AdamScales()
    width = width_multiplier(config)
    if name.startswith("classifier."):
        return AdamScales(1 / width, width) if name.endswith(".weight") else AdamScales()
    epsilon = 1 / width
    if ".layers." in name:
        epsilon /= depth_multiplier(config, depth_of(name, config))
    if name.endswith(("_proj.weight", "dense.weight")):
        return AdamScales(1 / width, width, epsilon)
    return AdamScales(epsilon=epsilon)
