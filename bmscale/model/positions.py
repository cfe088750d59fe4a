"""Where a token stands: rotary tables for self-attention, sinusoids for embeddings.

Both are computed anew in each forward pass, once for all layers, and never kept as buffers: a buffer would be cast to
bf16 with the weights (too coarse for positions) and comes back empty from `from_pretrained`.
"""

import math

import torch

from bmscale.model.config import TransformerConfig

Rotation = tuple[torch.Tensor, torch.Tensor]
"""(cos, signed sin), each (1, T, 1, K), in the type that attention computes in."""

SINUSOID_OFFSET = 2
"""fairseq counts positions from pad_id + 1, so the first token of a sentence has number 2."""


def positions(length: int, start: int | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Numbers (T,) of `length` tokens behind `start` earlier ones, in fp32."""
    return torch.arange(length, device=device, dtype=torch.float32) + start


def rotation(config: TransformerConfig, position_T: torch.Tensor, dtype: torch.dtype) -> Rotation:
    """Tables of RoPE (Su 2021, equation 34) in the half-split layout: feature k turns with feature k + K/2."""
    steps = torch.arange(0, config.head_dim, 2, device=position_T.device, dtype=torch.float32)
    angle = position_T[:, None] * torch.exp(steps * (-math.log(config.rope_theta) / config.head_dim))
    cos, sin = angle.cos(), angle.sin()
    cos_TK, sin_TK = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
    return cos_TK.to(dtype)[None, :, None, :], sin_TK.to(dtype)[None, :, None, :]


def rotate(x_BTHK: torch.Tensor, tables: Rotation) -> torch.Tensor:
    """Turn each head by the angle of its position; rolling by K/2 swaps the halves, the sign is in the table."""
    cos, sin = tables
    return torch.addcmul(x_BTHK * cos, x_BTHK.roll(x_BTHK.shape[-1] // 2, dims=-1), sin)


def sinusoids(position_T: torch.Tensor, hidden_size: int, dtype: torch.dtype) -> torch.Tensor:
    """Sinusoids (T, D), sines in the first half and cosines in the second, as fairseq and tensor2tensor have them.

    This differs from Vaswani 2017, section 3.5, in the order of features and in a slightly longer last wavelength.
    """
    half = hidden_size // 2
    steps = torch.arange(half, device=position_T.device, dtype=torch.float32)
    angle = (position_T[:, None] + SINUSOID_OFFSET) * torch.exp(steps * (-math.log(10_000) / (half - 1)))
    return torch.cat([angle.sin(), angle.cos()], dim=-1).to(dtype)
