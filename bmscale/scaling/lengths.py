"""How long the texts of a study are: what a step costs goes by it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bmscale.data.manifest import MANIFEST
from bmscale.data.prepare import DataConfig
from bmscale.data.shards import PairShards
from bmscale.data.synthetic import CHUNK, chunks
from bmscale.errors import BadInput
from bmscale.experiment import Experiment, RowTrainingConfig

Lengths = NDArray[np.int64]


def text_lengths(experiment: Experiment) -> tuple[Lengths, Lengths | None]:
    """Tokens of sources and of targets with </s>; of packed rows, those of a row and None.

    Of synthetic pairs those of the first ones, so that they are known before the data is prepared. Raises BadInput
    where other data is not prepared yet.
    """
    training, data = experiment.training, experiment.data
    if isinstance(training, RowTrainingConfig):
        return np.array([training.sequence_length]), None
    assert isinstance(data, DataConfig)
    first = data.train[0]
    if first.synthetic is not None:
        chunk = next(chunks(first.synthetic, CHUNK, first.seed))
        return chunk.lengths + 1, chunk.lengths + 1
    folder = Path(data.directory)
    if not (folder / MANIFEST).is_file():
        raise BadInput(f"{folder}: must be prepared before budgets can be counted: it holds no {MANIFEST}")
    shards = PairShards.open(folder / "train")
    return shards.source_lengths.astype(np.int64), shards.target_lengths.astype(np.int64)
