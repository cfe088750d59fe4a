"""How long the texts of a study are, and how much of them a step holds: what a step costs goes by both."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bmscale.data.manifest import MANIFEST
from bmscale.data.prepare import DataConfig
from bmscale.data.rows import RowPlan
from bmscale.data.shards import DocumentShards, PairShards
from bmscale.data.steps import StepPlan
from bmscale.data.synthetic import chunks
from bmscale.errors import BadInput
from bmscale.experiment import Experiment, RowTrainingConfig
from bmscale.training.step_data import plan_of_pairs

Lengths = NDArray[np.int64]
ROWS = 4096
"""Packed rows whose documents are measured."""
PAIRS = 65_536
"""Synthetic pairs that are measured: the tokens of a step to 0.01 %."""


@dataclass(frozen=True)
class Texts:
    """The texts that steps are made of."""

    first: Lengths
    """Tokens of sources with </s>; of packed rows, those that attention sees at once."""
    targets: Lengths | None
    """Tokens of targets with </s>; None for packed rows."""
    tokens_per_step: float
    """Target tokens of a step on average: it takes whole pairs up to training.tokens_per_step."""


def measure(experiment: Experiment) -> Texts:
    """The texts of an experiment's training data.

    Where documents of a row do not see each other `first` has pieces of documents, of the first ROWS rows. Synthetic
    pairs are measured by the first ones, so that they are known before the data is prepared. Raises BadInput where
    other data is not prepared yet.
    """
    training, data = experiment.training, experiment.data
    folder = Path(data.directory)
    if isinstance(training, RowTrainingConfig):
        length = training.sequence_length
        if training.attend_across_documents:
            return Texts(np.array([length]), None, float(training.tokens_per_step))
        _check_prepared(folder)
        lengths = DocumentShards.open(folder / "train").lengths
        rows = RowPlan(lengths, sequence_length=length, seed=0, tokens_per_step=ROWS * length)
        return Texts(rows.pieces(0), None, float(training.tokens_per_step))
    assert isinstance(data, DataConfig)
    first = data.train[0]
    if first.synthetic is not None:
        drawn = [chunk.lengths + 1 for chunk in chunks(first.synthetic, PAIRS, first.seed)]
        lengths = np.concatenate(drawn)
        plan = StepPlan(lengths, lengths, seed=training.seed, tokens_per_step=training.tokens_per_step)
        # A corpus of many more pairs has one short step at its end too, but not one in so few.
        whole = max(1, plan.steps_in_epoch(0) - 1)
        tokens = sum(int(lengths[plan.pairs(step)].sum()) for step in range(whole))
        return Texts(lengths.astype(np.int64), lengths.astype(np.int64), tokens / whole)
    _check_prepared(folder)
    shards = PairShards.open(folder / "train")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    plan = plan_of_pairs(shards, training, manifest["splits"]["train"]["sources"])
    steps = plan.steps_in_epoch(0)
    pairs = np.concatenate([plan.pairs(step) for step in range(steps)])
    targets = shards.target_lengths[pairs].astype(np.int64)
    return Texts(shards.source_lengths[pairs].astype(np.int64), targets, int(targets.sum()) / steps)


def _check_prepared(folder: Path) -> None:
    if not (folder / MANIFEST).is_file():
        raise BadInput(
            f"{folder}: must be prepared before budgets can be counted: it holds no {MANIFEST}; "
            "`bmscale scaling run STUDY --prepare` does it"
        )
