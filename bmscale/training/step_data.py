"""What a run trains on: the prepared folder, its plan of global steps, and this rank's batches of each step."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bmscale.data.batch import Batch, PairSource, read_batch
from bmscale.data.manifest import load_manifest
from bmscale.data.prepare import DataConfig
from bmscale.data.shards import PairShards
from bmscale.data.steps import Mixture, StepPlan, split_step
from bmscale.data.subwords import SampledPairs
from bmscale.data.tokenizer import Tokenizer
from bmscale.engine import process_group
from bmscale.errors import BadInput
from bmscale.experiment import Experiment, SamplingConfig, TrainingConfig
from bmscale.model import EncoderDecoderConfig
from bmscale.model.flops import training_flops
from bmscale.training import record


@dataclass(frozen=True)
class PreparedData:
    """A prepared folder, opened."""

    folder: Path
    manifest: dict[str, Any]
    train: PairShards
    valid: PairShards
    tokenizer: Tokenizer

    @classmethod
    def open(cls, config: DataConfig) -> "PreparedData":
        """Raises BadInput when the folder is missing, unfinished, damaged, or was prepared from another `data:`."""
        folder = Path(config.directory)
        manifest = load_manifest(folder)
        given = {**config.model_dump(mode="json"), "directory": manifest["config"].get("directory")}
        changed = [
            f"data.{key}: was {was!r}, now {now!r}" for key, was, now in record.differences(manifest["config"], given)
        ]
        if changed:
            raise BadInput(
                f"{folder}: was prepared from another configuration; {'; '.join(changed)}. Prepare it again with "
                "`bmscale prepare CONFIG --force`, or choose another data.directory"
            )
        tokenizer = Tokenizer.load(folder / "spiece.model")
        return cls(folder, manifest, PairShards.open(folder / "train"), PairShards.open(folder / "valid"), tokenizer)

    def plan(self, training: TrainingConfig) -> StepPlan:
        """The global steps. Raises BadInput for what the data cannot give."""
        if training.subword_sampling is not None and not self.train.has_texts:
            raise BadInput(
                "training.subword_sampling: needs the text beside the tokens; set data.keep_text: true and prepare "
                "the data again"
            )
        if training.subword_sampling is not None and not self.tokenizer.is_unigram:
            raise BadInput(
                "training.subword_sampling: needs a unigram tokenizer, whose segmentations have probabilities; got a "
                "BPE one. Set data.tokenizer.type: unigram and prepare the data again"
            )
        sources = self.manifest["splits"]["train"]["sources"]
        return StepPlan(
            self.train.source_lengths,
            self.train.target_lengths,
            seed=training.seed,
            tokens_per_step=training.tokens_per_step,
            mixture=None if training.sampling is None else _mixture(training.sampling, sources),
        )


def _mixture(config: SamplingConfig, sources: Sequence[dict[str, Any]]) -> Mixture:
    """Raises BadInput where the weights are not those of the sources."""
    names, sizes = [source["name"] for source in sources], [source["pairs_kept"] for source in sources]
    if config.weights is None:
        return Mixture.by_temperature(sizes, config.temperature or 1.0)
    if sorted(names) != sorted(config.weights):
        raise BadInput(
            "training.sampling.weights: must have one weight for each training corpus by its name, which are "
            f"{', '.join(names)}; got {', '.join(config.weights)}. Set `name` of a corpus to tell two apart"
        )
    empty = [name for name, size in zip(names, sizes, strict=True) if not size]
    if empty:
        raise BadInput(f"training.sampling.weights: cleaning left no pair of {empty[0]}; take it out of data.train")
    return Mixture.by_weight(sizes, [config.weights[name] for name in names])


@dataclass(frozen=True)
class StepData:
    """What one rank trains on in one global step, and counts of the whole step over all ranks."""

    batches: list[Batch]
    target_tokens: int
    tokens: int
    """Source and target tokens."""
    flops: float


class StepReader:
    """Reads this rank's batches of each step while the step before is trained on."""

    def __init__(
        self,
        experiment: Experiment,
        data: PreparedData,
        plan: StepPlan,
        config: EncoderDecoderConfig,
        rank: int,
        world_size: int,
        at: Callable[[str, int], None] = lambda phase, step: None,
    ) -> None:
        """`at` hears what is waited for, and for which step (1 for the run's first)."""
        self._at = at
        self._training, self._data, self._plan, self._config = experiment.training, data, plan, config
        self._limits = experiment.data.max_source_tokens, experiment.data.max_target_tokens
        self._rank, self._world_size = rank, world_size

    def steps(self, first: int, end: int) -> Iterator[StepData]:
        """Steps `first` up to, not including, `end`. Collective where subwords are sampled."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="data reader") as reader:
            waiting = None
            for step in range(first, end + 1):
                upcoming = reader.submit(self._read, step) if step < end else None
                if waiting is not None:
                    self._at("reading data", step)
                    step_data = waiting.result()
                    if self._training.subword_sampling is not None:
                        self._at("counting tokens", step)
                        step_data = self._counted(step_data)
                    yield step_data
                waiting = upcoming

    def _read(self, step: int) -> StepData:
        shards, sampling = self._data.train, self._training.subword_sampling
        pairs = self._plan.pairs(step)
        rounds = split_step(
            pairs,
            shards.source_lengths,
            shards.target_lengths,
            world_size=self._world_size,
            max_micro_batch_tokens=self._training.max_micro_batch_tokens,
        )
        source: PairSource = shards
        if sampling is not None:
            source = SampledPairs(
                shards, self._data.tokenizer, sampling.alpha, (self._training.seed, step), self._limits
            )
        batches = [read_batch(source, ranks[self._rank]) for ranks in rounds]
        sources, targets = shards.source_lengths[pairs], shards.target_lengths[pairs]
        return StepData(
            batches=batches,
            target_tokens=int(targets.sum()),
            tokens=int(sources.sum() + targets.sum()),
            flops=float(np.sum(training_flops(self._config, sources, targets))),
        )

    def _counted(self, step: StepData) -> StepData:
        """With sampled subwords only the ranks together know how many tokens the step has; the loss is a mean over
        them."""
        targets = sum(batch.target_tokens for batch in step.batches)
        sources = sum(int(batch.attention_mask.sum()) for batch in step.batches if batch.target_tokens)
        target_tokens, tokens = process_group.sum_over_ranks(torch.tensor([targets, targets + sources])).tolist()
        return replace(step, target_tokens=target_tokens, tokens=tokens, flops=step.flops * tokens / step.tokens)
