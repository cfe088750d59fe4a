"""Checks of one rank's machine: devices, memory, disk, ports, compiler. Each returns a Finding and changes nothing."""

import os
import shlex
import shutil
import socket
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.utils.cpp_extension

from bmscale.data.workers import cores
from bmscale.doctor.findings import Finding, Status
from bmscale.engine import operators, process_group
from bmscale.engine.deepspeed_config import DeepSpeedFile
from bmscale.engine.process_group import local_ranks
from bmscale.planning.hardware import free_memory, host_memory
from bmscale.planning.plan import gib

MIB, GIB = 2**20, 2**30

BUSY_BYTES = 2 * GIB
"""What may be in use of an accelerator that is free: a desktop, a driver (as slurm/train.sh has it)."""
LITTLE_MEMORY = 2 * GIB
"""Of RAM for each rank: less hardly holds the interpreter and a small model."""
LITTLE_DISK = 5 * GIB
SHARED_BUFFER = 67 * 10**6
"""Bytes of /dev/shm that DeepSpeed takes for each rank on CPUs (deepspeed/ops/csrc/cpu/comm/shm.cpp)."""
USUAL_PORT = 29500
"""Of launch/multi_node.yaml, accelerate and torchrun."""
SHARED_SYSTEMS = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cephfs", "ceph", "fuse.sshfs", "smbfs", "cifs")


def number(environment: Mapping[str, str], name: str, least: int = 1) -> int:
    """What a variable says, at least `least`, which is also what one says that is no number or not there."""
    given = environment.get(name, "")
    return max(least, int(given)) if given.isdigit() else least


# -- how it was started ----------------------------------------------------------------------------------------------


def check_launcher(environment: Mapping[str, str]) -> Finding:
    """Whether a launcher started as many ranks as were asked for, and no process believes itself alone wrongly.

    Raises BadInput where it did not: `accelerate launch --cpu`, half a launcher's variables, fewer GPUs than ranks.
    """
    world_size = process_group.launched_world_size(environment)
    process_group.check_devices()
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0]
    if "RANK" not in environment and tasks.isdigit() and int(tasks) > 1:
        return Finding(
            "launcher",
            "warn",
            f"srun started {tasks} tasks on a node and no launcher runs: each would train a copy of its own",
            "give srun one task a node and start `accelerate launch` in it, as slurm/train.sh does",
        )
    if "RANK" not in environment:
        return Finding("launcher", "ok", "none: one process")
    absent = [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if absent:
        found = f"RANK is set but {' and '.join(absent)} not: half of what a launcher sets"
        return Finding("launcher", "fail", found, "unset RANK, or start with `accelerate launch` or torchrun")
    nodes = -(-world_size // local_ranks(environment))
    on = "this node" if nodes == 1 else f"{nodes} nodes"
    address = f"{environment.get('MASTER_ADDR')}:{environment.get('MASTER_PORT')}"
    ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
    return Finding("launcher", "ok", f"{ranks} on {on}, meeting at {address}")


def check_settings(environment: Mapping[str, str]) -> Finding:
    """Variables that are known to break training, or to slow it down.

    Sources: accelerate/state.py (`ACCELERATE_USE_FSDP`, `ACCELERATE_USE_CPU`), DeepSpeed's real_accelerator.py
    (`DS_ACCELERATOR`), torch's notes on debugging (`CUDA_LAUNCH_BLOCKING`, `TORCH_DISTRIBUTED_DEBUG`).
    """
    gpu = torch.cuda.is_available()
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM"):
        if environment.get(name, "").lower() in ("true", "1"):
            advice = "name one of launch/*.yaml with --config_file"
            return Finding(
                "settings", "fail", f"the launcher's file sets {name}: states are sharded by DeepSpeed", advice
            )
    if gpu and environment.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1"):
        advice = "put CUDA_VISIBLE_DEVICES= in front of the command, or use a launch file with use_cpu: false"
        return Finding("settings", "fail", "the launcher's file says use_cpu: true, and there are GPUs", advice)
    wanted = environment.get("DS_ACCELERATOR", "")
    if wanted and wanted != ("cuda" if gpu else "cpu"):
        there = "a GPU" if gpu else "no GPU"
        return Finding("settings", "fail", f"DS_ACCELERATOR is '{wanted}', and torch sees {there}", "unset it")
    slow = [f"{name}={value}" for name, value in _SLOW if environment.get(name) == value]
    if slow:
        return Finding("settings", "warn", f"{', '.join(slow)}: for looking for errors, and slow", "unset it to train")
    threads, ranks = torch.get_num_threads(), local_ranks(environment)
    given = environment.get("OMP_NUM_THREADS", "1")
    first = given.split(",")[0].strip()  # of OpenMP's list, a number a nested level
    if not (first.isdecimal() and int(first)):
        found = f"OMP_NUM_THREADS must be a number of threads from 1 on; got '{given}', which is not heeded"
        return Finding("settings", "warn", found, f"OMP_NUM_THREADS={max(1, cores() // ranks)}")
    if threads * ranks > cores() and ranks > 1:
        found = f"{ranks} ranks × {threads} threads on {cores()} cores: they wait for each other"
        return Finding("settings", "warn", found, f"OMP_NUM_THREADS={max(1, cores() // ranks)}")
    return Finding("settings", "ok", f"{threads} thread{'s' if threads > 1 else ''} a rank on {cores()} cores")


_SLOW = (("CUDA_LAUNCH_BLOCKING", "1"), ("TORCH_DISTRIBUTED_DEBUG", "DETAIL"))


# -- DeepSpeed's operators -------------------------------------------------------------------------------------------


def check_operators(file: DeepSpeedFile | None, *, required: bool) -> Finding:
    """Build and load what DeepSpeed compiles: a job that begins with it on many nodes may wait for long, or fail.

    `required` is whether the run cannot do without. (DeepSpeed issues 694, 5192, 6912, 5677.)
    """
    process_group.remove_stale_locks()
    names, begun = operators.needed(file), time.monotonic()
    for name in names:
        try:
            operators.load(name)
        except Exception as error:
            found, advice = _why_not_built(error)
            if not required:
                found += "; one process without DeepSpeed trains all the same"
            return Finding("operators", "fail" if required else "warn", found, advice)
    if not names:
        return Finding("operators", "ok", "none are needed here")
    shown = ", ".join(name.removesuffix("Builder") for name in names)
    found = f"{shown} of DeepSpeed loaded in {time.monotonic() - begun:.1f} s"
    if (system := _file_system(_operator_folder())) in SHARED_SYSTEMS:
        return Finding(
            *(
                "operators",
                "warn",
                f"{found}, from {_operator_folder()} on {system}: nodes wait for each other's locks",
            ),
            "set TORCH_EXTENSIONS_DIR to a local disk",
        )
    if _compiler() is None:
        found += f"; without a C++ compiler ('{_compiler_name()}') another version of torch could not build them"
        return Finding("operators", "warn", found, _GET_COMPILER)
    return Finding("operators", "ok", found)


_GET_COMPILER = "load its module or install one (Debian: apt install g++; macOS: xcode-select --install), or set CXX"


def _why_not_built(error: Exception) -> tuple[str, str]:
    """(what is wrong, what to change)."""
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not torch.utils.cpp_extension.is_ninja_available():
        beside = Path(sys.executable).parent
        if (beside / "ninja").exists():
            return "ninja is not on PATH: DeepSpeed cannot build its operators", f"PATH={beside}:$PATH"
        return "ninja is missing: DeepSpeed cannot build its operators", "pip install ninja"
    if _compiler() is None:
        return (
            f"no C++ compiler: '{_compiler_name()}' is not on PATH, and DeepSpeed builds its operators",
            _GET_COMPILER,
        )
    if not headers.exists():
        return f"Python's own headers are missing: {headers}", "install them (Debian: apt install python3-dev)"
    folder = _nearest(_operator_folder())
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder} must be writable for DeepSpeed's operators", "set TORCH_EXTENSIONS_DIR to a folder that is"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    said = next((line for line in lines if "error:" in line or "not found" in line), lines[0])
    built = lines[0].startswith("Error building extension")
    advice = f"make the compiler build it, or remove {_operator_folder()} and try again" if built else ""
    return f"DeepSpeed's operators cannot be loaded: {type(error).__name__}: {said}", advice


def _compiler_name() -> str:
    return (shlex.split(os.environ.get("CXX", "")) or ["c++"])[0]  # as torch.utils.cpp_extension chooses it


def _compiler() -> str | None:
    return shutil.which(_compiler_name())


def _operator_folder() -> Path:
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or torch.utils.cpp_extension.get_default_build_root())


# -- devices and memory ----------------------------------------------------------------------------------------------


def check_accelerator(environment: Mapping[str, str]) -> Finding:
    """Whether this rank's device (all devices of the machine, without a launcher) is free and computes."""
    if not torch.cuda.is_available():
        return _without_gpu(environment)
    own = [int(environment["LOCAL_RANK"])] if "LOCAL_RANK" in environment else range(torch.cuda.device_count())
    names, least = [], float("inf")
    for index in own:
        with torch.cuda.device(index):
            free, total = torch.cuda.mem_get_info()
            names.append(torch.cuda.get_device_name())
            if total - free > BUSY_BYTES:
                found = f"GPU {index} ({names[-1]}): {gib(total - free)} of {gib(total)} are in use already"
                advice = "end the process that holds it (nvidia-smi names it), or leave this GPU out"
                return Finding("accelerator", "fail", found, advice)
            if not _computes():
                found = f"GPU {index} ({names[-1]}) computes wrong products of matrices"
                return Finding("accelerator", "fail", found, "leave this GPU out, and have it replaced")
        least = min(least, free)
    kinds = ", ".join(dict.fromkeys(names))
    found = f"{len(names)} × {kinds}, {gib(least)} free" if len(names) > 1 else f"{kinds}, {gib(least)} free"
    return Finding("accelerator", "ok", found, alike="GPUs")


def _computes() -> bool:
    """Whether the present GPU multiplies matrices rightly."""
    one = torch.ones(1024, 1024, device="cuda")
    return bool(((one @ one) == 1024).all())


def _without_gpu(environment: Mapping[str, str]) -> Finding:
    hidden = environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if Path("/proc/driver/nvidia/version").exists() and not hidden:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs only"
        return Finding(
            "accelerator",
            "fail",
            f"there is a GPU driver, but torch {torch.__version__}, built {built}, sees no GPU",
            "ask the scheduler for one (--gpus-per-node), look at CUDA_VISIBLE_DEVICES, or install a torch that fits "
            "the driver (nvidia-smi shows its CUDA); CUDA_VISIBLE_DEVICES= trains on CPUs",
        )
    return Finding("accelerator", "ok", f"none: {cores()} CPU cores", alike="CPUs")


def check_memory(environment: Mapping[str, str]) -> Finding:
    """RAM that is free for each rank of the machine, by the kernel and by the limit of the job."""
    ranks = local_ranks(environment)
    free = free_memory()
    found = f"{gib(free)} of {gib(host_memory())} free" + (f" for {ranks} ranks" if ranks > 1 else "")
    status: Status = "warn" if free < ranks * LITTLE_MEMORY else "ok"
    advice = f"end what holds it, or ask for more: {gib(ranks * LITTLE_MEMORY)} are little for {ranks} rank(s)"
    return Finding("memory", status, found, advice if status == "warn" else "")


# -- disk and network ------------------------------------------------------------------------------------------------


def check_disk(folder: Path) -> Finding:
    """Room and inodes of the file system that a folder is or will be on, and whether it can be written."""
    there = _nearest(folder)
    usage, inodes = shutil.disk_usage(there), os.statvfs(there)
    found = f"{there}: {gib(usage.free)} free"
    if inodes.f_files and inodes.f_favail < 1000:
        return Finding("disk", "fail", f"{found}, but room for {inodes.f_favail} files only", "remove files")
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(MIB))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        advice = "make room or raise the quota, or choose another run=FOLDER"
        return Finding("disk", "fail", f"{there}: cannot be written: {error.strerror}", advice)
    if usage.free < LITTLE_DISK:
        return Finding(
            "disk", "warn", f"{found}: little for training states", "make room, or choose another run=FOLDER"
        )
    return Finding("disk", "ok", found)


def check_shared_memory(environment: Mapping[str, str], folder: Path = Path("/dev/shm")) -> Finding:
    """/dev/shm, through which the ranks of a machine exchange data: a container has 64 MB of it unless told."""
    if not folder.is_dir():
        return Finding("shared memory", "ok", "not used here")
    free, needed = shutil.disk_usage(folder).free, local_ranks(environment) * SHARED_BUFFER
    found = f"{folder}: {gib(free)} free"
    if free < needed:
        advice = f"make it larger (docker run --shm-size=1g), or remove what old runs left in {folder}"
        return Finding("shared memory", "fail", f"{found}, and the ranks of this machine take {gib(needed)}", advice)
    return Finding("shared memory", "ok", found)


def check_ports(environment: Mapping[str, str]) -> Finding:
    """Whether the port is free at which ranks would meet; under a launcher they have met there already."""
    given = environment.get("MASTER_PORT")
    try:
        port = int(given or USUAL_PORT)
        if "RANK" in environment and 0 < port < 2**16:
            return Finding("ports", "ok", f"{port} is that of the launcher")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except (ValueError, OverflowError):
        return Finding("ports", "fail", f"MASTER_PORT must be a number of 1 to 65535; got '{given}'", "unset it")
    except OSError as error:
        advice = "end what listens there, or set another: --main_process_port, MASTER_PORT"
        return Finding("ports", "fail" if given else "warn", f"{port}: {error.strerror}", advice)
    return Finding("ports", "ok", f"{port} is free")


def check_host_name(environment: Mapping[str, str]) -> Finding:
    """Whether other nodes can reach this one by its name: gloo offers the address that it stands for."""
    name = socket.gethostname()
    several = number(environment, "WORLD_SIZE") > local_ranks(environment)
    advice = "name the network's interface: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME (ip -br address lists them)"
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return Finding("host name", "fail" if several else "warn", f"{name} stands for no address", advice)
    if several and address.startswith("127.") and not environment.get("GLOO_SOCKET_IFNAME"):
        return Finding("host name", "warn", f"{name} is {address}, which other nodes cannot reach", advice)
    return Finding("host name", "ok", f"{name} is {address}")


def _nearest(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(place for place in [path.absolute(), *path.absolute().parents] if place.exists())


def _file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The kind of the file system of a path, as Linux names it; empty elsewhere."""
    try:
        rows = [line.split()[1:3] for line in mounts.read_text().splitlines()]
    except OSError:
        return ""
    place = path.resolve()
    inside = [(point, kind) for point, kind in rows if place.is_relative_to(point)]
    return max(inside, key=lambda row: len(row[0]), default=("", ""))[1]
