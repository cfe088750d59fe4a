"""The training state on disk: fp32 masters and Adam moments by parameter name, and where the run stands.

It knows no ranks and no ZeRO stage, so that any of them can go on from it. A state is written under a temporary name
and renamed when it is whole; what has no whole state.json is not a state.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bmscale.config import Config
from bmscale.engine import process_group
from bmscale.engine.engine import Engine
from bmscale.errors import BadInput

log = logging.getLogger("bmscale")

FORMAT = 1
SHARD_BYTES = 2**30


class Standing(Config):
    """Where a run stands: all that training needs besides the tensors."""

    optimizer_step: int = 0
    """Steps that changed the weights; the schedule follows it."""
    data_step: int = 0
    """Global steps of data consumed; larger than optimizer_step after skipped steps."""
    target_tokens: int = 0
    """Target tokens trained on."""
    seconds: float = 0.0
    """Wall time spent training, all starts together."""
    validated_step: int = -1
    """The data step of the last validation."""
    best_by: str = ""
    """The figure by which the best was chosen: loss, bleu or chrf."""
    best_value: float | None = None
    """Best validation figure so far, None before the first validation."""
    best_step: int = 0
    stale_validations: int = 0
    """Validations since the best one."""
    finished: bool = False
    """The run went to its end and wrote model/last."""

    def after_step(self, tokens: int, *, skipped: bool) -> "Standing":
        """The standing one global step later."""
        return self.with_(
            optimizer_step=self.optimizer_step + (not skipped),
            data_step=self.data_step + 1,
            target_tokens=self.target_tokens + (0 if skipped else tokens),
        )

    def with_(self, **changes: Any) -> "Standing":
        """A copy with these values."""
        return self.model_copy(update=changes)


def save_state(folder: Path, engine: Engine, standing: Standing, *, keep: int) -> Path:
    """Write `folder/step-NNNNNNNN` and drop all but the newest `keep` states. Collective."""
    final = folder / f"step-{standing.data_step:08d}"
    temporary = folder / f".tmp-{final.name}"
    if engine.is_main:
        for leftover in folder.glob(".*-step-*"):  # of starts that died while they wrote or removed a state
            shutil.rmtree(leftover)
        temporary.mkdir(parents=True)
    files: dict[str, int] = {}
    index: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}

    def flush() -> None:
        if not shard:
            return
        name = f"state-{len(files) + 1:05d}.safetensors"
        save_file(shard, temporary / name)
        (temporary / name).chmod(0o644)  # safetensors makes it readable by its owner alone
        _sync(temporary / name)
        files[name] = (temporary / name).stat().st_size
        index.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, kind, tensor in engine.state():  # every rank takes part, rank 0 keeps
        if engine.is_main:
            shard[f"{name}.{kind}"] = tensor
            if sum(held.nbytes for held in shard.values()) >= SHARD_BYTES:
                flush()
    if engine.is_main:
        flush()
        record = {"format": FORMAT, "standing": standing.model_dump(), "files": files, "tensors": index}
        (temporary / "state.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        _sync(temporary / "state.json")
        if final.exists():  # the end of a run may fall on a step that was saved already
            _remove(final)
        temporary.rename(final)
        _sync(folder)
        for old in list_states(folder)[:-keep]:
            _remove(old)
    process_group.barrier()
    return final


def _remove(state: Path) -> None:
    """Remove a state under another name, so that a death half-way leaves nothing that looks like one."""
    doomed = state.with_name(f".old-{state.name}")
    state.rename(doomed)
    shutil.rmtree(doomed)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_states(folder: Path) -> list[Path]:
    """The whole states of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())


def read_standing(state: Path) -> Standing:
    """Where the run stood. Raises BadInput for a state that is damaged or of another format."""
    record = _read_record(state)
    for name, size in record.files.items():
        given = (state / name).stat().st_size if (state / name).is_file() else 0
        if given != size:
            raise BadInput(f"{state / name}: must have {size} bytes, got {given}: the state is damaged; remove {state}")
    return record.standing


class _Record(Config):
    """The content of state.json."""

    format: int
    standing: Standing
    files: dict[str, int]
    """Bytes of each file."""
    tensors: dict[str, str]
    """The file of each tensor, by `name.kind`."""


def _read_record(state: Path) -> _Record:
    try:
        record = _Record.model_validate_json((state / "state.json").read_bytes())
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).splitlines()[:3])
        message = f"{state / 'state.json'}: damaged ({reason}); remove {state} to use the state before it"
        raise BadInput(message) from None
    if record.format != FORMAT:
        raise BadInput(f"{state}: has format {record.format}, this version reads {FORMAT}")
    return record


class StateReader:
    """Tensors of a state by parameter name and kind, read when asked for."""

    def __init__(self, state: Path) -> None:
        self._state, self._index = state, _read_record(state).tensors
        self._open: dict[str, Any] = {}

    def __call__(self, name: str, kind: str) -> torch.Tensor:
        """The full fp32 tensor. Raises BadInput when the state does not hold it."""
        key = f"{name}.{kind}"
        if key not in self._index:
            raise BadInput(f"{self._state}: holds no '{key}': it was saved by another model")
        file = self._index[key]
        try:
            if file not in self._open:
                self._open = {file: safe_open(self._state / file, framework="pt")}
            tensor: torch.Tensor = self._open[file].get_tensor(key)
            return tensor
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{self._state / file}: damaged ({error}); remove {self._state}") from None

    def names(self) -> Iterator[str]:
        """Keys `name.kind` of all tensors."""
        yield from self._index


def load_state(state: Path, engine: Engine, empty_step: Callable[[], None]) -> Standing:
    """Put the engine where the state was saved, on whatever ranks and ZeRO stage it has now. Collective."""
    standing = read_standing(state)
    engine.load_state(StateReader(state), standing.optimizer_step, empty_step)
    return standing
