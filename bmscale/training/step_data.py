"""What a run trains on, whatever its task: a prepared folder, its plan of global steps, this rank's batches of each."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from bmscale.data.batch import Batch
from bmscale.data.manifest import Kind, load_manifest
from bmscale.data.shards import PairShards
from bmscale.data.steps import Mixture, Plan, StepPlan
from bmscale.data.tokenizer import Tokenizer
from bmscale.engine import process_group
from bmscale.engine.engine import Engine
from bmscale.errors import BadInput
from bmscale.evaluation.validation import Validation
from bmscale.experiment import Experiment, SamplingConfig, TrainingConfig
from bmscale.model.config import TransformerConfig
from bmscale.training import record


@dataclass(frozen=True)
class StepData:
    """What one rank trains on in one global step, and counts of the whole step over all ranks."""

    batches: Sequence[Batch]
    target_tokens: int
    """Predictions that count in the loss."""
    tokens: int
    """All tokens that the model reads, those of sources too."""
    slots: int
    """What the batches hold of them with their padding."""
    flops: float
    waited_seconds: float = 0.0
    """How long the training waited for it to be read."""


class Validator(Protocol):
    """Scores the engine's model on the prepared validation data."""

    def run(self, between: Callable[[], None] = lambda: None) -> Validation:
        """Validate. Collective: every rank takes its share and all get the result. `between` is called before each
        piece of the work, on every rank the same number of times, and may end the validation by raising."""
        ...


class TrainingData(ABC):
    """The prepared folder of an experiment, opened: one class for each kind of data."""

    kind: Kind
    """As the manifest names it."""
    counted_together = False
    """Whether only the ranks together know the target tokens of a step."""

    def __init__(self, experiment: Experiment) -> None:
        """Raises BadInput when the folder is missing, unfinished, damaged, or was prepared from another `data:`."""
        self.experiment = experiment
        self.folder = Path(experiment.data.directory)
        self.manifest = load_manifest(self.folder, self.kind)
        given = {**experiment.data.model_dump(mode="json"), "directory": self.manifest["config"].get("directory")}
        changed = [
            f"data.{key}: was {was!r}, now {now!r}"
            for key, was, now in record.differences(self.manifest["config"], given)
        ]
        if changed:
            raise BadInput(
                f"{self.folder}: was prepared from another configuration; {'; '.join(changed)}. Prepare it again with "
                "`bmscale prepare CONFIG --force`, or choose another data.directory"
            )
        self.tokenizer = Tokenizer.load(self.folder / "spiece.model")

    def model_options(self) -> dict[str, Any]:
        """What the data decides of the model, besides the size of its vocabulary."""
        return {}

    def provenance(self) -> dict[str, Any]:
        """What a model's provenance says of its data."""
        return {}

    @abstractmethod
    def plan(self) -> Plan:
        """The global steps. Raises BadInput for what the data cannot give."""

    @abstractmethod
    def check(self, config: TransformerConfig) -> None:
        """Refuse before training, with BadInput, what would fail in the middle of it."""

    @abstractmethod
    def describe(self) -> str:
        """How much there is, for the log."""

    @abstractmethod
    def read_step(self, plan: Any, step: int, config: TransformerConfig, rank: int, world_size: int) -> StepData:
        """This rank's batches of global step `step`."""

    @abstractmethod
    def probe(self) -> Batch:
        """A few validation data, always the same."""

    @abstractmethod
    def validator(self, engine: Engine) -> Validator:
        """Of the task."""


def make_mixture(config: SamplingConfig, names: Sequence[str], sizes: Sequence[int]) -> Mixture:
    """The shares of sources by names and sizes. Raises BadInput where the weights are not those of the sources."""
    if config.weights is None:
        return Mixture.by_temperature(sizes, config.temperature or 1.0)
    if sorted(names) != sorted(config.weights):
        raise BadInput(
            "training.sampling.weights: must have one weight for each training corpus by its name, which are "
            f"{', '.join(names)}; got {', '.join(config.weights)}. Set `name` of a corpus to tell two apart"
        )
    empty = [name for name, size in zip(names, sizes, strict=True) if not size]
    if empty:
        raise BadInput(f"training.sampling.weights: cleaning left nothing of {empty[0]}; take it out of data.train")
    return Mixture.by_weight(sizes, [config.weights[name] for name in names])


def mixture_of_pairs(training: TrainingConfig, sources: Sequence[dict[str, Any]]) -> Mixture | None:
    """How pairs are drawn from `sources`, those of the manifest; None for each once an epoch. Raises BadInput."""
    if training.sampling is None:
        return None
    names, sizes = [source["name"] for source in sources], [source["pairs_kept"] for source in sources]
    return make_mixture(training.sampling, names, sizes)


def plan_of_pairs(shards: PairShards, training: TrainingConfig, sources: Sequence[dict[str, Any]]) -> StepPlan:
    """The global steps over pairs, `sources` being those of the manifest. Raises BadInput for what they cannot give."""
    return StepPlan(
        shards.source_lengths,
        shards.target_lengths,
        seed=training.seed,
        tokens_per_step=training.tokens_per_step,
        mixture=mixture_of_pairs(training, sources),
    )


class StepReader:
    """Reads this rank's batches of each step while the step before is trained on."""

    def __init__(
        self,
        data: TrainingData,
        plan: Plan,
        config: TransformerConfig,
        rank: int,
        world_size: int,
        at: Callable[[str, int], None] = lambda phase, step: None,
    ) -> None:
        """`at` hears what is waited for, and for which step (1 for the run's first)."""
        self._at, self._data, self._plan, self._config = at, data, plan, config
        self._rank, self._world_size = rank, world_size

    def steps(self, first: int, end: int) -> Iterator[StepData]:
        """Steps `first` up to, not including, `end`. Collective where they are counted together."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="data reader") as reader:
            waiting = None
            for step in range(first, end + 1):
                upcoming = reader.submit(self._read, step) if step < end else None
                if waiting is not None:
                    self._at("reading data", step)
                    begun = time.monotonic()
                    step_data = replace(waiting.result(), waited_seconds=time.monotonic() - begun)
                    if self._data.counted_together:
                        self._at("counting tokens", step)
                        step_data = _counted(step_data)
                    yield step_data
                waiting = upcoming

    def _read(self, step: int) -> StepData:
        return self._data.read_step(self._plan, step, self._config, self._rank, self._world_size)


def _counted(step: StepData) -> StepData:
    """The loss is a mean over the target tokens of all ranks."""
    of = [(batch.target_tokens, batch.tokens, batch.slots) for batch in step.batches]
    target_tokens, tokens, slots = process_group.sum_over_ranks(torch.tensor(of).sum(dim=0)).tolist()
    flops = step.flops * tokens / step.tokens
    return replace(step, target_tokens=max(1, target_tokens), tokens=tokens, slots=slots, flops=flops)
