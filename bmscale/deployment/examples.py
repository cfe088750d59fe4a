"""The texts that an export is compared on: a file, or the test or validation set of the run that the model is from."""

import hashlib
from collections.abc import Sequence
from typing import Any

from bmscale.data.clean import normalise
from bmscale.data.corpus import CorpusConfig, OriginConfig, read_pairs
from bmscale.data.documents import read_documents, read_labelled
from bmscale.data.tokenizer import Tokenizer, language_tag
from bmscale.deployment.gate import Examples
from bmscale.deployment.plain_transformers import GREEDY_TOKENS
from bmscale.errors import BadInput
from bmscale.experiment import Experiment, TranslationExperiment
from bmscale.model.folder import ModelFolder

PROBED = 100
"""Texts whose log-probabilities and greedy outputs are compared, at most."""
_CHARACTERS = 400  # of a document


def read_examples(model: ModelFolder, test: OriginConfig | None, experiment: Experiment | None, most: int) -> Examples:
    """At most `most` texts of `test`, else of the first test set of the experiment, else of its validation data.

    Raises BadInput where there is nothing to read, or nothing in it that can be used.
    """
    if test is None:
        if experiment is None:
            raise BadInput(
                f"{model.path}: is in no run folder, so no test set is known; give --test FILE, which the artefact is "
                "compared with the model on"
            )
        test = [*experiment.evaluation.test, *experiment.data.valid][0]
        try:
            return _read(model, test, experiment, most)
        except BadInput as error:
            raise BadInput(
                f"{error} (the run of {model.path} names {test.short_name}; give --test FILE to compare on another)"
            ) from None
    return _read(model, test, experiment, most)


def _read(model: ModelFolder, test: OriginConfig, experiment: Experiment | None, most: int) -> Examples:
    if model.task.name == "translation":
        assert isinstance(test, CorpusConfig)
        return _of_pairs(model, test, experiment, most)
    return _of_texts(model, test, most)


def _of_pairs(model: ModelFolder, test: CorpusConfig, experiment: Experiment | None, most: int) -> Examples:
    provenance = model.provenance
    source, target = provenance.get("source_language"), provenance.get("target_language")
    if isinstance(experiment, TranslationExperiment):
        source, target = experiment.data.languages(test)
    pairs = list(read_pairs(test, source or "source", target or "target"))
    tag = f"{language_tag(str(target))} " if provenance.get("language_tags") else ""
    longest = min(provenance.get("max_source_tokens") or 256, model.config.max_position_embeddings)
    tokenizer = Tokenizer.load(model.tokenizer)
    kept, left_out = [], 0
    for text, reference in pairs:
        text, reference = normalise(text), normalise(reference)
        both = text and reference
        if both and max(len(ids) for ids in tokenizer.encode_batch([tag + text, reference])) <= longest:
            kept.append((tag + text, reference))
        else:
            left_out += 1
        if len(kept) == most:
            break
    return _examples(test, kept, left_out, test_set=kept, target_language=target)


def _of_texts(model: ModelFolder, test: Any, most: int) -> Examples:
    is_labelled = model.task.name == "classification"
    texts = [text for _, text in read_labelled(test)] if is_labelled else list(read_documents(test))
    # A beginning is enough to see every weight, and fits the positions.
    tokenizer = Tokenizer.load(model.tokenizer)
    room = model.config.max_position_embeddings
    most_characters = min(_CHARACTERS, room // 4)
    kept = [text[:most_characters] for text in texts if text.strip()]
    fitting = [("", text) for text in kept if len(tokenizer.encode(text)) + 1 + GREEDY_TOKENS <= room]
    return _examples(test, fitting[:most], len(texts) - len(fitting))


def _examples(
    test: OriginConfig,
    pairs: Sequence[tuple[str, str]],
    left_out: int,
    *,
    test_set: Sequence[tuple[str, str]] = (),
    target_language: str | None = None,
) -> Examples:
    if not pairs:
        raise BadInput(f"{test.short_name}: has no text that the model reads in one piece; give --test FILE with some")
    lines = "".join(f"{source}\t{target}\n" for source, target in pairs)
    digest = hashlib.sha256(lines.encode("utf-8", "replace")).hexdigest()
    return Examples(test.short_name, digest, list(pairs[:PROBED]), list(test_set), target_language, left_out)
