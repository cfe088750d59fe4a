"""Rows of several lengths in one batch: buckets of rows of alike length, laid end to end.

A step of sentence pairs holds short and long ones. Padded to the longest, up to half of the slots is padding; in a
batch for each length, every weight's gradient is added up once a batch and the matrix products are small. Here each
bucket is padded to its own longest row and all buckets lie in one row of N tokens, (1, N): whatever works token by
token (projections, norms, feed-forward, loss) runs once over all of them, and attention alone goes bucket by bucket.
It is what variable-length kernels do for a GPU (FlashAttention's cu_seqlens, Dao 2022), with rows of a bucket in one
call so that any kernel can be used.

Shape letters: see bmscale/model/transformer.py. N is the sum of B x T over the buckets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

Buckets = Sequence[tuple[int, int]]
"""(rows B, length T) of each bucket, in the order in which they lie."""


@dataclass(frozen=True)
class BucketMask:
    """Which tokens see which where rows lie in buckets: those of one row alone, by the mask of their bucket."""

    queries: Buckets
    keys: Buckets
    """As many, each with as many rows as the bucket of queries."""
    masks: Sequence[torch.Tensor | None]
    """What the kernel takes for each bucket."""


def cut(x_1N: torch.Tensor, buckets: Buckets) -> list[torch.Tensor]:
    """(1, N, …) to a view (B, T, …) for each bucket. Raises RuntimeError (of torch) where N is not their sum."""
    # `split` and not slices: the gradient of a slice is a tensor of all N, for each bucket.
    parts = x_1N.squeeze(0).split([rows * length for rows, length in buckets])
    return [part.unflatten(0, shape) for part, shape in zip(parts, buckets, strict=True)]


def join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """(B, T, …) of each bucket to (1, N, …)."""
    return torch.cat([part.flatten(0, 1) for part in parts])[None]


def positions_in_rows(buckets: Buckets, device: torch.device) -> torch.Tensor:
    """Positions (1, N), each row counted from 0, in fp32."""
    return torch.cat([torch.arange(length, device=device).repeat(rows) for rows, length in buckets])[None].float()
