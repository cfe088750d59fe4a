"""Models of several validations of a run, in RUN/model/step-NNNNNNNN: which stay, and which are taken for an average.

What a folder is stands in its own provenance, written with it in one stroke: no list beside the folders can be lost
or contradict them. A folder without the mark of this run, or with a file that a model does not have, is somebody
else's, and is never removed or overwritten.
"""

import json
import logging
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmscale.errors import BadInput
from bmscale.experiment import RunFolder
from bmscale.model.folder import PROVENANCE, holds_only_a_model
from bmscale.training import record

log = logging.getLogger("bmscale")


@dataclass(frozen=True)
class KeptModel:
    """The model of one validation."""

    path: Path
    step: int
    figures: dict[str, Any]
    """loss, bleu and chrf of its validation, those that were computed."""

    def rank(self, select: str) -> tuple[float, int]:
        """Lower is better; of two that are equal, the earlier, as model/best has it."""
        value = self.figures.get(select)
        if not isinstance(value, int | float) or math.isnan(value):
            return math.inf, self.step
        return (value if select == "loss" else -value), self.step


def folder_of(run: RunFolder, step: int) -> Path:
    """Where the model of a step is kept."""
    return run.models / f"step-{step:08d}"


def mark(run: RunFolder) -> dict[str, Any]:
    """The entry of provenance by which the run knows its own: the time of its first start."""
    return {"kept_by": {"run_started": record.read(run).starts[0]["time"]}}


def may_write(run: RunFolder, step: int) -> bool:
    """Whether the name of a step is free or the run's own; says so in the log where it is not."""
    folder = folder_of(run, step)
    if not (folder.exists() or folder.is_symlink()) or any(kept.path == folder for kept in list_kept(run)):
        return True
    log.warning("%s: was not written by this run, so it stays, and the model of step %d is not kept", folder, step)
    return False


def list_kept(run: RunFolder) -> list[KeptModel]:
    """The run's own, oldest first."""
    wanted = mark(run)
    found = []
    for folder in sorted(run.models.glob("step-*")):
        if folder.is_symlink() or not holds_only_a_model(folder):
            continue
        try:
            provenance = json.loads((folder / PROVENANCE).read_bytes())
            step, figures = provenance["step"], provenance["validation"]
            own = wanted.items() <= provenance.items() and folder == folder_of(run, step) and isinstance(figures, dict)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if own:
            found.append(KeptModel(folder, step, figures))
    return found


def newest(kept: list[KeptModel], count: int) -> list[KeptModel]:
    """The last `count`, oldest first."""
    return sorted(kept, key=lambda model: model.step)[-count:]


def best(kept: list[KeptModel], count: int, select: str) -> list[KeptModel]:
    """The best `count` by a figure of validation, best first."""
    return sorted(kept, key=lambda model: model.rank(select))[:count]


def retain(run: RunFolder, count: int, select: str) -> None:
    """Remove all but the newest `count` and the best `count`."""
    kept = list_kept(run)
    staying = {model.path for model in (*newest(kept, count), *best(kept, count, select))}
    for model in kept:
        if model.path not in staying:
            _remove(model.path)


def forget_after(run: RunFolder, step: int) -> None:
    """Remove models of steps that a run which goes on from `step` has still to come to, as its metrics do."""
    for model in list_kept(run):
        if model.step > step:
            _remove(model.path)


def _remove(folder: Path) -> None:
    """Remove a folder under another name, so that a death half-way leaves nothing that looks like a model."""
    doomed = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def choose(run: RunFolder, *, last: int | None = None, best_by: int | None = None) -> list[Path]:
    """The folders of the newest `last`, or of the best `best_by` by the run's `evaluation.select`.

    Raises BadInput for what is no run folder, for none or both of the counts, one below 2, and fewer models than that.
    """
    select = record.read_experiment(run).evaluation.select
    if (last is None) == (best_by is None):
        given = "neither" if last is None else "both"
        raise BadInput(f"average RUN: exactly one of --last N and --best N must be given; got {given}")
    name, count = ("--last", last) if last is not None else ("--best", best_by)
    assert count is not None
    if count < 2:
        raise BadInput(f"{name}: must be at least 2 models; got {count}")
    kept = list_kept(run)
    if len(kept) < count:
        have = ", ".join(model.path.name for model in kept) or "none"
        raise BadInput(
            f"{name}: {run.models} must hold {count} models of validations; it has {len(kept)} ({have}). Ask for "
            "fewer, or train with evaluation.keep_models"
        )
    return [model.path for model in (newest(kept, count) if last is not None else best(kept, count, select))]
