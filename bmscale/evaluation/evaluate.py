"""`bmscale evaluate RUN --test FILE`: validation loss, and scores of beam-search translations of a test set."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch

from bmscale.data.corpus import CorpusConfig, read_pairs
from bmscale.data.manifest import load_manifest
from bmscale.data.shards import PairShards
from bmscale.errors import BadInput
from bmscale.evaluation.loss import validation_loss
from bmscale.evaluation.scores import format_scores, score, sentence_chrf
from bmscale.experiment import Experiment, RunFolder
from bmscale.inference.translator import SearchOptions, Translator
from bmscale.model.folder import CONFIG, open_model_folder

log = logging.getLogger("bmscale")


def evaluate(
    experiment: Experiment,
    tests: list[CorpusConfig],
    *,
    which: str = "best",
    options: SearchOptions | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Score a model of a run on test sets, and write results.json.

    `which` is the name of a folder in RUN/model: best, last, average, step-00000500. Returns what results.json holds.
    Raises BadInput for a test set that cannot be read, and a model that is damaged or not there.
    """
    run, config = experiment.run_folder, experiment.evaluation
    data = experiment.data
    options = options or SearchOptions(config.beam_size, config.length_penalty, config.max_batch_tokens)
    _check_names([test.short_name for test in tests])
    sets = [(test.short_name, list(read_pairs(test, data.source_language, data.target_language))) for test in tests]
    folder = open_model_folder(model_of(run, which))
    translator = Translator.from_pretrained(folder, device=device)

    results: dict[str, Any] = _read_results(run)
    model = {"model": str(folder.path.relative_to(run.path)), "step": folder.provenance.get("step")}
    results["validation"] = {**model, **(_validation(experiment, translator, folder.provenance) or {})}
    for (name, pairs), test in zip(sets, tests, strict=True):
        log.info("translating %s: %d sentences, beam %d", name, len(pairs), options.beam_size)
        scored = _score_set(run, name, pairs, translator.into(data.languages(test)[1]), options)
        results["test"] = {**results.get("test", {}), name: {**model, **scored}}
    temporary = run.results.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(run.results)
    return results


def model_of(run: RunFolder, which: str) -> Path:
    """The folder of that name in RUN/model. Raises BadInput, listing those that are there."""
    folder = run.models / which
    if which in (folder.name, f"{folder.name}/") and (folder / CONFIG).is_file():
        return folder
    there = sorted(path.parent.name for path in run.models.glob("[!.]*/config.json"))
    if not there:
        raise BadInput(f"{run.path}: is the run folder of a training that has not written a model yet; train further")
    raise BadInput(f"--model: must be the name of a folder in {run.models}: {', '.join(there)}; got '{which}'")


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
