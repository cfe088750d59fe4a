"""A batch of token ids on its way into the model: padding, masks and the teacher-forcing shift, in one place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from bmscale.data.tokenizer import EOS, PAD

IGNORED = -100
"""The label that no loss counts (PyTorch's own choice)."""


@dataclass(frozen=True)
class Batch:
    """B sentence pairs, padded on the right. S and T are the longest source and target of the batch."""

    input_ids: torch.Tensor
    """(B, S) source pieces with the final </s>."""
    attention_mask: torch.Tensor
    """(B, S) bool: True is a real source piece, False is padding."""
    decoder_input_ids: torch.Tensor
    """(B, T) target pieces shifted right by one behind </s>, the decoder's start."""
    labels: torch.Tensor
    """(B, T) target pieces with the final </s>; IGNORED where padding is."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})

    @property
    def target_tokens(self) -> int:
        """Target pieces that count in the loss."""
        return int((self.labels != IGNORED).sum())


def pad_rows(rows: Sequence[np.ndarray], value: int) -> torch.Tensor:
    """Rows of token ids as one int64 tensor (B, longest), filled up with `value` on the right."""
    padded = np.full((len(rows), max(len(row) for row in rows)), value, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return torch.from_numpy(padded)


def make_batch(sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> Batch:
    """Pad pairs whose both sides already end in </s>."""
    input_ids, labels = pad_rows(sources, PAD), pad_rows(targets, IGNORED)
    start = torch.full((len(targets), 1), EOS)
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    # Behind its end a target row holds anything: causal attention keeps those slots away from the real ones.
    return Batch(input_ids, input_ids != PAD, shifted.masked_fill(shifted == IGNORED, PAD), labels)


def empty_batch() -> Batch:
    """One row whose labels are all ignored: what a rank without sentences runs, so that collectives still meet."""
    row = np.array([EOS])
    batch = make_batch([row], [row])
    return Batch(batch.input_ids, batch.attention_mask, batch.decoder_input_ids, torch.full_like(batch.labels, IGNORED))


class PairSource(Protocol):
    """Where the tokens of a pair come from: the shards, or a sampler over them."""

    def pair(self, i: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """The token ids of pair `i`, (source, target), each ending with </s>."""
        ...


def read_batch(source: PairSource, ids: Sequence[int] | np.ndarray) -> Batch:
    """The batch of these pairs; an empty batch when there are no ids."""
    if not len(ids):
        return empty_batch()
    pairs = [source.pair(int(index)) for index in ids]
    return make_batch([source for source, _ in pairs], [target for _, target in pairs])
