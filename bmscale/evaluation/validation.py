"""Validation inside the training loop: loss on everything, BLEU and chrF on a subset, a few translations to look at."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bmscale.data.shards import PairShards
from bmscale.data.tokenizer import Tokenizer
from bmscale.engine import process_group
from bmscale.engine.engine import Engine
from bmscale.evaluation.loss import ValidationLoss, validation_loss
from bmscale.evaluation.scores import score
from bmscale.experiment import TranslationEvaluationConfig
from bmscale.inference.search import SearchOptions
from bmscale.inference.torch_backend import translate_ids

SENTENCES_AT_ONCE = 64
"""How many sentences a rank translates before it looks whether the validation is still wanted."""


@dataclass(frozen=True)
class Found:
    """Figures of one set."""

    loss: ValidationLoss
    scores: dict[str, float]
    """Besides the loss, by name: bleu and chrf on the subset of a translator, empty when nothing was translated."""
    plus_minus: dict[str, float]
    """Half the width of the 95 % interval of each score that has one."""

    def metrics(self, languages: str = "") -> dict[str, Any]:
        """The record for metrics.jsonl; keys end in the languages where they are given."""
        end = f"_{languages}" if languages else ""
        rounded = {f"{name}{end}": round(value, 3) for name, value in self.scores.items()}
        intervals = {f"{name}_plus_minus{end}": round(value, 3) for name, value in self.plus_minus.items()}
        return {f"valid_loss{end}": round(self.loss.nll, 5), **rounded, **intervals}

    def _score(self, name: str) -> str:
        if name in self.plus_minus:
            return f"  {name} {self.scores[name]:.2f} ± {self.plus_minus[name]:.2f}"
        return f"  {name.replace('_', ' ')} {self.scores[name]:.3f}"

    def line(self) -> str:
        """Its figures, for the log."""
        scores = "".join(map(self._score, self.scores))
        return f"loss {self.loss.nll:.4f}  perplexity {self.loss.perplexity:.2f}{scores}"


@dataclass(frozen=True)
class Validation(Found):
    """What one validation found, the same on every rank. Of a translator: the loss over all tokens, scores averaged
    over the pairs of languages."""

    samples: list[tuple[str, str, str]] = field(default_factory=list)
    """(source, reference, translation)."""
    by_languages: dict[str, Found] = field(default_factory=dict)
    """Each pair of languages, such as en-de; empty where there is only one."""

    def all_metrics(self) -> dict[str, Any]:
        """The record for metrics.jsonl, the pairs of languages apart as well."""
        record = self.metrics()
        for languages, found in self.by_languages.items():
            record |= found.metrics(languages)
        return record

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
        body = [
            f"  source:      {source}\n  reference:   {reference}\n  translation: {translation}"
            for source, reference, translation in self.samples
        ]
        apart = [f"  {languages}: {found.line()}" for languages, found in self.by_languages.items()]
        return [f"validation at step {step}: {self.line()}", *apart, *body]


@dataclass(frozen=True)
class _LanguagePair:
    """The validation pairs of one pair of languages."""

    name: str
    target_language: str
    ids: list[int]
    texts: list[tuple[str, str]]
    """(source, reference) of the first ids, those that are translated."""


class TranslationValidator:
    """Scores the engine's model on the prepared validation set."""

    def __init__(
        self,
        engine: Engine,
        shards: PairShards,
        sources: Sequence[Mapping[str, Any]],
        texts: Path,
        tokenizer: Tokenizer,
        config: TranslationEvaluationConfig,
    ) -> None:
        """`sources` are those of the manifest: which pairs are of which languages."""
        self._engine, self._shards, self._tokenizer = engine, shards, tokenizer
        self._config = config
        self._language_pairs = _language_pairs(sources, texts, self._config.pairs)

    def run(self, between: Callable[[], None] = lambda: None) -> Validation:
        """Validate. Collective: every rank takes its share and all get the result.

        `between` is called before each piece of the work, on every rank the same number of times: it may be a
        collective, and what it raises on all of them ends the validation.
        """
        samples: list[tuple[str, str, str]] = []
        found = {}
        for pair in self._language_pairs:
            translations = self._translate(pair, between)
            shown = zip(pair.texts, translations, strict=True)
            samples += [(*texts, translation) for texts, translation in shown][: self._config.samples]
            found[pair.name] = Found(self._loss(pair, between), *_scores(pair, translations))
        tokens = sum(part.loss.tokens for part in found.values())
        nll = math.fsum(part.loss.nll * part.loss.tokens for part in found.values()) / tokens
        names = [name for part in found.values() for name in part.scores]
        scores = {name: math.fsum(part.scores[name] for part in found.values()) / len(found) for name in names}
        # The sets of the pairs are independent of each other, so their variances add up.
        widths = {name: math.hypot(*(part.plus_minus[name] for part in found.values())) / len(found) for name in names}
        apart = found if len(found) > 1 else {}
        return Validation(ValidationLoss(nll, tokens), scores, widths, samples, apart)

    def _loss(self, pair: _LanguagePair, between: Callable[[], None]) -> ValidationLoss:
        engine = self._engine
        with engine.evaluation() as model:
            return validation_loss(
                model,
                self._shards,
                self._config.max_batch_tokens,
                pairs=pair.ids,
                rank=engine.rank,
                world_size=engine.world_size,
                between=between,
            )

    def _translate(self, pair: _LanguagePair, between: Callable[[], None]) -> list[str]:
        """Greedy translations of the subset; every rank does every so-many-th sentence."""
        world, rank = self._engine.world_size, self._engine.rank
        sources = [self._shards.pair(index)[0].tolist() for index in pair.ids[: len(pair.texts)]]
        if not sources:
            return []
        mine = sources[rank::world]
        options = SearchOptions(beam_size=1, max_batch_tokens=self._config.max_batch_tokens)
        outputs: list[list[int]] = []
        with self._engine.evaluation() as model:
            for first in range(0, -(-len(sources) // world), SENTENCES_AT_ONCE):
                between()
                some = mine[first : first + SENTENCES_AT_ONCE]
                outputs += translate_ids(model, some, options, synced=self._engine.partitioned)
        shares = process_group.gather_objects([self._tokenizer.decode(ids) for ids in outputs])
        return [shares[index % world][index // world] for index in range(len(sources))]


def _scores(pair: _LanguagePair, translations: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """BLEU and chrF, and half the width of their intervals."""
    if not translations:
        return {}, {}
    references = [reference for _, reference in pair.texts]
    # The bootstrap resamples counts, not sentences: intervals cost a fraction of the translations.
    found = score(translations, references, metrics=("bleu", "chrf"), target_language=pair.target_language)
    return (
        {name: result["score"] for name, result in found.items()},
        {name: result["plus_minus"] for name, result in found.items()},
    )


def _language_pairs(sources: Sequence[Mapping[str, Any]], texts: Path, wanted: int) -> list[_LanguagePair]:
    """The validation corpora by languages, with the texts of the first `wanted` pairs of each."""
    pairs: dict[str, _LanguagePair] = {}
    with texts.open(encoding="utf-8") as file:
        first = 0
        for source in sources:
            name = f"{source['source_language']}-{source['target_language']}"
            pair = pairs.setdefault(name, _LanguagePair(name, source["target_language"], [], []))
            for index, line in zip(range(first, first + source["pairs_kept"]), file, strict=False):
                pair.ids.append(index)
                if len(pair.texts) < wanted:
                    record = json.loads(line)
                    pair.texts.append((record["source"], record["target"]))
            first += source["pairs_kept"]
    return list(pairs.values())
