"""Test sets: reading one, and scoring a model on it; a class for each task."""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from bmscale.data.batch import MaskedBatch, masked_batch
from bmscale.data.corpus import CorpusConfig, read_pairs
from bmscale.data.documents import DocumentCorpusConfig, LabelledCorpusConfig, listed, read_documents, read_labelled
from bmscale.data.framing import document_ids
from bmscale.data.manifest import load_manifest
from bmscale.data.masking import Masking
from bmscale.data.rows import DocumentsInMemory, RowPlan
from bmscale.data.shards import PairShards
from bmscale.data.tokenizer import Tokenizer
from bmscale.errors import BadInput
from bmscale.evaluation.classification import confusions, per_label, score_labels
from bmscale.evaluation.language_model import evaluate_language_model
from bmscale.evaluation.loss import validation_loss
from bmscale.evaluation.masked_lm import evaluate_masked_lm
from bmscale.evaluation.scores import format_scores, score, sentence_chrf
from bmscale.experiment import (
    ClassificationExperiment,
    Experiment,
    LanguageModelExperiment,
    MaskedExperiment,
    RunFolder,
    TranslationExperiment,
)
from bmscale.inference.classifier import Classifier
from bmscale.inference.search import SearchOptions
from bmscale.inference.torch_backend import find_device
from bmscale.inference.translator import Translator
from bmscale.model.folder import ModelFolder, load_model

log = logging.getLogger("bmscale")


class Scorer(Protocol):
    """Scores test sets with one model."""

    items: str
    """What a test set is made of."""

    def __init__(self, experiment: Any, options: SearchOptions | None) -> None: ...

    def read(self, test: Any) -> list[Any]:
        """A test set, whole."""

    def open(self, folder: ModelFolder, device: str | None) -> None:
        """Load the model."""

    def validation(self, provenance: dict[str, Any]) -> dict[str, Any]:
        """Figures of the model on the validation data."""

    def score(self, name: str, items: list[Any]) -> dict[str, Any]:
        """Figures of the model on a test set."""


class TranslationScorer:
    """Loss, and scores of beam-search translations."""

    items = "sentences"

    def __init__(self, experiment: TranslationExperiment, options: SearchOptions | None) -> None:
        config = experiment.evaluation
        self._experiment, self._run = experiment, experiment.run_folder
        self._options = options or SearchOptions(config.beam_size, config.length_penalty, config.max_batch_tokens)

    def read(self, test: CorpusConfig) -> list[tuple[str, str, str]]:
        data = self._experiment.data
        into = data.languages(test)[1]
        return [(*pair, into) for pair in read_pairs(test, data.source_language, data.target_language)]

    def open(self, folder: ModelFolder, device: str | None) -> None:
        self._translator = Translator.from_pretrained(folder, device=device)

    def validation(self, provenance: dict[str, Any]) -> dict[str, Any]:
        return _validation(self._experiment, self._translator, provenance) or {}

    def score(self, name: str, items: list[tuple[str, str, str]]) -> dict[str, Any]:
        pairs = [(source, target) for source, target, _ in items]
        log.info("translating %s with beam %d", name, self._options.beam_size)
        return _score_set(self._run, name, pairs, self._translator.into(items[0][2]), self._options)


class DocumentScorer:
    """Loss, perplexity and bits per byte of documents, each by itself."""

    items = "documents"

    def __init__(self, experiment: LanguageModelExperiment, options: SearchOptions | None) -> None:
        self._config = experiment.evaluation
        self._window = experiment.training.sequence_length

    def read(self, test: DocumentCorpusConfig) -> list[str]:
        return list(read_documents(test))

    def open(self, folder: ModelFolder, device: str | None) -> None:
        self._model, self._tokenizer = load_model(folder, find_device(device)), Tokenizer.load(folder.tokenizer)

    def validation(self, provenance: dict[str, Any]) -> dict[str, Any]:
        return dict(provenance.get("validation") or {})

    def score(self, name: str, items: list[str]) -> dict[str, Any]:
        stride = min(self._window, self._config.stride or max(1, self._window // 2))
        found = evaluate_language_model(
            self._model,
            (np.array(document_ids(self._tokenizer, text)) for text in items),
            sum(len(text.encode("utf-8", "replace")) for text in items),
            window=self._window,
            stride=stride,
            max_batch_tokens=self._config.max_batch_tokens,
        )
        figures = {"loss": found.loss, "perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte}
        log.info("%s: %s", name, "  ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in figures.items()))
        return {
            "documents": len(items),
            "tokens": found.tokens,
            "text_bytes": found.text_bytes,
            "sha256": _hash(items),
            "window": self._window,
            "stride": stride,
            **{key: round(value, 5) for key, value in figures.items()},
        }


class MaskedScorer:
    """Loss and accuracy on tokens of packed rows that are hidden, always the same ones."""

    items = "documents"

    def __init__(self, experiment: MaskedExperiment, options: SearchOptions | None) -> None:
        self._training, self._config = experiment.training, experiment.evaluation

    def read(self, test: DocumentCorpusConfig) -> list[str]:
        return list(read_documents(test))

    def open(self, folder: ModelFolder, device: str | None) -> None:
        self._model, self._tokenizer = load_model(folder, find_device(device)), Tokenizer.load(folder.tokenizer)
        self._masking = Masking(self._training.masking, self._tokenizer, folder.config.mask_token_id)

    def validation(self, provenance: dict[str, Any]) -> dict[str, Any]:
        return dict(provenance.get("validation") or {})

    def score(self, name: str, items: list[str]) -> dict[str, Any]:
        found = evaluate_masked_lm(self._model, self._batches(items))
        log.info("%s: loss %.4f  accuracy %.2f %%", name, found.loss, 100 * found.accuracy)
        return {
            "documents": len(items),
            "masked_tokens": found.tokens,
            "sha256": _hash(items),
            "loss": round(found.loss, 5),
            "perplexity": round(found.perplexity, 4),
            "accuracy": round(100 * found.accuracy, 3),
        }

    def _batches(self, texts: list[str]) -> Iterator[MaskedBatch]:
        documents = DocumentsInMemory([np.array(document_ids(self._tokenizer, text)) for text in texts])
        length = self._training.sequence_length
        plan = RowPlan(
            documents.lengths, sequence_length=length, seed=0, tokens_per_step=length, causal=False, shuffled=False
        )
        count, most = plan.rows_in_epoch(0), max(1, self._config.max_batch_tokens // length)
        for first in range(0, count, most):
            numbers = range(first, min(first + most, count))
            rows = [plan.read(documents, 0, number) for number in numbers]
            hidden = [self._masking.hide(row.tokens, (0, 0, number)) for number, row in zip(numbers, rows, strict=True)]
            batch = masked_batch(rows, hidden)
            yield batch.joined() if self._training.attend_across_documents else batch


class LabelScorer:
    """Accuracy and macro-F1 of predicted labels."""

    items = "texts"

    def __init__(self, experiment: ClassificationExperiment, options: SearchOptions | None) -> None:
        self._run, self._config = experiment.run_folder, experiment.evaluation

    def read(self, test: LabelledCorpusConfig) -> list[tuple[str, str]]:
        return list(read_labelled(test))

    def open(self, folder: ModelFolder, device: str | None) -> None:
        self._classifier = Classifier.from_pretrained(folder, device=device)

    def validation(self, provenance: dict[str, Any]) -> dict[str, Any]:
        return dict(provenance.get("validation") or {})

    def score(self, name: str, items: list[tuple[str, str]]) -> dict[str, Any]:
        known = set(self._classifier.labels)
        unknown = next((label for _, label in items if label not in known), None)
        if unknown is not None:
            raise BadInput(
                f"{name}: every label must be one that the model knows ({listed(sorted(known))}); got {unknown!r:.80}"
            )
        texts, wanted = [text for text, _ in items], [label for _, label in items]
        found = self._classifier.predict(texts, max_batch_tokens=self._config.max_batch_tokens)
        given = [prediction.labels[0] for prediction in found]
        scores = score_labels(wanted, given)
        for line in format_scores(scores).splitlines():
            log.info("%s: %s", name, line)
        self._run.translations.mkdir(exist_ok=True)
        rows = (
            {
                "text": text,
                "label": label,
                "predicted": prediction.labels[0],
                "probability": round(prediction.probabilities[0], 4),
            }
            for (text, label), prediction in zip(items, found, strict=True)
        )
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self._run.translations / f"{name}.jsonl").write_bytes(lines.encode("utf-8", "replace"))
        return {
            "texts": len(items),
            "sha256": _hash([f"{label}\t{text}" for text, label in items]),
            "scores": scores,
            "labels": per_label(wanted, given),
            "confusions": confusions(wanted, given),
        }


SCORERS: dict[str, type[Scorer]] = {
    "translation": TranslationScorer,
    "language_model": DocumentScorer,
    "masked_lm": MaskedScorer,
    "classification": LabelScorer,
}


def _hash(lines: list[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode("utf-8", "replace")).hexdigest()


def _validation(experiment: Experiment, translator: Translator, provenance: dict[str, Any]) -> dict[str, Any] | None:
    """Loss on the prepared validation set; None where the data that the model was trained on is not at hand."""
    directory = Path(experiment.data.directory)
    if not directory.is_dir():
        log.info("%s is not here: no validation loss", directory)
        return None
    if load_manifest(directory)["data_hash"] != provenance.get("data_hash"):
        log.warning("%s now holds other data than the model was trained on: no validation loss", directory)
        return None
    shards = PairShards.open(directory / "valid")
    with torch.no_grad():
        loss = validation_loss(translator.model, shards, experiment.evaluation.max_batch_tokens)
    return {"loss": round(loss.nll, 5), "perplexity": round(loss.perplexity, 4), "pairs": len(shards)}


def _score_set(
    run: RunFolder,
    name: str,
    pairs: list[tuple[str, str]],
    translator: Translator,
    options: SearchOptions,
) -> dict[str, Any]:
    """Translate and score one test set; the translations are kept, as text and as rows with source and reference."""
    sources, references = [source for source, _ in pairs], [target for _, target in pairs]
    hypotheses = translator.translate(sources, **vars(options))
    run.translations.mkdir(exist_ok=True)
    (run.translations / f"{name}.txt").write_text("".join(f"{line}\n" for line in hypotheses), encoding="utf-8")
    _write_rows(run.translations / f"{name}.jsonl", pairs, hypotheses)
    scores = score(hypotheses, references, target_language=translator.target_language)
    likelihood = translator.score(sources, references, options.max_batch_tokens)
    tokens = sum(pair.tokens for pair in likelihood)
    for line in format_scores(scores).splitlines():
        log.info("%s: %s", name, line)
    return {
        "pairs": len(pairs),
        "sha256": hashlib.sha256("".join(f"{s}\t{t}\n" for s, t in pairs).encode("utf-8", "replace")).hexdigest(),
        "loss": round(-sum(pair.log_probability for pair in likelihood) / tokens, 5),
        "search": vars(options),
        "scores": scores,
    }


def _write_rows(path: Path, pairs: list[tuple[str, str]], hypotheses: list[str]) -> None:
    """One JSON object a sentence, with its own chrF2++, so that the worst and the best can be found."""
    figures = sentence_chrf(hypotheses, [reference for _, reference in pairs])
    rows = (
        {"source": source, "reference": reference, "translation": translation, "chrf": round(figure, 2)}
        for (source, reference), translation, figure in zip(pairs, hypotheses, figures, strict=True)
    )
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(text.encode("utf-8", "replace"))  # a lone surrogate, which JSON can hold, has no UTF-8
