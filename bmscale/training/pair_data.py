"""Sentence pairs to train a translator on."""

import numpy as np

from bmscale.data.batch import PairBatch, PairSource, read_batch, read_buckets
from bmscale.data.manifest import VALID_TEXTS
from bmscale.data.micro_batches import padded_slots, split_step
from bmscale.data.prepare import DataConfig
from bmscale.data.shards import PairShards
from bmscale.data.steps import StepPlan
from bmscale.data.subwords import SampledPairs
from bmscale.engine.engine import Engine
from bmscale.errors import BadInput
from bmscale.evaluation.validation import TranslationValidator
from bmscale.experiment import Experiment, TranslationExperiment
from bmscale.model.config import TransformerConfig
from bmscale.model.flops import training_flops
from bmscale.training.step_data import StepData, TrainingData, plan_of_pairs

PROBE_PAIRS = 8


def provenance_of_pairs(data: DataConfig) -> dict[str, object]:
    """What a translator has to know of its training, whatever becomes of the data."""
    return {
        "source_language": data.source_language,
        "target_language": data.target_language,
        "language_tags": data.targets(data.train) if data.language_tags else None,
        "max_source_tokens": data.max_source_tokens,
    }


class PairData(TrainingData):
    """Pairs of `task: translation`."""

    kind = "pairs"
    experiment: TranslationExperiment

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.train, self.valid = (PairShards.open(self.folder / split) for split in ("train", "valid"))
        self.counted_together = self.experiment.training.subword_sampling is not None

    def provenance(self) -> dict[str, object]:
        return provenance_of_pairs(self.experiment.data)

    def plan(self) -> StepPlan:
        training = self.experiment.training
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
        return plan_of_pairs(self.train, training, self.manifest["splits"]["train"]["sources"])

    def check(self, config: TransformerConfig) -> None:
        for name, shards in (("training", self.train), ("validation", self.valid)):
            longest = int(max(shards.source_lengths.max(), shards.target_lengths.max()))
            if longest > config.max_position_embeddings:
                raise BadInput(
                    f"model.max_position_embeddings: must hold the longest {name} sentence, {longest} tokens; got "
                    f"{config.max_position_embeddings}. Raise it, or prepare the data without such sentences"
                )
        slots, given = self._most_slots(), self.experiment.training.max_micro_batch_tokens
        if slots > given:
            raise BadInput(
                f"training.max_micro_batch_tokens: must hold the longest pair, {slots} tokens of source and target; "
                f"got {given}. Raise it, or prepare with smaller data.max_source_tokens and data.max_target_tokens"
            )

    def _most_slots(self) -> int:
        return int((self.train.source_lengths + self.train.target_lengths).max())

    def describe(self) -> str:
        return f"{len(self.train):,} pairs, {int(self.train.target_lengths.sum()):,} target tokens an epoch"

    def read_step(self, plan: StepPlan, step: int, config: TransformerConfig, rank: int, world_size: int) -> StepData:
        training, data, shards = self.experiment.training, self.experiment.data, self.train
        pairs = plan.pairs(step)
        rounds = split_step(
            pairs,
            shards.source_lengths,
            shards.target_lengths,
            world_size=world_size,
            max_micro_batch_tokens=training.max_micro_batch_tokens,
        )
        source: PairSource = shards
        if training.subword_sampling is not None:
            limits = data.max_source_tokens, data.max_target_tokens
            source = SampledPairs(
                shards, self.tokenizer, training.subword_sampling.alpha, (training.seed, step), limits
            )
        sources, targets = shards.source_lengths[pairs], shards.target_lengths[pairs]
        return StepData(
            batches=[read_buckets(source, ranks[rank]) for ranks in rounds],
            target_tokens=int(targets.sum()),
            tokens=int(sources.sum() + targets.sum()),
            slots=sum(
                padded_slots(buckets, shards.source_lengths, shards.target_lengths)
                for ranks in rounds
                for buckets in ranks
            ),
            flops=float(np.sum(training_flops(config, sources, targets))),
        )

    def probe(self) -> PairBatch:
        return read_batch(self.valid, range(min(PROBE_PAIRS, len(self.valid))))

    def validator(self, engine: Engine) -> TranslationValidator:
        sources = self.manifest["splits"]["valid"]["sources"]
        texts = self.folder / VALID_TEXTS
        return TranslationValidator(engine, self.valid, sources, texts, self.tokenizer, self.experiment.evaluation)
