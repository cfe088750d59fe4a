"""What the table of bmscale/model/init.py promises of a parameter's first values, for those who compare with it."""

import math

import torch

from bmscale.model import EncoderDecoderConfig
from bmscale.model.init import embedding_std, matrix_std


def promised(name: str, columns: int, config: EncoderDecoderConfig) -> tuple[float, float]:
    """(mean, standard deviation) of the values of a parameter."""
    if name.endswith("norm.weight"):
        return 1.0, 0.0
    if name.endswith("embed.tokens.weight"):
        return 0.0, embedding_std(config)
    branches = 1
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        branches = 3 * config.num_decoder_layers if ".decoder." in name else 2 * config.num_encoder_layers
    return 0.0, matrix_std(columns, branches)


def deviations(values: torch.Tensor, name: str, config: EncoderDecoderConfig) -> float:
    """How far mean and standard deviation are from what is promised, in standard errors of them; inf where values that
    must all be alike are not."""
    mean, std = promised(name, values.shape[-1], config)
    if std == 0.0:
        return 0.0 if bool((values == mean).all()) else math.inf
    wide, count = values.double(), values.numel()
    off_mean = abs(float(wide.mean()) - mean) / (std / math.sqrt(count))
    off_std = abs(float(wide.std()) / std - 1) * math.sqrt(2 * count)
    return max(off_mean, off_std)
