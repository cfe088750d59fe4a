"""Validation of a classifier inside the training loop."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from bmscale.data.batch import IGNORED, text_buckets
from bmscale.data.micro_batches import MicroBatch
from bmscale.data.shards import PairShards
from bmscale.engine import process_group
from bmscale.engine.engine import Engine
from bmscale.evaluation.classification import score_labels
from bmscale.evaluation.loss import ValidationLoss
from bmscale.evaluation.validation import Validation


class LabelValidator:
    """Scores the engine's model on labelled texts."""

    def __init__(
        self,
        engine: Engine,
        texts: PairShards,
        rounds: Sequence[Sequence[MicroBatch]],
        labels: Sequence[str],
    ) -> None:
        """`rounds[round][rank]` holds the numbers of texts of a batch, as `split_step` deals them out."""
        self._engine, self._texts, self._rounds, self._labels = engine, texts, rounds, labels

    def run(self, between: Callable[[], None] = lambda: None) -> Validation:
        """Validate. Collective: every rank takes its share and all get the result."""
        engine, mine = self._engine, []
        with engine.evaluation() as model:
            for ranks in self._rounds:
                between()
                batch = text_buckets(self._texts, ranks[engine.rank]).to(engine.device)
                inputs = {name: value for name, value in vars(batch).items() if name != "labels"}
                logits = model(**inputs).logits.float()
                kept = batch.labels != IGNORED
                losses = torch.nn.functional.cross_entropy(logits[kept], batch.labels[kept], reduction="none")
                rows = torch.stack([losses, logits[kept].argmax(-1).float(), batch.labels[kept].float()])
                mine.append(rows.cpu().double().numpy())
        found = np.concatenate([share for shares in process_group.gather_objects(mine) for share in shares], axis=1)
        # In one order, whatever the ranks: so is the sum of the losses.
        losses, predicted, wanted = found[:, np.lexsort(found)]
        given, asked = ([self._labels[int(label)] for label in side] for side in (predicted, wanted))
        scores = score_labels(asked, given)
        return Validation(
            ValidationLoss(float(losses.mean()), len(losses)),
            {name: score["score"] for name, score in scores.items()},
            {name: score["plus_minus"] for name, score in scores.items()},
        )
