"""States that a DeepSpeed file keeps on disk (offload to `nvme`): in which folder, whether they can, and their end.

DeepSpeed names its files by rank alone, so each run has a folder of its own. What a killed start left in it goes when
the next one begins to build, which holds the run's lock by then.
"""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from bmscale.engine import process_group
from bmscale.engine.deepspeed_config import DeepSpeedFile
from bmscale.errors import BadInput
from bmscale.experiment import TrainingConfig

FOLDER = "offload"
"""In the run folder, where nobody names another place."""


class Disk:
    """The folder of one run for what its DeepSpeed file offloads to `nvme`."""

    def __init__(self, file: DeepSpeedFile, training: TrainingConfig, run_folder: Path) -> None:
        """Choose the folder. Raises BadInput where the place that was named is no folder, or nothing may be made in it,
        and for what cannot be trained with states on disk."""
        self.file, self._used = file, False
        _check(file, training)
        place = file.nvme_path if training.offload_folder is None else training.offload_folder
        key = f"{file.path}: nvme_path" if training.offload_folder is None else "training.offload_folder"
        if place is None:
            self.folder = run_folder / FOLDER
            return
        base = Path(os.path.expandvars(place)).expanduser()
        if not base.is_dir() or not os.access(base, os.W_OK | os.X_OK):
            raise BadInput(
                f"{key}: must be a folder that is there and may be written, on each node; got '{place}'"
                + (f", which is {base}" if str(base) != place else "")
                + ". Make it, or leave it out: states then lie in the run folder"
            )
        mark = hashlib.sha256(str(run_folder.absolute()).encode()).hexdigest()[:12]
        self.folder = base / f"bmscale-{mark}"

    def room(self) -> int:
        """Bytes that the run may take there: what is free, and what a killed start of it has left."""
        there = next(folder for folder in (self.folder, *self.folder.absolute().parents) if folder.is_dir())
        left = 0
        with contextlib.suppress(OSError):  # of a file that goes in the meantime
            left = sum(file.stat().st_size for file in self.folder.glob("**/*.swp"))
        return shutil.disk_usage(there).free + left

    def prepare(self, model: nn.Module, precision: str) -> None:
        """Empty the folder, and see that it has room for this node's share of a model's states. Collective.

        `model` may be on the meta device. Raises BadInput on every rank for too little room, for buffers too small for
        a parameter, and where the operator that reads and writes cannot be built.
        """
        problem = None
        if os.environ.get("LOCAL_RANK", "0") == "0":
            try:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(parents=True, exist_ok=True)
                self._check_operator()
                self._check_buffers(max(parameter.numel() for parameter in model.parameters()))
                self._check_room(model, precision)
            except BadInput as error:
                problem = str(error)
            except OSError as error:
                problem = f"{self.folder}: cannot be made: {error.strerror}"
        problems = [found for found in process_group.gather_objects(problem) if found]
        if problems:
            raise BadInput(problems[0])
        self._used = True

    def remove(self) -> None:
        """Remove what this rank wrote, and the folder with the last rank."""
        if not self._used:
            return
        rank, _ = process_group.rank_and_world_size()
        for own in self.folder.glob(f"*/*/rank{rank}"):
            shutil.rmtree(own, ignore_errors=True)
        with contextlib.suppress(OSError):  # of a rank that is not done
            for folder in [*self.folder.glob("*/*"), *self.folder.glob("*"), self.folder]:
                folder.rmdir()

    def _check_operator(self) -> None:
        from deepspeed.ops.op_builder import AsyncIOBuilder

        if not AsyncIOBuilder().is_compatible():
            raise BadInput(
                f"{self.file.path}: offloads to nvme, for which DeepSpeed builds an operator that needs libaio and its "
                "headers; install them (Debian, Ubuntu: apt-get install libaio-dev), or offload to cpu"
            )

    def _check_buffers(self, largest: int) -> None:
        if "param" not in self.file.on_disk:
            return
        _, world_size = process_group.rank_and_world_size()
        part = -(-largest // world_size)
        given = int(self.file.values["zero_optimization"]["offload_param"].get("buffer_size", 1e8))
        if part > given:
            raise BadInput(
                f"{self.file.path}: zero_optimization.offload_param.buffer_size: must be at least {part}, a rank's "
                f"part of the largest parameter; got {given}"
            )

    def _check_room(self, model: nn.Module, precision: str) -> None:
        # DeepSpeed writes a tied weight under each of its names, before they are tied.
        named = sum(parameter.numel() for _, parameter in model.named_parameters(remove_duplicate=False))
        own = sum(parameter.numel() for parameter in model.parameters())
        # Weights that are computed with; fp32 masters, two moments, and gradients.
        bytes_of_all = (2 if precision == "bf16" else 4) * named if "param" in self.file.on_disk else 0
        bytes_of_all += 16 * own if "optimizer" in self.file.on_disk else 0
        _, world_size = process_group.rank_and_world_size()
        needed = bytes_of_all * int(os.environ.get("LOCAL_WORLD_SIZE", "1")) / world_size
        free = self.room()
        if free < needed:
            raise BadInput(
                f"{self.folder}: must have room for the states of this node's ranks, {needed / 2**30:.3g} GiB; free: "
                f"{free / 2**30:.3g} GiB. Name another place with training.offload_folder"
            )


def _check(file: DeepSpeedFile, training: TrainingConfig) -> None:
    """Raises BadInput for what does not go with states on disk."""
    if file.stage != 3:
        raise BadInput(f"{file.path}: zero_optimization.stage: must be 3 to offload to nvme; got {file.stage}")
    if file.nvme_path is not None and training.offload_folder not in (None, file.nvme_path):
        raise BadInput(
            f"{file.path}: nvme_path: must be absent or '{training.offload_folder}', which training.offload_folder of "
            f"the experiment makes it; got '{file.nvme_path}'"
        )
    if "optimizer" not in file.on_disk:
        return
    offload: dict[str, Any] = file.values["zero_optimization"]["offload_optimizer"]
    key = f"{file.path}: zero_optimization.offload_optimizer"
    if offload.get("buffer_count", 4) < 4:
        count = offload["buffer_count"]
        raise BadInput(f"{key}.buffer_count: must be at least 4, for a master, two moments and a gradient; got {count}")
    for name in ("pipeline_read", "pipeline_write"):
        if offload.get(name, False):
            raise BadInput(f"{key}.{name}: must be absent or false: training states are read without it; got true")
    if training.ema_decay is not None:
        raise BadInput(
            "training.ema_decay: must be null where the optimizer's states lie on disk, which has no place for a mean "
            f"of the weights; got {training.ema_decay}. `bmscale average` makes one of saved models"
        )
    if training.save_in_background:
        raise BadInput(
            "training.save_in_background: must be false where the optimizer's states lie on disk: its copy would take "
            "them all into memory"
        )
