"""A batch of token ids on its way into the model: padding, masks and the teacher-forcing shift, in one place."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from bmscale.data.rows import Row
from bmscale.data.tokenizer import EOS, PAD

IGNORED = -100
"""The label that no loss counts (PyTorch's own choice)."""


class Batch:
    """Tensors on their way into a model: a dataclass whose fields are called as the arguments of its `forward`."""

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        return type(self)(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})

    @property
    def targets(self) -> torch.Tensor:
        """What the loss is computed against, IGNORED where nothing is predicted."""
        return vars(self).get("shift_labels", vars(self).get("labels"))  # type: ignore[return-value]

    @property
    def target_tokens(self) -> int:
        """How many predictions count in the loss."""
        return int((self.targets != IGNORED).sum())

    @property
    def tokens(self) -> int:
        """Tokens that the model reads, without padding; none of a batch with nothing to predict."""
        read: torch.Tensor = vars(self)["segment_ids" if "segment_ids" in vars(self) else "attention_mask"]
        return int((read > 0).sum()) if self.target_tokens else 0

    def empty(self) -> Self:
        """The same shape with nothing to predict: what a rank without data runs, so that collectives still meet."""
        name = "shift_labels" if "shift_labels" in vars(self) else "labels"
        return replace(self, **{name: torch.full_like(self.targets, IGNORED)})  # type: ignore[type-var]


@dataclass(frozen=True)
class PairBatch(Batch):
    """B sentence pairs, padded on the right. S and T are the longest source and target of the batch."""

    input_ids: torch.Tensor
    """(B, S) source pieces with the final </s>."""
    attention_mask: torch.Tensor
    """(B, S) bool: True is a real source piece, False is padding."""
    decoder_input_ids: torch.Tensor
    """(B, T) target pieces shifted right by one behind </s>, the decoder's start."""
    labels: torch.Tensor
    """(B, T) target pieces with the final </s>; IGNORED where padding is."""

    @property
    def tokens(self) -> int:
        return super().tokens + self.target_tokens


@dataclass(frozen=True)
class RowBatch(Batch):
    """B packed rows of T tokens."""

    input_ids: torch.Tensor
    """(B, T) tokens; padded behind the last row of an epoch."""
    segment_ids: torch.Tensor
    """(B, T) the document of each token, from 1 in each row; 0 for padding."""

    def joined(self) -> Self:
        """Each row as one document: every token sees all of them."""
        return replace(self, segment_ids=(self.segment_ids > 0).to(self.segment_ids.dtype))


@dataclass(frozen=True)
class CausalBatch(RowBatch):
    """Rows for a language model."""

    shift_labels: torch.Tensor
    """(B, T) the token that follows in the document; IGNORED behind its last one."""


@dataclass(frozen=True)
class MaskedBatch(RowBatch):
    """Rows of which some tokens are hidden, mostly by <mask>."""

    labels: torch.Tensor
    """(B, T) what the chosen tokens were; IGNORED elsewhere."""


@dataclass(frozen=True)
class TextBatch(Batch):
    """B texts to be classified, padded on the right."""

    input_ids: torch.Tensor
    """(B, T) <s> text </s>."""
    attention_mask: torch.Tensor
    """(B, T) bool: True is a real token, False is padding."""
    labels: torch.Tensor
    """(B,) the class of each text."""


def pad_rows(rows: Sequence[np.ndarray], value: int) -> torch.Tensor:
    """Rows of token ids as one int64 tensor (B, longest), filled up with `value` on the right."""
    padded = np.full((len(rows), max(len(row) for row in rows)), value, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return torch.from_numpy(padded)


def make_batch(sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> PairBatch:
    """Pad pairs whose both sides already end in </s>."""
    input_ids, labels = pad_rows(sources, PAD), pad_rows(targets, IGNORED)
    start = torch.full((len(targets), 1), EOS)
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    # Behind its end a target row holds anything: causal attention keeps those slots away from the real ones.
    return PairBatch(input_ids, input_ids != PAD, shifted.masked_fill(shifted == IGNORED, PAD), labels)


def empty_batch() -> PairBatch:
    """One row with nothing to predict."""
    row = np.array([EOS])
    return make_batch([row], [row]).empty()


class PairSource(Protocol):
    """Where the tokens of a pair come from: the shards, or a sampler over them."""

    def pair(self, i: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """The token ids of pair `i`, (source, target), each ending with </s>."""
        ...


def read_batch(source: PairSource, ids: Sequence[int] | np.ndarray) -> PairBatch:
    """The batch of these pairs; an empty batch when there are no ids."""
    if not len(ids):
        return empty_batch()
    pairs = [source.pair(int(index)) for index in ids]
    return make_batch([source for source, _ in pairs], [target for _, target in pairs])


def causal_batch(rows: Sequence[Row]) -> CausalBatch:
    """Rows as they are trained on by a language model."""
    following = pad_rows([row.next_tokens for row in rows], IGNORED)
    return CausalBatch(*_padded(rows), following.masked_fill(following < 0, IGNORED))


def masked_batch(rows: Sequence[Row], masked: Sequence[tuple[np.ndarray, np.ndarray]]) -> MaskedBatch:
    """Rows with the (tokens, labels) of `Masking.hide` for each."""
    _, segments = _padded(rows)
    tokens, labels = zip(*masked, strict=True)
    return MaskedBatch(pad_rows(tokens, PAD), segments, pad_rows(labels, IGNORED))


def _padded(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    return pad_rows([row.tokens for row in rows], PAD), pad_rows([row.segments for row in rows], 0)


def text_batch(source: PairSource, ids: Sequence[int] | np.ndarray) -> TextBatch:
    """Labelled texts: pairs of a text and the one token of its label. An empty batch when there are no ids."""
    if not len(ids):
        none = torch.full((1, 1), EOS)
        return TextBatch(none, torch.ones_like(none, dtype=torch.bool), torch.tensor([IGNORED]))
    texts, labels = zip(*(source.pair(int(index)) for index in ids), strict=True)
    input_ids = pad_rows(texts, PAD)
    return TextBatch(input_ids, input_ids != PAD, torch.tensor([int(label[0]) for label in labels]))
