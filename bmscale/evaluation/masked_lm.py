"""How well a masked language model says what stands under its masks."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bmscale.data.tokenizer import PAD
from bmscale.errors import BadInput
from bmscale.model.loss import IGNORED


@dataclass(frozen=True)
class MaskedRow:
    """One text with masks in it, or several packed one behind the other."""

    input_ids: np.ndarray
    labels: np.ndarray
    """What was there before a token was masked, -100 where nothing is asked."""
    segment_ids: np.ndarray | None = None
    """A number for each text of a packed row, from 1 (`bmscale.model.masks`); None for one text."""


@dataclass(frozen=True)
class MaskedScore:
    """Loss and accuracy over the masked tokens of a set."""

    nll_sum: float
    """In nats."""
    tokens: int
    correct: int

    @property
    def loss(self) -> float:
        """Nats a masked token."""
        return self.nll_sum / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss), a masked token."""
        return math.exp(min(self.loss, 700.0))

    @property
    def accuracy(self) -> float:
        """Share of masked tokens whose most probable piece is the right one, 0 to 1."""
        return self.correct / self.tokens


def evaluate_masked_lm(model: Any, rows: Iterable[MaskedRow], *, max_batch_tokens: int = 8192) -> MaskedScore:
    """Score masked rows, in their order, with a bmscale masked language model in evaluation mode.

    A batch holds at most `max_batch_tokens` padded tokens; a longer row is alone in its own. Padding is least where
    neighbours are of like length. Raises BadInput where no token is masked.
    """
    nll, tokens, correct = 0.0, 0, 0
    with torch.no_grad():
        for batch in _batches(rows, max_batch_tokens):
            sums = model(**_tensors(batch, model.device), return_loss_sums=True)
            nll += float(sums.nll)
            tokens += int(sums.tokens)
            correct += int(sums.correct)
    if not tokens:
        raise BadInput("rows: no token is masked, so there is nothing to score; give labels other than -100")
    return MaskedScore(nll, tokens, correct)


def _batches(rows: Iterable[MaskedRow], max_batch_tokens: int) -> Iterator[list[MaskedRow]]:
    batch: list[MaskedRow] = []
    width = 0
    for row in rows:
        width = max(width, len(row.input_ids))
        if batch and (len(batch) + 1) * width > max_batch_tokens:
            yield batch
            batch, width = [], len(row.input_ids)
        batch.append(row)
    if batch:
        yield batch


def _tensors(batch: list[MaskedRow], device: torch.device) -> dict[str, torch.Tensor]:
    shape = (len(batch), max(len(row.input_ids) for row in batch))
    filled = {"input_ids": PAD, "labels": IGNORED, "segment_ids": 0}
    tensors = {name: np.full(shape, value, dtype=np.int64) for name, value in filled.items()}
    for place, row in enumerate(batch):
        length = len(row.input_ids)
        tensors["input_ids"][place, :length] = row.input_ids
        tensors["labels"][place, :length] = row.labels
        tensors["segment_ids"][place, :length] = 1 if row.segment_ids is None else row.segment_ids
    return {name: torch.from_numpy(values).to(device) for name, values in tensors.items()}
