"""How well a masked language model says what stands under its masks."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from bmscale.data.batch import MaskedBatch
from bmscale.errors import BadInput
from bmscale.evaluation.loss import batch_loss


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


def evaluate_masked_lm(model: Any, batches: Iterable[MaskedBatch]) -> MaskedScore:
    """Score masked rows with a bmscale masked language model in evaluation mode, on any device.

    Raises BadInput where no token is masked.
    """
    nll, tokens, correct = 0.0, 0, 0
    with torch.no_grad():
        for batch in batches:
            sums = batch_loss(model, batch.to(model.device))
            nll += float(sums.nll)
            tokens += int(sums.tokens)
            correct += int(sums.correct)  # type: ignore[arg-type]
    if not tokens:
        raise BadInput("batches: no token is masked, so there is nothing to score; give labels other than -100")
    return MaskedScore(nll, tokens, correct)
