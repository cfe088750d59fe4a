"""Who runs beside us: ranks, device, and the few collectives that training needs.

Accelerate starts the process group, under `accelerate launch`, under torchrun or alone. Two of its silent failures are
refused here: on a machine without a GPU it would train one independent copy per rank unless told `gloo`, and
`accelerate launch --cpu --num_processes 2` starts one process only.
"""

import atexit
import contextlib
import logging
import math
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.utils.cpp_extension
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs

from bmscale.engine import host_memory
from bmscale.engine.deepspeed_config import settle_deepspeed
from bmscale.errors import BadInput, LostRank

log = logging.getLogger("bmscale")

STALE_LOCK_SECONDS = 900


def local_ranks(environment: Mapping[str, str]) -> int:
    """How many of the ranks run on this machine; of a number that is none `launched_world_size` tells."""
    given = environment.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(given)) if given.isdigit() else 1


def launched_world_size(environment: Mapping[str, str]) -> int:
    """How many ranks the launcher started; 1 without a launcher.

    Raises BadInput for `accelerate launch --cpu --num_processes N`, which starts a single process whatever N is.
    """
    if "MASTER_ADDR" in environment and "WORLD_SIZE" not in environment:
        raise BadInput(
            "the launcher set MASTER_ADDR but no WORLD_SIZE, so it started one process only (`accelerate launch --cpu` "
            "does that); use `accelerate launch --config_file launch/cpu_2proc.yaml` or torchrun"
        )
    numbers = {}
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        if name in environment:
            try:
                numbers[name] = int(environment[name])
            except ValueError:
                raise BadInput(
                    f"{name} must be a number; got '{environment[name]}'; unset it, or use a launcher"
                ) from None
    world_size = numbers.get("WORLD_SIZE", 1)
    rank = numbers.get("RANK", 0)
    if world_size > 1 and "RANK" not in numbers:
        raise BadInput(f"WORLD_SIZE is {world_size} but RANK is not set; unset WORLD_SIZE, or use a launcher")
    if not 0 <= rank < world_size:
        raise BadInput(f"RANK must lie in 0 … WORLD_SIZE - 1; got RANK {rank} and WORLD_SIZE {world_size}")
    return world_size


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stand_alone(world_size: int) -> None:
    """DeepSpeed wants a process group even for one rank: give it the variables a launcher would."""
    for name, value in (
        ("RANK", "0"),
        ("LOCAL_RANK", "0"),
        ("WORLD_SIZE", str(world_size)),
        ("LOCAL_WORLD_SIZE", "1"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", str(_free_port())),
    ):
        os.environ.setdefault(name, value)


def check_devices() -> None:
    """Raises BadInput when this node has GPUs, but fewer than ranks: they would share one, or fail for want of it."""
    ranks, devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if 0 < devices < ranks:
        raise BadInput(
            f"there must be a GPU for each rank of a node, or none; got {ranks} ranks and {devices} GPUs. Launch with "
            f"--num_processes {devices}, or set CUDA_VISIBLE_DEVICES= (to nothing) to train on CPUs"
        )


def remove_stale_locks() -> None:
    """Remove locks that a killed run left on DeepSpeed's C++ operators: every later run would wait for ever.

    A lock is stale when no process of this machine has it open. Where other machines may share the folder, or /proc
    does not tell, it is when it is older than any build takes.
    """
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or torch.utils.cpp_extension.get_default_build_root())
    alone = os.environ.get("WORLD_SIZE") == os.environ.get("LOCAL_WORLD_SIZE") and sys.platform == "linux"
    held = _open_files() if alone else None
    for lock in [*root.glob("*/lock"), *root.glob("*/*/lock")]:
        with contextlib.suppress(OSError):  # it may go away while we look at it
            age = time.time() - lock.stat().st_mtime
            if age > STALE_LOCK_SECONDS if held is None else age > 2 and str(lock.resolve()) not in held:
                log.warning("removed %s, left behind by a run that was killed", lock)
                lock.unlink()


def _open_files() -> set[str]:
    """Paths that processes of this machine have open, as far as we may see."""
    found = set()
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it may end meanwhile, or be another user's
            for file in os.listdir(f"/proc/{process}/fd"):
                with contextlib.suppress(OSError):
                    found.add(os.readlink(f"/proc/{process}/fd/{file}"))
    return found


def start(
    deepspeed_config: dict[str, Any] | None, precision: str, timeout_minutes: float = 30.0, *, save_memory: bool = False
) -> Accelerator:
    """Start the process group, through DeepSpeed when a configuration is given.

    `save_memory` takes as little of the host's memory as it can, rather than as little time. Raises LostRank when fewer
    ranks met than were launched.
    """
    expected = launched_world_size(os.environ)
    if save_memory:
        host_memory.give_back()
    elif not torch.cuda.is_available():
        host_memory.keep()
    plugin, handlers = None, []
    if deepspeed_config is not None:
        _stand_alone(expected)
        check_devices()
        if os.environ.get("LOCAL_RANK") == "0":
            remove_stale_locks()
        # Without it DeepSpeed's shared-memory collectives on CPU stay off.
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
        # The dictionary is complete; a launcher's file or fields would only contradict it.
        for name in ("ACCELERATE_DEEPSPEED_CONFIG_FILE", "ACCELERATE_CONFIG_DS_FIELDS"):
            os.environ.pop(name, None)
        settle_deepspeed()
        # torch renamed collectives that DeepSpeed still calls by their old names: nothing a user could mend.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
        plugin = DeepSpeedPlugin(hf_ds_config=deepspeed_config)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        handlers = [InitProcessGroupKwargs(backend=backend, timeout=timedelta(minutes=timeout_minutes))]
    else:
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    try:
        accelerator = _accelerator(deepspeed_config, plugin, handlers)
    except (ValueError, ImportError, NotImplementedError) as error:  # of variables that accelerate reads itself
        raise BadInput(f"accelerate cannot start with this environment: {error}") from None
    if accelerator.num_processes != expected:
        raise LostRank(
            f"{expected} ranks were launched and {accelerator.num_processes} met: they would train independent copies. "
            "Start them with one of launch/*.yaml"
        )
    barrier()
    _unlink_shared_buffer(accelerator.process_index)
    return accelerator


def _unlink_shared_buffer(rank: int) -> None:
    """Take the name of DeepSpeed's shared-memory buffer away once every rank has it open.

    DeepSpeed never does, so each rank of each run on CPUs would leave 67 MB of memory behind for ever; without a name,
    the system frees it when the last rank ends, however it ends. The name is that of `shm_initialize` in
    deepspeed/ops/csrc/cpu/comm/shm.cpp.
    """
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if sys.platform == "linux":
        Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{rank}").unlink(missing_ok=True)


def _accelerator(config: dict[str, Any] | None, plugin: DeepSpeedPlugin | None, handlers: list[Any]) -> Accelerator:
    return Accelerator(
        mixed_precision="bf16" if config and config["bf16"]["enabled"] else "no",
        deepspeed_plugin=plugin,
        kwargs_handlers=handlers,
    )


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all ranks, on every rank and the tensor's own device."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return values
    if dist.get_backend() == "nccl" and not values.is_cuda:  # which knows tensors of GPUs only
        moved = values.cuda()
        dist.all_reduce(moved)
        return values.copy_(moved)
    dist.all_reduce(values)
    return values


def any_rank(flags: Sequence[bool]) -> list[bool]:
    """For each flag, whether it is set on any rank; the same answer on every rank."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return list(flags)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    counts = torch.tensor([int(flag) for flag in flags], device=device)
    dist.all_reduce(counts)
    return [count > 0 for count in counts.tolist()]


def all_reduce_rate(
    all_reduce: Callable[[torch.Tensor], object], tensor: torch.Tensor, ranks: int, repeats: int = 4
) -> float:
    """Bytes/s that each rank sends: 2 (N - 1) / N of the tensor (Thakur 2005), over the best of several times.

    Collective: every rank calls it with a tensor of the same shape, whose values are then sums.
    """
    wait = torch.cuda.synchronize if tensor.is_cuda else lambda: None
    best = math.inf
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        all_reduce(tensor)
        wait()
        best = min(best, time.perf_counter() - start)
    return 2 * (ranks - 1) / ranks * tensor.numel() * tensor.element_size() / best


def rank_and_world_size() -> tuple[int, int]:
    """Which of how many ranks this is; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather_objects(value: Any) -> list[Any]:
    """One object from each rank, in rank order, on every rank."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def barrier() -> None:
    """Wait until every rank is here."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def stop() -> None:
    """Leave the process group, so that no rank is killed for a connection that just went away."""
    if dist.is_initialized():
        dist.destroy_process_group()


@atexit.register
def _let_gloo_finish() -> None:
    """Leave Python's lock to the threads of gloo, where there are any, until none of them has anything to do.

    They drop the tensors of a collective after whoever waited for it has gone on, and need that lock for it. Where the
    interpreter is ending by then, they abort the process ("terminate called without an active exception").
    """
    until = time.monotonic() + 5
    while time.monotonic() < until and (states := _states_of_gloo()):
        time.sleep(0.01)
        if "R" not in states | _states_of_gloo():
            return


def _states_of_gloo() -> set[str]:
    """Of its threads (proc(5)): R where one runs or waits for a core."""
    found = set()
    for task in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError):  # it may end while we look at it
            name, rest = (task / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
            if name == "pt_gloo_runloop":
                found.add(rest.split()[0])
    return found
