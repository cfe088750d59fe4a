"""Checks of what was asked for, on this machine: data, run folder, room, memory, how a step splits over the ranks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch

from bmscale.cluster import preflight
from bmscale.data.steps import Plan
from bmscale.doctor import machine
from bmscale.doctor.findings import Finding
from bmscale.engine.deepspeed_config import DeepSpeedFile
from bmscale.engine.trackers import choose_trackers
from bmscale.errors import BadInput
from bmscale.experiment import Experiment
from bmscale.model.config import TransformerConfig, is_classifier
from bmscale.planning import hardware, plan
from bmscale.planning.workload import Workload
from bmscale.planning.zero import Zero
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


# -- memory ----------------------------------------------------------------------------------------------------------


def check_need(
    experiment: Experiment, file: DeepSpeedFile | None, environment: Mapping[str, str], world_size: int
) -> Finding:
    """What a rank will take by `bmscale plan`, against what the machine has and what is free of it.

    A prediction: it fails only where the whole machine would not do, and otherwise warns.
    """
    on_cpu, training = not torch.cuda.is_available(), experiment.training
    workload = Workload.of(experiment, on_cpu=on_cpu)
    zero = Zero.from_json(file.values) if file else Zero(0)
    slots = workload.source + workload.target + is_classifier(workload.config)
    rows = min(plan.MOST_ROWS, max(1, training.max_micro_batch_tokens // slots))
    rows = min(rows, -(-workload.rows_per_step // world_size))
    whole, free = (_machine(environment, world_size, free=free) for free in (False, True))
    again = training.activation_checkpointing
    try:
        way = plan.assess(workload, zero, whole, rows, again)
        if way.lacks is None:
            lacks_now = plan.assess(workload, zero, free, rows, again).lacks
            device = "" if on_cpu else f"{plan.gib(way.memory.accelerator.total)} of the GPU and "
            found = f"a rank takes about {device}{plan.gib(way.memory.host)} of RAM"
            if lacks_now is None:
                return Finding("memory need", "ok", found)
            advice = "end what holds it, or lower training.max_micro_batch_tokens"
            return Finding("memory need", "warn", f"{lacks_now} free at the moment", advice)
        smaller = plan.search(workload, zero, whole, again, hardware.CALIBRATION)
        if smaller.lacks is None:
            advice = f"training.max_micro_batch_tokens={workload.slots(smaller.rows)}"
        else:
            other = plan.make(workload, whole)
            advice = other.chosen.describe() if other.chosen else f"one of: {'; '.join(other.remedies)}"
        return Finding("memory need", "fail", f"{experiment.name} {way.lacks}", f"what fits: {advice}")
    except BadInput as error:  # fewer rows in a step than ranks: training goes on, and ranks are idle
        return Finding("memory need", "warn", str(error))


def _machine(environment: Mapping[str, str], world_size: int, *, free: bool) -> hardware.Machine:
    """The nodes that were launched, each as this one; `free` counts the memory that is free at the moment."""
    ranks = machine.local_ranks(environment)
    ram = machine.free_memory() if free else hardware.host_memory()
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        card = hardware.of_device(name) or replace(hardware.ACCELERATORS["h100"], name=name)
        card = replace(card, memory=torch.cuda.mem_get_info()[0 if free else 1])
    else:
        card = replace(hardware.ACCELERATORS["cpu"], memory=ram / ranks)
    return hardware.Machine(card, ranks, -(-world_size // ranks), ram, card.nvme, card.nvme_bandwidth)
