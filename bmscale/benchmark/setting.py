"""What every case of one benchmark shares: where it writes, on how many cores, on which data, for how many steps."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from bmscale.benchmark.shape import VOCABULARY, shape
from bmscale.config import Document, validate
from bmscale.data.manifest import load_manifest
from bmscale.data.prepare import DataConfig, prepare
from bmscale.data.shards import PairShards
from bmscale.errors import BadInput
from bmscale.experiment import Experiment, experiment_class

LEARNING_RATE = 3.0e-4
"""Of every system."""


@dataclass(frozen=True)
class Setting:
    """What every case shares."""

    folder: Path
    """Where prepared data, runs, logs and results go."""
    corpus: str | None
    """A file of sentence pairs; None is the embedded toy corpus."""
    warmup_steps: int
    """Steps that are not timed."""
    steps: int
    """Steps that are."""
    tokens_per_step: int
    """Target tokens of an optimizer step."""
    micro_batch_tokens: int
    """Padded slots of a forward pass, source and target together."""
    max_seconds: float
    """What a case may take before it is given up."""
    peers: dict[str, str] = field(default_factory=dict)
    """The interpreter of each rival system."""

    @property
    def device(self) -> str:
        """Where all cases run, the rivals' too: cuda where there is one, else cpu."""
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def prepared(self) -> Path:
        """The prepared folder of the corpus."""
        return self.folder / "prepared"

    def data(self, directory: Path | None = None) -> dict[str, Any]:
        """The `data` section of translation cases. The validation set is never trained for speed: the toy one does."""
        toy = self.corpus is None
        train = {"toy": "train", "pairs": 10_000} if toy else {"path": str(self.corpus)}
        return {
            "directory": str(directory or self.prepared),
            "train": [train],
            "valid": [{"toy": "valid", "pairs": 20}],
            "source_language": "en",  # names only: nothing here depends on the languages
            "target_language": "de",
            "keep_text": True,
            "tokenizer": {"vocabulary_size": 1000 if toy else VOCABULARY},
        }

    def experiment(self, name: str, shape_name: str, **training: Any) -> Experiment:
        """An experiment on the prepared corpus. Raises BadInput."""
        chosen = shape(shape_name)
        if chosen["task"] != "translation":
            raise BadInput(f"{name}: this case trains on sentence pairs, and {shape_name} is a decoder; use step/")
        document = {
            "name": "run",
            "task": "translation",
            "run": str(self.folder / "runs" / name.replace("/", "-")),
            "data": self.data(),
            "model": chosen["model"],
            "training": self.training(**training),
            "evaluation": {"every_steps": 10**9, "pairs": 0},
        }
        return validate(experiment_class(Document(document, {})), Document(document, {(): f"benchmark {name}"}))

    def training(self, **values: Any) -> dict[str, Any]:
        """The `training` section, `values` over what all cases have."""
        return {
            "tokens_per_step": self.tokens_per_step,
            "max_micro_batch_tokens": self.micro_batch_tokens,
            "max_steps": self.warmup_steps + self.steps,
            "schedule": {"warmup_steps": 1},
            "label_smoothing": 0.0,  # as the rivals are measured
            "optimizer": {"learning_rate": LEARNING_RATE},
            "save_every_steps": 10**9,
            "trackers": [],
            **values,
        }

    def new_run(self, name: str, experiment: Experiment) -> Path:
        """Empty the run folder of an experiment and write its configuration file, which is returned."""
        if experiment.run_folder.path.exists():
            shutil.rmtree(experiment.run_folder.path)
        config = self.log(name).with_suffix(".yaml")
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump(experiment.model_dump(mode="json", exclude_unset=True)), encoding="utf-8")
        return config

    def prepare(self) -> None:
        """Prepare the corpus, once."""
        prepare(self.data_config())

    def data_config(self, directory: Path | None = None) -> DataConfig:
        """The corpus, to be prepared into a folder. Raises BadInput."""
        return validate(DataConfig, Document(self.data(directory), {(): "benchmark"}))

    @cached_property
    def pairs(self) -> PairShards:
        """The training pairs that cleaning left."""
        self.prepare()
        return PairShards.open(self.prepared / "train")

    @property
    def mean_target_tokens(self) -> float:
        """Of a pair, </s> counted."""
        return float(self.pairs.target_lengths.mean())

    def texts(self) -> tuple[Path, Path]:
        """The training pairs as two files, a line a sentence, for systems that read text."""
        self.prepare()
        folder = self.folder / "text" / load_manifest(self.prepared, "pairs")["data_hash"].split(":")[-1][:16]
        paths = folder / "source.txt", folder / "target.txt"
        if not all(path.exists() for path in paths):
            paths[0].parent.mkdir(parents=True, exist_ok=True)
            for side, path in enumerate(paths):
                temporary = path.with_suffix(".tmp")
                temporary.write_text("".join(f"{text}\n" for text in self._side(side)), encoding="utf-8")
                temporary.replace(path)
        return paths

    def _side(self, side: int) -> Iterator[str]:
        for number in range(len(self.pairs)):
            yield self.pairs.text(number)[side]

    def log(self, name: str) -> Path:
        """Where a case's processes write what they say."""
        return self.folder / "logs" / f"{name.replace('/', '-')}.log"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
