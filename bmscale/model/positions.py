"""Where a token stands: rotary tables for self-attention, sinusoids for embeddings.

Both are computed anew in each forward pass, once for all layers, and never kept as buffers: a buffer would be cast to
bf16 with the weights (too coarse for positions) and comes back empty from `from_pretrained`.
"""

import math

import torch

from bmscale.model.config import TransformerConfig

Rotation = tuple[torch.Tensor, torch.Tensor]
"""(cos, signed sin), each (1 or B, T, 1, K), in the type that attention computes in."""

SINUSOID_OFFSET = 2
"""fairseq counts positions from pad_id + 1, so the first token of a sentence has number 2."""


def positions(length: int, start: int | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Numbers (T,) of `length` tokens behind `start` earlier ones, in fp32."""
    return torch.arange(length, device=device, dtype=torch.float32) + start


def find_positions(
    x_BTD: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    segment_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    start: int | torch.Tensor = 0,
) -> torch.Tensor:
    """Positions (T,), or (B, T) where rows differ, in fp32.

    They are `position_ids` where given; else they count from 0 in each document of packed rows (masks.py); else the
    real tokens of `attention_mask` (B, everything up to the last of x); else they follow `start` earlier tokens.
    """
    if position_ids is not None:
        return position_ids.float()
    length = x_BTD.shape[1]
    if segment_ids is not None:
        place_T = torch.arange(length, device=x_BTD.device)
        begins_BT = segment_ids.diff(dim=-1, prepend=segment_ids[:, :1] - 1) != 0
        return (place_T - torch.where(begins_BT, place_T, 0).cummax(dim=-1).values).float()
    if attention_mask is not None and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -length:].float()
    return positions(length, start, x_BTD.device)


def rotation(config: TransformerConfig, position: torch.Tensor, dtype: torch.dtype) -> Rotation:
    """Tables of RoPE (Su 2021, equation 34) of positions (T,) or (B, T), in the half-split layout: feature k turns
    with feature k + K/2."""
    steps = torch.arange(0, config.head_dim, 2, device=position.device, dtype=torch.float32)
    angle = torch.atleast_2d(position)[..., None] * torch.exp(steps * (-math.log(config.rope_theta) / config.head_dim))
    cos, sin = angle.cos(), angle.sin()
    cos_BTK, sin_BTK = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
    return cos_BTK.to(dtype)[:, :, None, :], sin_BTK.to(dtype)[:, :, None, :]


def rotate(x_BTHK: torch.Tensor, tables: Rotation) -> torch.Tensor:
    """Turn each head by the angle of its position; rolling by K/2 swaps the halves, the sign is in the table."""
    cos, sin = tables
    return torch.addcmul(x_BTHK * cos, x_BTHK.roll(x_BTHK.shape[-1] // 2, dims=-1), sin)


def sinusoids(position: torch.Tensor, hidden_size: int, dtype: torch.dtype) -> torch.Tensor:
    """Sinusoids (T, D), or (B, T, D), of positions (T,) or (B, T): sines in the first half and cosines in the second,
    as fairseq and tensor2tensor have them.

    This differs from Vaswani 2017, section 3.5, in the order of features and in a slightly longer last wavelength.
    """
    half = hidden_size // 2
    steps = torch.arange(half, device=position.device, dtype=torch.float32)
    angle = (position[..., None] + SINUSOID_OFFSET) * torch.exp(steps * (-math.log(10_000) / (half - 1)))
    return torch.cat([angle.sin(), angle.cos()], dim=-1).to(dtype)
