"""The checks of one rank in their order, and what earlier ones leave to later ones."""

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from bmscale.doctor import experiment as asked
from bmscale.doctor import machine, packages, trial
from bmscale.doctor.findings import Finding
from bmscale.engine import deepspeed_config, process_group
from bmscale.engine.deepspeed_config import DeepSpeedFile
from bmscale.engine.engine import Engine
from bmscale.errors import BadInput
from bmscale.experiment import Experiment, TrainingConfig
from bmscale.planning import hardware
from bmscale.planning.plan import gib

ALL_REDUCE_ELEMENTS = {"cpu": 2**23, "cuda": 2**26}
"""fp32, of the tensor that is summed up."""
SLOW = 0.2
"""An all-reduce is slow that reaches less of the bandwidth that `bmscale plan` has for the links of the device."""


class Checks:
    """What one rank looks at. `alone` needs no other rank; of `together` every rank does each part at once."""

    def __init__(self, experiment: Experiment | None, environment: Mapping[str, str]) -> None:
        self.experiment, self.environment = experiment, environment
        self.training = TrainingConfig(max_steps=1) if experiment is None else experiment.training
        # Where a launcher's variables contradict each other, nobody knows who else is there; `launcher` says so.
        self.world_size = 1
        with contextlib.suppress(BadInput):
            self.world_size = process_group.launched_world_size(environment)
        self.file: DeepSpeedFile | None = None
        self.opened: asked.Opened | None = None
        self.engine: Engine | None = None

    def alone(self) -> dict[str, Callable[[], Finding]]:
        """By name, in their order; the longest last."""
        environment, experiment = self.environment, self.experiment
        checks: dict[str, Callable[[], Finding]] = {
            "versions": packages.check_versions,
            "launcher": partial(machine.check_launcher, environment),
            "settings": partial(machine.check_settings, environment),
            "deepspeed": self.choose_deepspeed,
            "accelerator": partial(machine.check_accelerator, environment),
            "memory": partial(machine.check_memory, environment),
            "shared memory": partial(machine.check_shared_memory, environment),
            "ports": partial(machine.check_ports, environment),
            "host name": partial(machine.check_host_name, environment),
        }
        if experiment is None:
            checks["disk"] = partial(machine.check_disk, Path("runs"))
        else:
            checks["disk"] = partial(asked.check_room, experiment)
            checks["trackers"] = partial(asked.check_trackers, experiment)
            checks["experiment"] = self.open
            checks["memory need"] = self.estimate_need
        return {**checks, "operators": self.build_operators}

    def together(self) -> dict[str, Callable[[], list[Finding]]]:
        """By name, in their order; none where there is one rank and nothing that it should train."""
        stages: dict[str, Callable[[], list[Finding]]] = {"engine": self.start_engine, "all-reduce": self.all_reduce}
        if self.experiment is not None:
            return {**stages, "trial": self.try_engine}
        return stages if self.world_size > 1 else {}

    # -- alone -------------------------------------------------------------------------------------------------------

    def choose_deepspeed(self) -> Finding:
        """Which DeepSpeed file launcher and experiment choose, and whether it fits the experiment. Raises BadInput."""
        choice = deepspeed_config.choose(self.training.deepspeed, self.environment, self.world_size)
        if choice is None:
            return Finding("deepspeed", "ok", "not used by one process")
        file = deepspeed_config.read(choice)
        deepspeed_config.complete(file, self.training, self.world_size)
        self.file = file
        return Finding("deepspeed", "ok", f"{file.path.name}: ZeRO-{file.stage}", alike=str(file.values))

    def build_operators(self) -> Finding:
        """The operators of that file; without an experiment those that several ranks on this machine need."""
        return machine.check_operators(self.file, required=self.experiment is None or self.file is not None)

    def open(self) -> Finding:
        """Whether training would begin on the prepared data. Raises BadInput."""
        assert self.experiment is not None
        self.opened = asked.Opened.of(self.experiment)
        rank = machine.number(self.environment, "RANK", least=0)
        return asked.check_data(self.experiment, self.opened, rank, self.world_size)

    def estimate_need(self) -> Finding:
        """What a rank will take of the machine's memory."""
        assert self.experiment is not None
        return asked.check_need(self.experiment, self.file, self.environment, self.world_size)

    # -- together ----------------------------------------------------------------------------------------------------

    def start_engine(self) -> list[Finding]:
        """The process group, as training starts it. Raises BadInput, LostRank."""
        self.engine = Engine(self.training)
        return [Finding("engine", "ok", self.engine.describe())]

    def all_reduce(self) -> list[Finding]:
        """Whether sums over ranks are right, and how fast they come."""
        assert self.engine is not None
        ranks, device = self.engine.world_size, self.engine.device
        if ranks == 1:
            return [Finding("all-reduce", "ok", "one rank has nobody to exchange with")]
        tensor = torch.full((ALL_REDUCE_ELEMENTS.get(device.type, 2**23),), float(self.engine.rank + 1), device=device)
        process_group.sum_over_ranks(tensor)
        wanted = ranks * (ranks + 1) / 2
        if not bool((tensor == wanted).all()):
            wrong = int((tensor != wanted).sum())
            found = f"{wrong:,} of {tensor.numel():,} sums over {ranks} ranks are wrong"
            return [Finding("all-reduce", "fail", found, "leave this node out, and have its network looked at")]
        rate = process_group.all_reduce_rate(process_group.sum_over_ranks, torch.zeros_like(tensor), ranks)
        found = f"{rate / 1e9:.3g} GB/s sent by each of {ranks} ranks, {gib(4 * tensor.numel())} at a time"
        card = hardware.of_device(self.engine.device_name)
        if card is not None:
            usual = card.network if ranks > process_group.local_ranks(self.environment) else card.link
            if rate < SLOW * usual:
                found += f"; the links of {card.name} have {usual / 1e9:.3g}"
                advice = "NCCL_DEBUG=INFO says which links are used; NCCL_SOCKET_IFNAME, NCCL_IB_HCA choose others"
                return [Finding("all-reduce", "warn", found, advice)]
        return [Finding("all-reduce", "ok", found)]

    @staticmethod
    def leave() -> None:
        """Leave the process group, where there is one."""
        process_group.stop()

    def try_engine(self) -> list[Finding]:
        """Steps of a tiny model."""
        assert self.engine is not None
        assert self.experiment is not None
        total_steps = self.opened.total_steps if self.opened else self.training.max_steps
        return trial.examine(self.engine, self.experiment, total_steps)
