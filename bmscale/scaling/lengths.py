"""How long the texts of a study are, and how much of them a step holds: what a step costs goes by both."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bmscale.data.manifest import MANIFEST
from bmscale.data.prepare import DataConfig
from bmscale.data.steps import StepPlan
from bmscale.data.synthetic import SPELLINGS, chunks
from bmscale.data.tokenizer import SPECIAL_PIECES
from bmscale.errors import BadInput
from bmscale.experiment import Experiment, RowTrainingConfig, TrainingConfig
from bmscale.training.pair_data import PairData
from bmscale.training.row_data import RowData
from bmscale.training.step_data import mixture_of_pairs

Lengths = NDArray[np.int32]
ROWS = 4096
"""Packed rows that are measured, in whole steps."""
PAIRS, STEPS = 65_536, 256
"""The steps of so many pairs are planned, or of so many more as make STEPS steps; of a smaller corpus those of all."""


@dataclass(frozen=True)
class Texts:
    """The texts that steps are made of."""

    first: NDArray[np.int64]
    """Tokens of sources with </s>; of packed rows, those that attention sees at once."""
    targets: NDArray[np.int64] | None
    """Tokens of targets with </s>; None for packed rows."""
    read_per_step: float
    """Tokens of `targets`, or of `first` where there are none, in a step on average."""
    tokens_per_step: float
    """Those of them that are learnt from, as D counts them. A step takes whole bundles of pairs, or whole rows, up to
    training.tokens_per_step. The short step at the end of an epoch counts where that end was measured."""


def measure(experiment: Experiment) -> Texts:
    """The texts of an experiment's training data.

    Where documents of a row do not see each other `first` has pieces of documents. A synthetic corpus that is the only
    one is measured without being prepared. Raises BadInput where other data is not prepared yet.
    """
    training, data = experiment.training, experiment.data
    assert isinstance(data, DataConfig) or isinstance(training, RowTrainingConfig)
    if isinstance(data, DataConfig) and training.sampling is None and _is_spelt(data):
        only = data.train[0]
        assert only.synthetic is not None
        assert only.pairs is not None
        begin = next(chunks(only.synthetic, only.pairs, only.seed))
        count = min(only.pairs, _enough(begin.lengths + np.int32(1), training))
        lengths = np.concatenate([chunk.lengths + 1 for chunk in chunks(only.synthetic, count, only.seed)])
        if lengths.max() <= min(data.max_source_tokens, data.max_target_tokens):
            return _of_pairs(lengths, lengths, training, is_all=count == only.pairs)
    folder = Path(data.directory)
    if not (folder / MANIFEST).is_file():
        raise BadInput(
            f"{folder}: must be prepared before budgets can be counted: it holds no {MANIFEST}; "
            "`bmscale scaling run STUDY --prepare` does it"
        )
    if isinstance(training, RowTrainingConfig):
        return _of_rows(RowData(experiment), training)
    prepared = PairData(experiment)
    sources, targets = prepared.train.source_lengths, prepared.train.target_lengths
    mixture = mixture_of_pairs(training, prepared.manifest["splits"]["train"]["sources"])
    if mixture is not None:
        drawn = mixture.draw(training.seed, 0)
        sources, targets = sources[drawn], targets[drawn]
    enough = _enough(targets, training)
    if enough >= len(targets):
        return _of_pairs(sources, targets, training, is_all=True)
    some = np.random.default_rng(0).integers(len(targets), size=enough)
    return _of_pairs(sources[some], targets[some], training, is_all=False)


def _is_spelt(data: DataConfig) -> bool:
    """Whether the only corpus is a synthetic one, and a token is one of its syllables."""
    return (
        len(data.train) == 1
        and data.train[0].synthetic is not None
        and data.tokenizer.type == "word"
        and data.tokenizer.path is None
        and data.tokenizer.vocabulary_size >= len(SPELLINGS) + len(SPECIAL_PIECES)
        and not data.language_tags
    )


def _enough(targets: Lengths, training: TrainingConfig) -> int:
    """How many pairs of such targets are to be planned."""
    return max(PAIRS, math.ceil(STEPS * training.tokens_per_step / float(targets.mean())))


def _of_pairs(sources: Lengths, targets: Lengths, training: TrainingConfig, *, is_all: bool) -> Texts:
    plan = StepPlan(sources, targets, seed=training.seed, tokens_per_step=training.tokens_per_step)
    steps = plan.steps_in_epoch(0)
    if not is_all:
        steps = max(1, steps - 1)  # the end of this sample is no end of an epoch
    tokens = sum(int(targets[plan.pairs(step)].sum()) for step in range(steps)) / steps
    return Texts(sources.astype(np.int64), targets.astype(np.int64), tokens, tokens)


def _of_rows(data: RowData, training: RowTrainingConfig) -> Texts:
    plan = data.plan()
    least = -(-ROWS // plan.rows_per_step)
    steps = range(min(least, plan.steps_in_epoch(0)))
    pieces = np.concatenate([plan.pieces(step, joined=training.attend_across_documents) for step in steps])
    predicted = sum(plan.predicted_tokens(step) for step in steps)
    return Texts(pieces, None, int(pieces.sum()) / len(steps), predicted / len(steps))
