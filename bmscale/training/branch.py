"""A run that begins with a training state of another one (`branch_from`): a cooldown of a run at a constant rate.

What a step trains on depends on data, seed and step alone, and the state holds weights and moments. So where both
schedules have the same rate in all steps before the state, the branch is the run that would have begun anew with its
own length, bit by bit on the same ranks, and costs its last steps only (Hägele 2024, arXiv 2405.18392).
"""

import logging
from pathlib import Path
from typing import Any

from bmscale.errors import BadInput
from bmscale.experiment import Experiment, RunFolder, ScheduleConfig
from bmscale.training import checkpoint, record
from bmscale.training.schedule import rate_factor
from bmscale.training.standing import Standing

log = logging.getLogger("bmscale")


def origin(experiment: Experiment) -> dict[str, str] | str | None:
    """What a branch begins with, wherever that lies: the fingerprint of the other run, and the name of the state.

    A branch that has begun needs the other run no more; what it began with then stands in its own record. Raises
    BadInput for one that has not, where there is no such run.
    """
    if experiment.branch_from is None:
        return None
    run, state = experiment.run_folder, Path(experiment.branch_from)
    own = record.read(run).identity.get("branch_from") if run.record.is_file() else None
    if isinstance(own, str):  # of the first versions, which wrote the path
        return experiment.branch_from
    trunk = _run_of(state)
    if own is not None and not trunk.record.is_file():
        return {"run": own["run"], "state": state.name}
    if own is None and not state.is_dir():
        raise BadInput(f"branch_from: must be a training state, RUN/state/step-NNNNNNNN; there is no folder {state}")
    return {"run": record.fingerprint(record.read(trunk).identity), "state": state.name}


def _run_of(state: Path) -> RunFolder:
    return RunFolder(state.absolute().parent.parent)


def check(experiment: Experiment, identity: dict[str, Any], total_steps: int | None = None) -> None:
    """Whether the run can begin with the state that it names; one that has a state of its own needs no other.

    With `total_steps`, before the ranks start, it is not read as a whole, and a warning says where a run from scratch
    would have had other rates before it. Without, its hashes are compared: collective, ranks share the work. Raises
    BadInput for a state that is not there, damaged, behind the run's end or of a run with another identity, naming the
    keys.
    """
    run = experiment.run_folder
    if experiment.branch_from is None or (run.record.is_file() and checkpoint.list_states(run.states)):
        return
    state = Path(experiment.branch_from)
    if not state.is_dir():
        raise BadInput(f"branch_from: must be a training state, RUN/state/step-NNNNNNNN; there is no folder {state}")
    trunk = _run_of(state)
    its = record.read(trunk)
    given, was = (
        {key: value for key, value in each.items() if key not in ("branch_from", "init_from")}
        for each in (identity, its.identity)
    )
    changed = [f"{key}: {old!r:.80} there, {new!r:.80} here" for key, old, new in record.differences(was, given)]
    if changed:
        began = "; that run began with init_from, whose shape `model` must spell out here"
        raise BadInput(
            f"branch_from: {state}: a branch may differ in length, schedule and resources only; "
            + "; ".join(changed[: record.MOST_SHOWN])
            + (began if "init_from" in its.identity else "")
        )
    manifest = checkpoint.read_own(state, record.fingerprint(its.identity))
    if total_steps is None:
        problems = checkpoint.verify_together(state)
    else:
        problems = [f"{state / name}: is missing" for name in manifest.files if not (state / name).is_file()]
    if problems:
        raise BadInput(f"branch_from: {'; '.join(problems[:3])}; choose another state")
    step = manifest.standing.data_step
    if total_steps is None:
        return
    if step >= total_steps:
        raise BadInput(f"branch_from: {state} must be before the run's end; the run has {total_steps} steps")
    schedule = ScheduleConfig(**record.read_experiment(trunk).training.schedule.model_dump())
    own, steps = experiment.training.schedule, range(manifest.standing.optimizer_step)
    if any(rate_factor(k, schedule, its.total_steps) != rate_factor(k, own, total_steps) for k in steps):
        log.warning("branch_from: the rates before step %d are not those of this run's own schedule", step)


def standing(of_state: Standing) -> Standing:
    """Where the branch stands: as the other run, without what that one knows of its own models and trackers."""
    fresh = Standing()
    kept = ("best_by", "best_value", "best_step", "stale_validations", "validated_step", "rollbacks", "trackers")
    return of_state.with_(finished=False, **{key: getattr(fresh, key) for key in kept})
