"""The model folders of a run: the best, the last, the running mean, those of its validations, those of its states."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bmscale.data.manifest import load_manifest
from bmscale.data.prepare import DataConfig
from bmscale.engine import process_group
from bmscale.engine.engine import Engine
from bmscale.errors import BadInput, message
from bmscale.evaluation.validation import Validation
from bmscale.experiment import Experiment, RunFolder, TranslationEvaluationConfig
from bmscale.model.config import TransformerConfig
from bmscale.model.folder import check_target, open_model_folder, write_model_folder
from bmscale.model.tokenization import TOKENIZER_FILE
from bmscale.training import checkpoint, kept_models, record
from bmscale.training.pair_data import provenance_of_pairs
from bmscale.training.standing import Standing
from bmscale.training.step_data import TrainingData

log = logging.getLogger("bmscale")


class Models:
    """Writes model folders out of the training. Every method is collective."""

    def __init__(
        self,
        experiment: Experiment,
        engine: Engine,
        data: TrainingData,
        config: TransformerConfig,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        """`report` takes events for metrics.jsonl."""
        self._experiment, self._engine, self._data, self._config = experiment, engine, data, config
        self._run, self._report = experiment.run_folder, report

    def write(
        self,
        folder: Path,
        standing: Standing,
        result: Validation,
        mark: Mapping[str, Any] | None = None,
        kind: str = "master",
    ) -> bool:
        """Write a model folder, `mark` in its provenance; rank 0 writes while every rank gathers.

        Returns False, having said so, where the file system did not take it; the folder of before is then as it was.
        """
        weights, error = self._engine.weights(kind), None
        if self._engine.is_main:
            try:
                write_model_folder(
                    folder,
                    self._config,
                    weights,
                    self._data.folder / "spiece.model",
                    {**self._provenance(standing, result), **(mark or {})},
                    **_search(self._experiment),
                )
            except (OSError, BadInput) as problem:
                error = message(problem)
        for _ in weights:  # the other ranks, and what rank 0 may have left
            pass
        (error, *_) = process_group.gather_objects(error)
        if error is not None:
            self._report({"step": standing.data_step, "event": "model_not_written", "message": error})
            log.warning("step %d: %s could not be written: %s", standing.data_step, folder, error)
        return error is None

    def keep(self, standing: Standing, result: Validation) -> None:
        """Keep the model of a validation under its step, with those that `evaluation.keep_models` asks for."""
        config, main = self._experiment.evaluation, self._engine.is_main
        step = standing.data_step
        wanted = config.keep_models > 0 and main and kept_models.may_write(self._run, step)
        if process_group.gather_objects(wanted)[0]:
            mark = kept_models.mark(self._run) if main else {}
            self.write(kept_models.folder_of(self._run, step), standing, result, mark)
            if main:
                kept_models.retain(self._run, config.keep_models, config.select)

    def _provenance(self, standing: Standing, result: Validation) -> dict[str, Any]:
        greedy = " (greedy)" if self._experiment.task == "translation" else ""
        return {
            **provenance(self._experiment, self._data.manifest["data_hash"], standing, self._data.provenance()),
            "validation": {
                "loss": result.loss.nll,
                "perplexity": result.loss.perplexity,
                **result.scores,
                "predictions": result.loss.tokens,
            },
            "scores": {f"validation {name.replace('_', ' ')}{greedy}": score for name, score in result.scores.items()},
        }


def _search(experiment: Experiment) -> dict[str, Any]:
    """What a translator's folder says of the search."""
    config = experiment.evaluation
    if not isinstance(config, TranslationEvaluationConfig):
        return {}
    return {"beam_size": config.beam_size, "length_penalty": config.length_penalty}


def provenance(
    experiment: Experiment, data_hash: str, standing: Standing, of_data: Mapping[str, Any]
) -> dict[str, Any]:
    """Where a model comes from: all that is needed to make it again."""
    return {
        "experiment": experiment.name,
        "task": experiment.task,
        **of_data,
        "init_from": experiment.init_from,
        "step": standing.data_step,
        "optimizer_step": standing.optimizer_step,
        "target_tokens": standing.target_tokens,
        "seed": experiment.training.seed,
        "data_hash": data_hash,
        **record.versions(),
    }


def export_state(run: RunFolder, state: Path, out: Path, kind: str = "master") -> None:
    """Make a model folder of a training state, in one process and without the ranks that saved it.

    `kind` may be AVERAGE. Raises BadInput where `out` is anything but a model or lies among the states, for a state
    that is damaged, of another run or without that kind, a damaged run.yaml, and where the run's tokenizer is neither
    in its prepared folder nor in its models.
    """
    if check_target(out).resolve().is_relative_to(run.states.resolve()):
        raise BadInput(f"{out}: must not lie among the training states; give another name")
    known, experiment = record.read(run), record.read_experiment(run)
    data_hash, shape = known.identity.get("data_hash"), known.identity.get("model")
    if not isinstance(data_hash, str) or not isinstance(shape, dict):
        raise BadInput(f"{run.record}: damaged: its identity must hold data_hash and model; put the file back")
    problems = checkpoint.verify(state)
    if problems:
        raise BadInput(f"{state}: must be whole to be exported: {problems[0]}")
    checkpoint.read_own(state, record.fingerprint(known.identity))
    reader = checkpoint.StateReader(state)
    if kind not in reader.manifest.kinds:
        raise BadInput(f"{state}: has no running mean: training.ema_decay of the run was null; leave --ema out")
    tokenizer = _tokenizer(run, experiment, data_hash)
    of_data = known.of_data
    if not of_data and isinstance(experiment.data, DataConfig):  # run.yaml of an earlier version
        of_data = provenance_of_pairs(experiment.data)
    try:
        config = experiment.model.task.configure(**shape)
    except Exception as error:  # transformers raises several kinds of its own for a value it does not take
        raise BadInput(f"{run.record}: damaged: identity.model: {error.__cause__ or error}") from None
    try:
        write_model_folder(
            out,
            config,
            reader.weights(kind),
            tokenizer,
            provenance(experiment, data_hash, reader.manifest.standing, of_data),
            **_search(experiment),
        )
    except ValueError as error:  # the tensors are not those of the model
        raise BadInput(f"{state}: must be of the model in {run.record}, and is not: {error}") from None


def _tokenizer(run: RunFolder, experiment: Experiment, data_hash: str) -> Path:
    """The one that the run trained with: of its prepared folder while that still holds the same data, else of a model.

    Raises BadInput where neither is left.
    """
    prepared = Path(experiment.data.directory)
    with contextlib.suppress(BadInput, OSError):
        if load_manifest(prepared)["data_hash"] == data_hash:
            return prepared / TOKENIZER_FILE
    for folder in (run.best, run.last):
        with contextlib.suppress(BadInput, OSError):
            if open_model_folder(folder, task=None).provenance.get("data_hash") == data_hash:
                return folder / TOKENIZER_FILE
    raise BadInput(
        f"{TOKENIZER_FILE}: must be in {prepared} with the data of the run, or in {run.best} or {run.last}; it is in "
        "none of them"
    )
