"""Experiment trackers through Accelerate: TensorBoard, Weights & Biases, MLflow and whatever else it knows by name."""

import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import filter_trackers, get_available_trackers

from bmscale.errors import BadInput

log = logging.getLogger("bmscale")


def choose_trackers(names: list[str] | None) -> list[str]:
    """The trackers to use: those that were named, or TensorBoard where it is installed.

    Raises BadInput for a name that Accelerate does not know or whose package is not installed.
    """
    available = [str(tracker) for tracker in get_available_trackers()]
    if names is None:
        return [name for name in ("tensorboard",) if name in available]
    missing = [name for name in names if name not in available]
    if missing:
        raise BadInput(
            f"training.trackers: must name trackers that are installed, which are {', '.join(available) or 'none'}; "
            f"got '{missing[0]}'. Install its package, or take it out"
        )
    return names


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """Nested settings as (`training.optimizer.betas.0`, value) pairs of what every tracker takes; None is left out."""
    if isinstance(values, Mapping):
        items = [(str(key), value) for key, value in values.items()]
    elif isinstance(values, list | tuple):
        items = [(str(index), value) for index, value in enumerate(values)]
    else:
        if values is not None:
            yield prefix, values if isinstance(values, bool | int | float | str) else str(values)
        return
    for key, value in items:
        yield from flatten(value, f"{prefix}.{key}" if prefix else key)


class Trackers:
    """The trackers of one run. Only rank 0 writes; a tracker that fails on the way never stops the training."""

    def __init__(
        self,
        accelerator: Accelerator,
        names: list[str],
        run: str,
        folder: Path,
        settings: Mapping[str, Any],
        step: int,
        known: Mapping[str, str] | None = None,
    ) -> None:
        """Open the trackers and give them the settings of the run, flattened. `folder` is for those that write files;
        a resumed run says the `step` it goes on from and the `known` identifiers of its earlier starts, so that its
        curve goes on instead of beginning anew. Raises BadInput when one cannot start."""
        self._accelerator, self._failed = accelerator, False
        known = known or {}
        # What a killed run had logged behind its last training state is logged again.
        options: dict[str, dict[str, Any]] = {"tensorboard": {"purge_step": step + 1}} if step else {}
        if "wandb" in known:
            options["wandb"] = {"id": known["wandb"], "resume": "allow"}
        if "mlflow" in known:
            options["mlflow"] = {"run_id": known["mlflow"]}
        try:
            accelerator.log_with = filter_trackers(names, folder)
            accelerator.project_configuration.logging_dir = str(folder)
            accelerator.init_trackers(run, dict(flatten(settings)), options)
        except Exception as error:  # each tracker has errors of its own: no login, no network, a folder it cannot make
            raise BadInput(f"training.trackers: cannot start {', '.join(names)}: {error}") from error

    def identifiers(self) -> dict[str, str]:
        """Which run of a tracker this one is, for those that name their runs; empty on ranks that track nothing."""
        found = {}
        for tracker in self._accelerator.trackers:
            run: Any = getattr(tracker, "tracker", None)
            if tracker.name == "wandb" and hasattr(run, "id"):
                found["wandb"] = str(run.id)
            if tracker.name == "mlflow" and hasattr(run, "info"):
                found["mlflow"] = str(run.info.run_id)
        return found

    def log(self, record: Mapping[str, Any]) -> None:
        """One record of metrics.jsonl, under its step."""
        if self._failed:
            return
        values = {
            key: value
            for key, value in flatten(record)
            if key != "step" and not isinstance(value, str) and math.isfinite(value)
        }
        try:
            self._accelerator.log(values, step=int(record["step"]))
        except Exception as error:  # as above; the figures are in metrics.jsonl all the same
            self._failed = True
            log.warning("a tracker failed and gets nothing more: %s", error)

    def finish(self) -> None:
        """Close the trackers. (Accelerate's own `end_training` would end the process group as well.)"""
        for tracker in self._accelerator.trackers:
            try:
                tracker.finish()
            except Exception as error:
                log.warning("the tracker %s could not be closed: %s", tracker.name, error)
