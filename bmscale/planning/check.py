"""Whether a training fits the machine that it is started on, by the planner, before it begins."""

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from bmscale.engine import deepspeed_config, process_group
from bmscale.engine.deepspeed_config import DeepSpeedFile
from bmscale.engine.disk import Disk
from bmscale.errors import BadInput
from bmscale.experiment import Experiment
from bmscale.model.config import is_classifier
from bmscale.planning import disk, hardware, plan
from bmscale.planning.plan import Way, gib
from bmscale.planning.workload import Workload
from bmscale.planning.zero import Zero

log = logging.getLogger("bmscale")

BEYOND_DOUBT = 1.15
"""A need of so many times what is there is refused: the planner asks for less than that too much (README, `bmscale plan
--verify`). Where tensors have to lie in the C library's heap (engine/host_memory.py), they take more than it says."""


@dataclass(frozen=True)
class Need:
    """What a rank will take, and what there is."""

    way: Way
    """As it is configured, on the whole machine; `lacks` says what would not fit with some room to spare."""
    lacks_now: str | None
    """What of it is not free at the moment."""
    advice: str
    """The nearest choice that fits the whole machine, where this one does not."""

    @property
    def is_impossible(self) -> bool:
        """Whether it does not fit, however the planner errs."""
        return self.way.excess * (1 - hardware.CALIBRATION.margin) > BEYOND_DOUBT

    @property
    def found(self) -> str:
        """`a rank takes about 12 GiB of the GPU and 3 GiB of RAM`."""
        memory = self.way.memory
        device = f"{gib(memory.accelerator.total)} of the GPU and " if torch.cuda.is_available() else ""
        return f"a rank takes about {device}{gib(memory.host)} of RAM"


def asked(experiment: Experiment, file: DeepSpeedFile | None, workload: Workload, machine: hardware.Machine) -> Way:
    """What an experiment asks for, with the DeepSpeed file that it chooses. Raises BadInput for a step with fewer rows
    than ranks."""
    training = experiment.training
    zero = Zero.from_json(file.values) if file else Zero(0, plain=True)
    slots = workload.source + workload.target + is_classifier(workload.config)
    rows = min(plan.MOST_ROWS, max(1, training.max_micro_batch_tokens // slots))
    rows = min(rows, -(-workload.rows_per_step // machine.world_size))
    return plan.assess(workload, zero, machine, rows, training.activation_checkpointing)


def beside(found: plan.Plan, experiment: Experiment) -> plan.Plan:
    """The plan, with what the experiment asks for to be compared. Raises BadInput for a DeepSpeed file that cannot be
    read."""
    ranks, choice = found.machine.world_size, experiment.training.deepspeed
    if choice == deepspeed_config.NONE and ranks > 1:
        log.warning("training.deepspeed=none runs on one rank; this is a plan for %d", ranks)
        return found
    choice = deepspeed_config.choose(choice, {}, ranks)
    file = deepspeed_config.read(choice) if choice else None
    return replace(found, asked=asked(experiment, file, found.workload, found.machine))


def need(experiment: Experiment, file: DeepSpeedFile | None, environment: Mapping[str, str], world_size: int) -> Need:
    """Of an experiment on the nodes that were launched. Raises BadInput for a step with fewer rows than ranks."""
    workload = Workload.of(experiment, on_cpu=not torch.cuda.is_available())
    whole, free = (_machine(experiment, file, environment, world_size, free=free) for free in (False, True))
    way = asked(experiment, file, workload, whole)
    if way.lacks is None:
        return Need(way, asked(experiment, file, workload, free).lacks, "")
    smaller = plan.search(workload, way.zero, whole, way.checkpointing, hardware.CALIBRATION)
    if smaller.lacks is None:
        return Need(way, way.lacks, f"training.max_micro_batch_tokens={workload.slots(smaller.rows)}")
    other = plan.make(workload, whole)
    advice = other.chosen.describe() if other.chosen else f"one of: {'; '.join(other.remedies)}"
    return Need(way, way.lacks, advice)


def check(experiment: Experiment, environment: Mapping[str, str] = os.environ) -> None:
    """Raises BadInput where the training cannot fit in memory, RAM or the disk of its offload; warns where it may not.

    A planner that does not know a machine must not keep it from training: its own errors are logged.
    """
    try:
        world_size = process_group.launched_world_size(environment)
        choice = deepspeed_config.choose(experiment.training.deepspeed, environment, world_size)
        file = deepspeed_config.read(choice) if choice else None
    except BadInput:
        return  # the training itself says so
    try:
        found = need(experiment, file, environment, world_size)
    except Exception as error:
        log.debug("the planner cannot say whether this fits: %s: %s", type(error).__name__, error)
        return
    if found.is_impossible:
        raise BadInput(
            f"{experiment.name}: {found.way.describe()} cannot fit: it {found.way.lacks}. What fits: {found.advice}. "
            "`bmscale plan` says more; --unchecked trains all the same"
        )
    if found.lacks_now is not None and environment.get("RANK", "0") == "0":
        log.warning("may not fit: it %s%s", found.lacks_now, "" if found.way.lacks else " at the moment")


def _machine(
    experiment: Experiment, file: DeepSpeedFile | None, environment: Mapping[str, str], world_size: int, *, free: bool
) -> hardware.Machine:
    """The nodes that were launched, each as this one; `free` counts the memory that is free at the moment."""
    ranks = process_group.local_ranks(environment)
    ram = hardware.free_memory() if free else hardware.host_memory()
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        card = hardware.of_device(name) or replace(hardware.ACCELERATORS["h100"], name=name)
        card = replace(card, memory=torch.cuda.mem_get_info()[0 if free else 1])
    else:
        card = replace(hardware.ACCELERATORS["cpu"], memory=ram / ranks)
    run = experiment.run_folder.path
    room = shutil.disk_usage(disk.place(experiment.training.offload_folder, run)).free
    if file and file.on_disk:
        room = Disk(file, experiment.training, run).room()
    return hardware.Machine(card, ranks, -(-world_size // ranks), ram, room, card.nvme_bandwidth)
