"""Which tokens see which, also where a row holds several documents.

A packed row is described by `segment_ids` (B, T): one number for all tokens of a document, another for the next one, 0
for padding. Token q then sees token k only where their numbers are equal (and k is not behind q where the model is
causal): a block-diagonal mask (B, 1, T, T), True where q sees k, made once a forward pass for all layers. PyTorch's
kernels compute all T x T scores under it. Where no row has a second document no mask is made and the causal kernel
runs, which skips half the scores (on a GPU that is FlashAttention), so a batch of unpacked rows is best given without.
"""

from collections.abc import Callable, Sequence

import torch
from transformers import Cache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

from bmscale.model.buckets import BucketMask, Buckets, cut
from bmscale.model.config import TransformerConfig


def find_segments(
    segment_ids: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    cache: Cache | None,
) -> torch.Tensor | None:
    """The documents of packed rows: `segment_ids` (B, T), or counted from `position_ids` that start anew inside of a
    row, which is how transformers packs. None where each row is one document.

    Raises ValueError for `segment_ids` beside a cache, whose tokens have no number.
    """
    if segment_ids is not None:
        if cache is not None:
            raise ValueError("segment_ids describe whole rows and must not be given with past_key_values; got both")
        return segment_ids
    if position_ids is None or attention_mask is not None or cache is not None or torch.compiler.is_compiling():
        return None
    restarts = position_ids.diff(dim=-1, prepend=position_ids[:, :1] - 1) != 1
    return restarts.cumsum(-1) + 1 if restarts.any() else None


def causal_mask(
    config: TransformerConfig,
    x_BTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segment_ids: torch.Tensor | None,
    cache: Cache | None,
) -> torch.Tensor | None:
    """The mask of the configured kernel; None where it is causal by itself. Padding on the right needs no
    `attention_mask`: the order hides it."""
    if segment_ids is None or _are_single(segment_ids):
        return create_causal_mask(config, x_BTD, attention_mask, cache)
    same = _same_segment(config, segment_ids, len(x_BTD))
    return create_causal_mask(config, x_BTD, attention_mask, cache, and_mask_function=same)


def bidirectional_mask(
    config: TransformerConfig,
    x_BTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segment_ids: torch.Tensor | None,
) -> torch.Tensor | None:
    """The mask of the configured kernel; None where every token sees every other."""
    if segment_ids is None:
        return create_bidirectional_mask(config, x_BTD, attention_mask)
    if _are_single(segment_ids):
        real = (segment_ids != 0).expand(len(x_BTD), -1)
        return create_bidirectional_mask(
            config, x_BTD, real if attention_mask is None else real & attention_mask.bool()
        )
    same = _same_segment(config, segment_ids, len(x_BTD))
    return create_bidirectional_mask(config, x_BTD, attention_mask, and_mask_function=same)


def bucket_mask(
    config: TransformerConfig, x_1ND: torch.Tensor, attention_mask: torch.Tensor | None, buckets: Buckets
) -> BucketMask:
    """Every token sees all real ones of its row."""
    rows, reals = cut(x_1ND, buckets), _cut_mask(attention_mask, buckets)
    masks = [create_bidirectional_mask(config, *row) for row in zip(rows, reals, strict=True)]
    return BucketMask(buckets, buckets, masks)


def cross_bucket_mask(
    config: TransformerConfig,
    x_1ND: torch.Tensor,
    source_1ND: torch.Tensor,
    source_attention_mask: torch.Tensor | None,
    buckets: tuple[Buckets, Buckets],
) -> BucketMask:
    """Every token of a target sees all real ones of its source; `buckets` are those of sources and targets."""
    sources, targets = buckets
    rows = zip(cut(x_1ND, targets), _cut_mask(source_attention_mask, sources), cut(source_1ND, sources), strict=True)
    masks = [
        create_bidirectional_mask(config, x_BTD, real_BS, encoder_hidden_states=source_BSD)
        for x_BTD, real_BS, source_BSD in rows
    ]
    return BucketMask(targets, sources, masks)


def _cut_mask(attention_mask: torch.Tensor | None, buckets: Buckets) -> Sequence[torch.Tensor | None]:
    return [None] * len(buckets) if attention_mask is None else cut(attention_mask, buckets)


def causal_bucket_mask(config: TransformerConfig, x_1ND: torch.Tensor, buckets: Buckets) -> BucketMask:
    """Every token sees itself and those before it in its row. Padding on the right is hidden by the order."""
    return BucketMask(
        buckets, buckets, [create_causal_mask(config, state, None, None) for state in cut(x_1ND, buckets)]
    )


def _are_single(segment_ids: torch.Tensor) -> bool:
    """Whether each row is one document, and padding behind it. Reading the numbers waits for the device once."""
    if torch.compiler.is_compiling():
        return False
    return bool(((segment_ids == segment_ids[:, :1]) | (segment_ids == 0)).all())


def _same_segment(
    config: TransformerConfig, segment_ids: torch.Tensor, batch: int
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    if "flash" in config._attn_implementation:
        raise ValueError(
            "segment_ids need attn_implementation sdpa, eager or flex_attention, which take a mask; got "
            f"{config._attn_implementation}"
        )
    number_BT = segment_ids.expand(batch, -1)

    def same(b: torch.Tensor, _: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return number_BT[b, q] == number_BT[b, k]

    return same
