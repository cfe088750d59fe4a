"""How long the texts of a study are: what a step costs goes by it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bmscale.data.manifest import MANIFEST
from bmscale.data.prepare import DataConfig
from bmscale.data.rows import RowPlan
from bmscale.data.shards import DocumentShards, PairShards
from bmscale.data.synthetic import CHUNK, chunks
from bmscale.errors import BadInput
from bmscale.experiment import Experiment, RowTrainingConfig

Lengths = NDArray[np.int64]
ROWS = 4096
"""Packed rows whose documents are measured."""


def text_lengths(experiment: Experiment) -> tuple[Lengths, Lengths | None]:
    """Tokens of sources and of targets with </s>; of packed rows, those that attention sees at once and None.

    Where documents of a row do not see each other these are pieces of documents, of the first ROWS rows. Of synthetic
    pairs those of the first ones, so that they are known before the data is prepared. Raises BadInput where other data
    is not prepared yet.
    """
    training, data = experiment.training, experiment.data
    folder = Path(data.directory)
    if isinstance(training, RowTrainingConfig):
        length = training.sequence_length
        if training.attend_across_documents:
            return np.array([length]), None
        _check_prepared(folder)
        lengths = DocumentShards.open(folder / "train").lengths
        return RowPlan(lengths, sequence_length=length, seed=0, tokens_per_step=ROWS * length).pieces(0), None
    assert isinstance(data, DataConfig)
    first = data.train[0]
    if first.synthetic is not None:
        chunk = next(chunks(first.synthetic, CHUNK, first.seed))
        return chunk.lengths + 1, chunk.lengths + 1
    _check_prepared(folder)
    shards = PairShards.open(folder / "train")
    return shards.source_lengths.astype(np.int64), shards.target_lengths.astype(np.int64)


def _check_prepared(folder: Path) -> None:
    if not (folder / MANIFEST).is_file():
        raise BadInput(
            f"{folder}: must be prepared before budgets can be counted: it holds no {MANIFEST}; "
            "`bmscale scaling run STUDY --prepare` does it"
        )
