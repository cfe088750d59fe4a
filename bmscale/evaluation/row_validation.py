"""Validation of language models and masked ones inside the training loop, on packed rows."""

import math
from collections.abc import Callable

import torch

from bmscale.data.batch import Batch
from bmscale.engine import process_group
from bmscale.engine.engine import Engine
from bmscale.evaluation.loss import ValidationLoss, batch_loss
from bmscale.evaluation.validation import Validation


class RowValidator:
    """Scores the engine's model on rows that are always the same."""

    def __init__(
        self,
        engine: Engine,
        read: Callable[[list[int]], Batch],
        rows: int,
        rows_per_batch: int,
        text_bytes: int | None,
    ) -> None:
        """`read` gives the batch of rows 0 … rows - 1. With `text_bytes`, of all of them, bits per byte are given;
        without, which share of the predictions is right."""
        self._engine, self._read, self._rows, self._rows_per_batch = engine, read, rows, rows_per_batch
        self._text_bytes = text_bytes

    def run(self, between: Callable[[], None] = lambda: None) -> Validation:
        """Validate. Collective: every rank takes its share and all get the result."""
        engine = self._engine
        wide = torch.float32 if engine.device.type == "mps" else torch.float64  # Apple's GPUs have no fp64
        sums = torch.zeros(3, dtype=wide, device=engine.device)
        batches = [
            list(range(first, min(first + self._rows_per_batch, self._rows)))
            for first in range(0, self._rows, self._rows_per_batch)
        ]
        batches += [[]] * (-len(batches) % engine.world_size)
        with engine.evaluation() as model:
            for rows in batches[engine.rank :: engine.world_size]:
                between()
                found = batch_loss(model, self._read(rows).to(engine.device))
                sums += torch.stack([found.nll.to(wide), found.tokens.to(wide), found.correct.to(wide)])  # type: ignore[union-attr]
        process_group.sum_over_ranks(sums)
        nll, tokens, correct = sums.tolist()
        count = max(1.0, tokens)
        if self._text_bytes is None:
            scores = {"accuracy": 100 * correct / count}
        else:
            scores = {"bits_per_byte": nll / math.log(2) / self._text_bytes}
        return Validation(ValidationLoss(nll / count, int(tokens)), scores, {})
