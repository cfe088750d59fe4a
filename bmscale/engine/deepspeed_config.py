"""Which DeepSpeed configuration a run uses, and what the engine writes into it.

The files in ds_configs say how states are sharded and offloaded, nothing else. Batch sizes, accumulation, clipping
and precision belong to the experiment: the engine writes them, and refuses a file that says otherwise.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from bmscale.config import shipped_file, shipped_names, suggest
from bmscale.errors import BadInput
from bmscale.experiment import TrainingConfig

NONE = "none"


@dataclass(frozen=True)
class DeepSpeedFile:
    """A DeepSpeed configuration as it stands on disk."""

    path: Path
    values: dict[str, Any]

    @property
    def stage(self) -> int:
        """ZeRO stage, 0 to 3."""
        return int(self.values["zero_optimization"]["stage"])

    def offloads(self, what: str) -> bool:
        """Whether `optimizer` or `param` states live outside the accelerator."""
        return self._device(what) != "none"

    @property
    def on_disk(self) -> tuple[str, ...]:
        """Which of `optimizer` and `param` states lie on disk (`nvme`)."""
        return tuple(what for what in ("optimizer", "param") if self._device(what) == "nvme")

    @property
    def nvme_path(self) -> str | None:
        """Where the file wants them, None where it does not say."""
        return next((path for what in self.on_disk if (path := self._offload(what).get("nvme_path"))), None)

    def _device(self, what: str) -> str:
        return str(self._offload(what).get("device", "none"))

    def _offload(self, what: str) -> dict[str, Any]:
        return self.values["zero_optimization"].get(f"offload_{what}") or {}


def choose(experiment_choice: str | None, environment: Mapping[str, str], world_size: int) -> str | None:
    """Name or path of the configuration to use, None for no DeepSpeed.

    The launcher's file if it names one, else the experiment's, else zero2 for more than one rank, else none. Raises
    BadInput when launcher and experiment name different ones, or when several ranks are to run without DeepSpeed.
    """
    launcher_choice = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", NONE)
    if launcher_choice == NONE and environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        for what in ("OPTIMIZER", "PARAM"):
            device = environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE", NONE)
            if device != NONE:
                raise BadInput(
                    f"the launcher asks to offload {what.lower()} states to {device} without naming a DeepSpeed file; "
                    "name one: deepspeed_config_file: ds_configs/zero3_offload.json"
                )
        stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
        launcher_choice = f"zero{stage}" if stage else NONE
    both = launcher_choice != NONE and experiment_choice is not None
    if both and (experiment_choice == NONE or find(launcher_choice) != find(str(experiment_choice))):
        raise BadInput(
            f"training.deepspeed is '{experiment_choice}' and the launcher says '{launcher_choice}': they must be the "
            "same; leave one of them out (training.deepspeed=null follows the launcher)"
        )
    chosen = launcher_choice if launcher_choice != NONE else experiment_choice
    if chosen is None:
        return "zero2" if world_size > 1 else None
    if chosen == NONE:
        if world_size > 1:
            raise BadInput(
                f"training.deepspeed: must name a DeepSpeed configuration for {world_size} ranks; got 'none', which "
                "runs on one rank only. zero0 keeps everything on every rank"
            )
        return None
    return chosen


def find(choice: str) -> Path:
    """The file of a name (`zero2`) or a path. Raises BadInput naming the nearest shipped one."""
    given = Path(choice)
    if given.is_file():
        return given.resolve()
    # A launch file says ds_configs/zero2.json, which is relative to a clone; a pip user has it in the package.
    name = given.name.removesuffix(".json")
    shipped = shipped_file("ds_configs", f"{name}.json")
    if shipped is not None and given.parent in (Path(), Path("ds_configs")):
        return shipped.resolve()
    names = [path.removesuffix(".json") for path in shipped_names("ds_configs")]
    raise BadInput(
        f"training.deepspeed: no such file or name: '{choice}'{suggest(name, names)} (names: {', '.join(names)})"
    )


def read(choice: str) -> DeepSpeedFile:
    """Read and check the file. Raises BadInput naming the file and the key."""
    path = find(choice)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: must be UTF-8: {error.reason}") from None
    zero = values.get("zero_optimization") if isinstance(values, dict) else None
    if not isinstance(zero, dict):
        raise BadInput(f"{path}: zero_optimization: must be given, as a mapping with a stage")
    if zero.get("stage") not in (0, 1, 2, 3):
        raise BadInput(f"{path}: zero_optimization.stage: must be 0, 1, 2 or 3; got {zero.get('stage')!r}")
    for section in ("bf16", "fp16", "data_types"):
        if not isinstance(values.get(section, {}), dict):
            raise BadInput(f"{path}: {section}: must be a mapping; got {values[section]!r}")
    _check_zero(path, zero)
    return DeepSpeedFile(path, values)


def _check_zero(path: Path, zero: dict[str, Any]) -> None:
    """DeepSpeed's own check of the section, before anything is written or started."""
    settle_deepspeed()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        nearest = suggest(key, DeepSpeedZeroConfig.model_fields) if first["type"] == "extra_forbidden" else ""
        raise BadInput(f"{path}: zero_optimization.{key}: {first['msg']}; got {first['input']!r}{nearest}") from None


def settle_deepspeed() -> None:
    """Before deepspeed is first imported: tell it that there is no GPU, which it would say on standard output."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


def complete(
    file: DeepSpeedFile, training: TrainingConfig, world_size: int, nvme_path: Path | None = None
) -> dict[str, Any]:
    """The dictionary for DeepSpeed: the file plus everything that the experiment decides, and where `nvme` is.

    Micro-batch 1 and accumulation 1 are formal values: the engine hands over loss and accumulation boundary itself
    (see `engine.Engine.train_step`). Raises BadInput when the file contradicts the experiment.
    """
    # DeepSpeed's stage 0 with bf16 would train pure bf16 weights; the engine runs it under autocast instead.
    bf16 = training.precision == "bf16" and file.stage > 0
    decided: dict[str, tuple[Any, str]] = {
        "train_batch_size": (world_size, "training.tokens_per_step"),
        "train_micro_batch_size_per_gpu": (1, "training.max_micro_batch_tokens"),
        "gradient_accumulation_steps": (1, "training.tokens_per_step"),
        "gradient_clipping": (training.clip_norm or 0.0, "training.clip_norm"),
        "bf16.enabled": (bf16, "training.precision"),
        "fp16.enabled": (False, "training.precision"),
    }
    for key in ("optimizer", "scheduler"):
        if key in file.values:
            section = "training.optimizer" if key == "optimizer" else "training.schedule"
            raise BadInput(f"{file.path}: {key}: must be absent: {section} of the experiment decides it")
    config: dict[str, Any] = json.loads(json.dumps(file.values))
    for path, (value, decider) in decided.items():
        section, _, key = path.rpartition(".")
        place = config.setdefault(section, {}) if section else config
        given = place.get(key, "auto")
        if given not in ("auto", value):
            raise BadInput(
                f"{file.path}: {path}: must be absent or {json.dumps(value)}, which {decider} of the experiment makes "
                f"it; got {json.dumps(given)}"
            )
        place[key] = value
    if bf16:
        config["bf16"].setdefault("check_grad_overflow", True)  # else ZeRO-2 takes a non-finite step and is poisoned
        config.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    for what in file.on_disk:
        config["zero_optimization"][f"offload_{what}"]["nvme_path"] = str(nvme_path)
    config["zero_allow_untested_optimizer"] = True
    # Under offload Accelerate would put DeepSpeed's CPU Adam in place of ours. That one multiplies its bias correction
    # up from step to step in memory of its own, which no state holds: a resumed run would differ in the last bits.
    config["zero_force_ds_cpu_optimizer"] = False
    return config
