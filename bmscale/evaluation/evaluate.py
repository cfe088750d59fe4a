"""`bmscale evaluate RUN --test FILE`: what the model of a run is worth on test sets, whatever its task."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bmscale.data.corpus import OriginConfig
from bmscale.errors import BadInput
from bmscale.evaluation.test_sets import SCORERS
from bmscale.experiment import Experiment, RunFolder
from bmscale.inference.search import SearchOptions
from bmscale.model.folder import CONFIG, open_model_folder

log = logging.getLogger("bmscale")


def evaluate(
    experiment: Experiment,
    tests: Sequence[OriginConfig],
    *,
    which: str = "best",
    options: SearchOptions | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Score a model of a run on test sets, and write results.json.

    `which` is the name of a folder in RUN/model: best, last, average, step-00000500. `options` are those of a
    translator's search. Returns what results.json holds. Raises BadInput for a test set that cannot be read, and a
    model that is damaged or not there.
    """
    run = experiment.run_folder
    _check_names([test.short_name for test in tests])
    scorer = SCORERS[experiment.task](experiment, options)
    sets = [(test.short_name, scorer.read(test)) for test in tests]
    folder = open_model_folder(model_of(run, which), task=experiment.task)
    scorer.open(folder, device)
    results: dict[str, Any] = _read_results(run)
    model = {"model": str(folder.path.relative_to(run.path)), "step": folder.provenance.get("step")}
    results["validation"] = {**model, **scorer.validation(folder.provenance)}
    for name, items in sets:
        log.info("%s: %d %s", name, len(items), scorer.items)
        results["test"] = {**results.get("test", {}), name: {**model, **scorer.score(name, items)}}
        _write_results(run, results)  # a mistake in the next set must not lose this one
    _write_results(run, results)
    return results


def _write_results(run: RunFolder, results: dict[str, Any]) -> None:
    temporary = run.results.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(run.results)


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
