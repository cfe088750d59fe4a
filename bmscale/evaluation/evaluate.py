"""`bmscale evaluate RUN --test FILE`: validation loss, and scores of beam-search translations of a test set."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bmscale.data.batch import make_batch
from bmscale.data.clean import normalise
from bmscale.data.corpus import CorpusConfig, read_pairs
from bmscale.data.manifest import load_manifest
from bmscale.data.shards import PairShards
from bmscale.errors import BadInput
from bmscale.evaluation.loss import batch_loss, validation_loss
from bmscale.evaluation.scores import format_scores, score, sentence_chrf
from bmscale.experiment import Experiment, RunFolder
from bmscale.inference.translator import SearchOptions, Translator
from bmscale.model.folder import open_model_folder

log = logging.getLogger("bmscale")


def evaluate(
    experiment: Experiment,
    tests: list[CorpusConfig],
    *,
    which: str = "best",
    options: SearchOptions | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Score `model/best` or `model/last` of a run on test sets, and write results.json.

    Returns what results.json holds. Raises BadInput for a test set that cannot be read or a damaged model.
    """
    run, config = experiment.run_folder, experiment.evaluation
    data = experiment.data
    options = options or SearchOptions(config.beam_size, config.length_penalty, config.max_batch_tokens)
    _check_names([name_of(test) for test in tests])
    sets = [(name_of(test), list(read_pairs(test, data.source_language, data.target_language))) for test in tests]
    folder = open_model_folder(run.best if which == "best" else run.last)
    translator = Translator.from_pretrained(folder, device=device)

    results: dict[str, Any] = _read_results(run)
    model = {"model": str(folder.path.relative_to(run.path)), "step": folder.provenance.get("step")}
    results["validation"] = {**model, **(_validation(experiment, translator, folder.provenance) or {})}
    for name, pairs in sets:
        log.info("translating %s: %d sentences, beam %d", name, len(pairs), options.beam_size)
        scored = _score_set(run, name, pairs, translator, options, data.target_language)
        results["test"] = {**results.get("test", {}), name: {**model, **scored}}
    temporary = run.results.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(run.results)
    return results


def name_of(test: CorpusConfig) -> str:
    """A short name for a test set: its file without directories and the endings that say its format."""
    if test.toy:
        return f"toy-{test.toy}"
    name = Path(test.path or test.source_path or "test").name
    for ending in (".gz", ".xz", ".zst", ".tsv", ".jsonl", ".parquet"):
        name = name.removesuffix(ending)
    return name or "test"


def _check_names(names: list[str]) -> None:
    """Raises BadInput when two test sets would overwrite each other's results."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput(f"--test: the files must have different names; two are called '{twice}'")


def _read_results(run: RunFolder) -> dict[str, Any]:
    try:
        found = json.loads(run.results.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("test", {}), dict) else {}


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
    target_language: str,
) -> dict[str, Any]:
    """Translate and score one test set; the translations are kept, as text and as rows with source and reference."""
    sources, references = [source for source, _ in pairs], [target for _, target in pairs]
    hypotheses = translator.translate(sources, **vars(options))
    run.translations.mkdir(exist_ok=True)
    (run.translations / f"{name}.txt").write_text("".join(f"{line}\n" for line in hypotheses), encoding="utf-8")
    _write_rows(run.translations / f"{name}.jsonl", pairs, hypotheses)
    scores = score(hypotheses, references, target_language=target_language)
    for line in format_scores(scores).splitlines():
        log.info("%s: %s", name, line)
    return {
        "pairs": len(pairs),
        "sha256": hashlib.sha256("".join(f"{s}\t{t}\n" for s, t in pairs).encode("utf-8", "replace")).hexdigest(),
        "loss": round(_loss_of(translator, pairs, options), 5),
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


def _loss_of(translator: Translator, pairs: list[tuple[str, str]], options: SearchOptions) -> float:
    """Negative log-likelihood a target token (nats) of the references, in batches by length."""
    tokenizer = translator.tokenizer
    positions = translator.model.config.max_position_embeddings
    encoded = [
        [np.array(ids[:positions]) for ids in tokenizer.encode_batch([normalise(side[index]) for side in pairs])]
        for index in (0, 1)
    ]
    order = sorted(range(len(pairs)), key=lambda index: -len(encoded[0][index]) - len(encoded[1][index]))
    total, tokens, batch = 0.0, 0, list[int]()
    with torch.no_grad():
        for position, index in enumerate(order):
            batch.append(index)
            slots = (len(batch) + 1) * (len(encoded[0][batch[0]]) + len(encoded[1][batch[0]]))
            if slots > options.max_batch_tokens or position == len(order) - 1:
                made = make_batch([encoded[0][i] for i in batch], [encoded[1][i] for i in batch])
                total += float(batch_loss(translator.model, made.to(translator.model.device)).nll)
                tokens += made.target_tokens
                batch = []
    return total / tokens
