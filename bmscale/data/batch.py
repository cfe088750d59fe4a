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


Buckets = tuple[tuple[int, int], ...]
"""(rows, length) of each bucket of a batch, as model/buckets.py takes them."""


class Batch:
    """Tensors on their way into a model: a dataclass whose fields are called as the arguments of its `forward`."""

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        moved = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if torch.is_tensor(value)
        }
        return replace(self, **moved)  # type: ignore[type-var]

    @property
    def targets(self) -> torch.Tensor:
        """What the loss is computed against, IGNORED where nothing is predicted."""
        return vars(self).get("shift_labels", vars(self).get("labels"))  # type: ignore[return-value]

    @property
    def target_tokens(self) -> int:
        """How many predictions count in the loss."""
        return int((self.targets != IGNORED).sum())

    @property
    def slots(self) -> int:
        """Places for the tokens that the model reads, padding included."""
        return sum(value.numel() for name, value in vars(self).items() if name.endswith("input_ids"))

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
    """B sentence pairs, padded on the right. S and T are the longest source and target of the batch.

    With buckets, B is 1 and the rows of all of them lie one behind the other (model/buckets.py).
    """

    input_ids: torch.Tensor
    """(B, S) source pieces with the final </s>."""
    attention_mask: torch.Tensor
    """(B, S) bool: True is a real source piece, False is padding."""
    decoder_input_ids: torch.Tensor
    """(B, T) target pieces shifted right by one behind </s>, the decoder's start."""
    labels: torch.Tensor
    """(B, T) target pieces with the final </s>; IGNORED where padding is."""
    source_buckets: Buckets | None = None
    target_buckets: Buckets | None = None
    """Those of their targets: as many, of as many rows."""

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
    buckets: Buckets | None = None
    """Where there are some, the texts lie one behind the other in one row."""


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
    """These pairs, padded to the longest."""
    sources, targets = zip(*(source.pair(int(index)) for index in ids), strict=True)
    return make_batch(sources, targets)


def read_buckets(source: PairSource, buckets: Sequence[Sequence[int] | np.ndarray]) -> PairBatch:
    """The pairs of each bucket, as one batch; an empty batch when there are none."""
    if not buckets:
        return empty_batch()
    parts = [read_batch(source, ids) for ids in buckets]
    return PairBatch(
        **_laid_out(parts, "input_ids", "attention_mask", "decoder_input_ids", "labels"),
        source_buckets=_buckets([part.input_ids for part in parts]),
        target_buckets=_buckets([part.labels for part in parts]),
    )


def _laid_out(parts: Sequence[Batch], *names: str) -> dict[str, torch.Tensor]:
    """Tensors (B, T) of each bucket as one of (1, N)."""
    return {name: torch.cat([vars(part)[name].flatten() for part in parts])[None] for name in names}


def _buckets(rows: Sequence[torch.Tensor]) -> Buckets:
    return tuple((len(tensor), tensor.shape[1]) for tensor in rows)


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
    """Labelled texts: pairs of a text and the one token of its label, padded to the longest."""
    texts, labels = zip(*(source.pair(int(index)) for index in ids), strict=True)
    input_ids = pad_rows(texts, PAD)
    return TextBatch(input_ids, input_ids != PAD, torch.tensor([int(label[0]) for label in labels]))


def text_buckets(source: PairSource, buckets: Sequence[Sequence[int] | np.ndarray]) -> TextBatch:
    """The texts of each bucket, as one batch; an empty batch when there are none."""
    if not buckets:
        none = torch.full((1, 1), EOS)
        return TextBatch(none, torch.ones_like(none, dtype=torch.bool), torch.tensor([IGNORED]))
    parts = [text_batch(source, ids) for ids in buckets]
    return TextBatch(
        **_laid_out(parts, "input_ids", "attention_mask"),
        labels=torch.cat([part.labels for part in parts]),
        buckets=_buckets([part.input_ids for part in parts]),
    )
