"""Checks of what was asked for, on this machine: data, run folder, room, memory, how a step splits over the ranks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from bmscale.cluster import preflight
from bmscale.data.steps import Plan
from bmscale.doctor import machine
from bmscale.doctor.findings import Finding
from bmscale.engine.deepspeed_config import DeepSpeedFile
from bmscale.engine.trackers import choose_trackers
from bmscale.errors import BadInput
from bmscale.experiment import Experiment
from bmscale.model.config import TransformerConfig
from bmscale.planning import check
from bmscale.training.step_data import TrainingData
from bmscale.training.train import planned


@dataclass(frozen=True)
class Opened:
    """The data of an experiment and what it makes of it."""

    data: TrainingData
    steps: Plan
    total_steps: int
    config: TransformerConfig
    data_hash: str

    @classmethod
    def of(cls, experiment: Experiment) -> Self:
        """Raises BadInput for all that one process can know to be wrong before training."""
        data, steps, total_steps, _, config, identity = planned(experiment, new_schedule=False)
        return cls(data, steps, total_steps, config, identity["data_hash"])


def check_data(experiment: Experiment, opened: Opened, rank: int, world_size: int) -> Finding:
    """How much there is to train on, the same on every rank, and whether this one has something to do in step 1."""
    step = opened.data.read_step(opened.steps, 0, opened.config, rank, world_size)
    alike, batches = f"data {opened.data_hash[:12]}", len(step.batches)
    if not any(batch.target_tokens for batch in step.batches):
        tokens = experiment.training.tokens_per_step
        found = f"nothing to do in step 1: training.tokens_per_step is {tokens:,} over {world_size} ranks"
        advice = "raise it, lower training.max_micro_batch_tokens, or take fewer ranks"
        return Finding("experiment", "warn", found, advice, alike)
    many = "1 micro-batch" if batches == 1 else f"{batches} micro-batches"
    found = f"{experiment.name}: {opened.data.describe()}, {opened.total_steps:,} steps, {many} a rank in the first"
    return Finding("experiment", "ok", found, alike=alike)


def check_trackers(experiment: Experiment) -> Finding:
    """Whether the trackers are installed. Raises BadInput."""
    chosen = choose_trackers(experiment.training.trackers)
    return Finding("trackers", "ok", ", ".join(chosen) or "none")


def check_room(experiment: Experiment) -> Finding:
    """Whether the run's file system can be written and has room for what the run will keep. Raises BadInput."""
    finding = machine.check_disk(experiment.run_folder.path)
    if finding.status != "fail":
        preflight.check_room(experiment)
        return replace(
            finding, status="ok", found=f"{finding.found}, enough for the run's states and models", advice=""
        )
    return finding


def check_need(
    experiment: Experiment, file: DeepSpeedFile | None, environment: Mapping[str, str], world_size: int
) -> Finding:
    """What a rank will take by `bmscale plan`, against what the machine has and what is free of it.

    A prediction: it fails only where the whole machine would not do, and otherwise warns.
    """
    try:
        need = check.need(experiment, file, environment, world_size)
    except BadInput as error:  # fewer rows in a step than ranks: training goes on, and ranks are idle
        return Finding("memory need", "warn", str(error))
    if need.way.lacks is not None:
        return Finding("memory need", "fail", f"{experiment.name} {need.way.lacks}", f"what fits: {need.advice}")
    if need.lacks_now is not None:
        advice = "end what holds it, or lower training.max_micro_batch_tokens"
        return Finding("memory need", "warn", f"{need.lacks_now} free at the moment", advice)
    return Finding("memory need", "ok", need.found)
