"""Validation inside the training loop: loss on everything, BLEU and chrF on a subset, a few translations to look at."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmscale.data.shards import PairShards
from bmscale.data.tokenizer import Tokenizer
from bmscale.engine import process_group
from bmscale.engine.engine import Engine
from bmscale.evaluation.loss import ValidationLoss, validation_loss
from bmscale.evaluation.scores import score
from bmscale.experiment import Experiment
from bmscale.inference.translator import SearchOptions, translate_ids


@dataclass(frozen=True)
class Validation:
    """What one validation found, the same on every rank."""

    loss: ValidationLoss
    scores: dict[str, float]
    """bleu and chrf on the subset; empty when nothing was translated."""
    plus_minus: dict[str, float]
    """Half the width of the 95 % interval of each score."""
    samples: list[tuple[str, str, str]]
    """(source, reference, translation)."""

    def metrics(self) -> dict[str, Any]:
        """The record for metrics.jsonl."""
        rounded = {name: round(value, 3) for name, value in self.scores.items()}
        intervals = {f"{name}_plus_minus": round(value, 3) for name, value in self.plus_minus.items()}
        return {"valid_loss": round(self.loss.nll, 5), **rounded, **intervals}

    def sample_rows(self, step: int) -> list[dict[str, Any]]:
        """The records for samples.jsonl."""
        return [
            {"step": step, "source": source, "reference": reference, "translation": translation}
            for source, reference, translation in self.samples
        ]

    def value(self, select: str) -> float:
        """The figure by which models are chosen."""
        return self.loss.nll if select == "loss" else self.scores[select]

    def better_than(self, best: float | None, select: str) -> bool:
        """Lower is better for the loss, higher for the scores."""
        if best is None:
            return True
        return self.value(select) < best if select == "loss" else self.value(select) > best

    def lines(self, step: int) -> list[str]:
        """What the log shows."""
        scores = "".join(f"  {name} {value:.2f} ± {self.plus_minus[name]:.2f}" for name, value in self.scores.items())
        head = f"validation at step {step}: loss {self.loss.nll:.4f}  perplexity {self.loss.perplexity:.2f}{scores}"
        body = [
            f"  source:      {source}\n  reference:   {reference}\n  translation: {translation}"
            for source, reference, translation in self.samples
        ]
        return [head, *body]


class Validator:
    """Scores the engine's model on the prepared validation set."""

    def __init__(
        self, engine: Engine, shards: PairShards, texts: Path, tokenizer: Tokenizer, experiment: Experiment
    ) -> None:
        self._engine, self._shards, self._tokenizer = engine, shards, tokenizer
        self._config, self._language = experiment.evaluation, experiment.data.target_language
        with texts.open(encoding="utf-8") as file:
            count = min(self._config.pairs, len(shards))
            records = [json.loads(line) for _, line in zip(range(count), file, strict=False)]
        self._texts = [(record["source"], record["target"]) for record in records]

    def run(self) -> Validation:
        """Validate. Collective: every rank takes its share and all get the result."""
        engine = self._engine
        with engine.evaluation() as model:
            loss = validation_loss(
                model, self._shards, self._config.max_batch_tokens, rank=engine.rank, world_size=engine.world_size
            )
        if not self._texts:
            return Validation(loss, {}, {}, [])
        translations = self._translate()
        references = [target for _, target in self._texts]
        samples = [
            (source, target, translation)
            for (source, target), translation in zip(self._texts, translations, strict=True)
        ]
        # The bootstrap resamples counts, not sentences: intervals cost a fraction of the translations.
        found = score(translations, references, metrics=("bleu", "chrf"), target_language=self._language)
        return Validation(
            loss,
            {name: result["score"] for name, result in found.items()},
            {name: result["plus_minus"] for name, result in found.items()},
            samples[: self._config.samples],
        )

    def _translate(self) -> list[str]:
        """Greedy translations of the subset; every rank does every so-many-th sentence."""
        world, rank = self._engine.world_size, self._engine.rank
        sources = [self._shards.pair(index)[0].tolist() for index in range(len(self._texts))]
        mine = sources[rank::world]
        options = SearchOptions(beam_size=1, max_batch_tokens=self._config.max_batch_tokens)
        with self._engine.evaluation() as model:
            outputs = translate_ids(model, mine, options, synced=self._engine.partitioned)
        shares = process_group.gather_objects([self._tokenizer.decode(ids) for ids in outputs])
        return [shares[index % world][index // world] for index in range(len(sources))]
