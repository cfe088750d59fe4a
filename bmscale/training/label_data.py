"""Labelled texts, to train a classifier on."""

from typing import Any

import numpy as np

from bmscale.data.batch import Batch, text_batch, text_buckets
from bmscale.data.micro_batches import split_step
from bmscale.data.shards import PairShards
from bmscale.data.steps import StepPlan
from bmscale.engine.engine import Engine
from bmscale.errors import BadInput
from bmscale.evaluation.label_validation import LabelValidator
from bmscale.experiment import ClassificationExperiment, Experiment
from bmscale.model.config import TransformerConfig
from bmscale.model.flops import training_flops
from bmscale.training.step_data import StepData, TrainingData, plan_of_pairs

PROBE_TEXTS = 8


class LabelData(TrainingData):
    """Texts of `task: classification`: pairs of a text and one token, its label."""

    kind = "labelled"
    experiment: ClassificationExperiment

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.train, self.valid = (PairShards.open(self.folder / split) for split in ("train", "valid"))
        self.labels: list[str] = self.manifest["labels"]

    def model_options(self) -> dict[str, Any]:
        return {
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: index for index, label in enumerate(self.labels)},
        }

    def provenance(self) -> dict[str, Any]:
        return {"labels": self.labels, "max_tokens": self.experiment.data.max_tokens}

    def plan(self) -> StepPlan:
        return plan_of_pairs(self.train, self.experiment.training, self.manifest["splits"]["train"]["sources"])

    def check(self, config: TransformerConfig) -> None:
        longest = int(max(self.train.source_lengths.max(), self.valid.source_lengths.max()))
        for key, given, spare in (
            ("model.max_position_embeddings", config.max_position_embeddings, 0),
            ("training.max_micro_batch_tokens", self.experiment.training.max_micro_batch_tokens, 1),
        ):
            if longest + spare > given:
                raise BadInput(
                    f"{key}: must hold the longest text, {longest + spare} tokens; got {given}. Raise it, or prepare "
                    "the data with a smaller data.max_tokens"
                )

    def describe(self) -> str:
        return f"{len(self.train):,} texts of {len(self.labels)} labels"

    def read_step(self, plan: StepPlan, step: int, config: TransformerConfig, rank: int, world_size: int) -> StepData:
        texts = plan.pairs(step)
        lengths = self.train.source_lengths
        rounds = split_step(
            texts,
            lengths,
            self.train.target_lengths,
            world_size=world_size,
            max_micro_batch_tokens=self.experiment.training.max_micro_batch_tokens,
        )
        return StepData(
            batches=[text_buckets(self.train, ranks[rank]) for ranks in rounds],
            target_tokens=len(texts),
            tokens=int(lengths[texts].sum()),
            slots=sum(len(ids) * int(lengths[ids].max()) for ranks in rounds for buckets in ranks for ids in buckets),
            flops=float(np.sum(training_flops(config, lengths[texts]))),
        )

    def probe(self) -> Batch:
        return text_batch(self.valid, range(min(PROBE_TEXTS, len(self.valid))))

    def validator(self, engine: Engine) -> LabelValidator:
        lengths, targets = self.valid.source_lengths, self.valid.target_lengths
        most = max(self.experiment.evaluation.max_batch_tokens, int(lengths.max()) + 1)
        rounds = split_step(
            np.arange(len(lengths)), lengths, targets, world_size=engine.world_size, max_micro_batch_tokens=most
        )
        return LabelValidator(engine, self.valid, rounds, self.labels)
