"""How a process that computes on CPU keeps its memory between tensors."""

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import torch
import torch.utils.cpp_extension

log = logging.getLogger("bmscale")

SOURCE = Path(__file__).with_suffix(".cpp")

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's malloc.h."""

SMALLEST_RETURNED = 2**20
"""Bytes from which `give_back` returns a freed tensor's memory."""

LARGEST_KEPT = 128 * 2**20
"""Bytes up to which the heap keeps a freed tensor's memory for the next one; what is larger goes back to the system."""

MOST_KEPT = 512 * 2**20
"""Bytes that may lie free at the end of the heap before they go back to the system. (A tensor does not always fit where
one of its size lay, for its alignment, so that this much may well be used.)"""


PRIMITIVES_KEPT = 64
"""Shapes of matrix products whose code oneDNN, and PyTorch beside it, keep. Each takes about 0.6 MB, both keep 1,024 by
default, and a step of sentences has shapes of its own: bf16 took 0.6 GB of them after some twenty steps."""


def peak() -> int:
    """The most bytes of memory that this process has had."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, StopIteration):  # ru_maxrss begins at what the parent had
            lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
            return 2**10 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    import resource

    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def keep() -> bool:
    """Keep the memory of freed tensors for later ones; returns whether it will.

    In a region of our own (host_memory.cpp), for which a C++ compiler is needed the first time, as DeepSpeed needs
    one. Else in the heap, where the C library is glibc: by default that hands what is above 32 MiB back to the kernel
    at every free, and the next tensor of that size pays a page fault for each 4 KiB, in which the kernel fills it with
    zeros: a tenth of a small model's training step.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # read at the first product
        os.environ.setdefault(name, str(PRIMITIVES_KEPT))
    if sys.platform != "linux":
        return False
    try:
        kept = _keep_in_region()
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        log.warning("tensors stay in the C library's heap, where they may take twice as much memory: %s", said)
        return _keep_in_heap()
    if not kept:  # a limit of address space (ulimit -v), or a kernel that promises no more than it has
        log.warning("tensors stay in the C library's heap: the system gives this process too few addresses")
    return kept or _keep_in_heap()


def _keep_in_region() -> bool:
    """Raises OSError and SubprocessError where host_memory.cpp cannot be compiled or loaded."""
    bmscale_keep = ctypes.CDLL(str(_library())).bmscale_keep
    bmscale_keep.restype, bmscale_keep.argtypes = ctypes.c_bool, [ctypes.c_size_t]
    # Of addresses there is no want; what is never written takes no memory.
    return bool(bmscale_keep(2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))


def _library() -> Path:
    """host_memory.cpp, compiled for this PyTorch and kind of machine, beside DeepSpeed's operators."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or torch.utils.cpp_extension.get_default_build_root()
    folder, torch_folder = Path(root) / "bmscale", Path(torch.__file__).parent
    made_for = f"{torch.__version__} {torch_folder} {platform.machine()} {platform.libc_ver()}"
    key = hashlib.sha256(SOURCE.read_bytes() + made_for.encode()).hexdigest()[:16]
    path = folder / f"host_memory-{key}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    options = ["-O2", "-std=c++20", "-shared", "-fPIC", "-I", str(torch_folder / "include")]
    libraries = ["-L", str(torch_folder / "lib"), "-lc10", f"-Wl,-rpath,{torch_folder / 'lib'}"]
    whole = folder / f"{uuid.uuid4().hex}.so"  # ranks may do this side by side
    command = [*compiler, *options, str(SOURCE), *libraries, "-o", str(whole)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        whole.replace(path)
    finally:
        whole.unlink(missing_ok=True)
    return path


def _keep_in_heap() -> bool:
    mallopt = _mallopt()
    # Before glibc 2.35 no larger threshold is taken than the second.
    kept = mallopt(_MMAP_THRESHOLD, LARGEST_KEPT) or mallopt(_MMAP_THRESHOLD, 32 * 2**20)
    return bool(mallopt(_TRIM_THRESHOLD, MOST_KEPT) and kept)


def give_back() -> bool:
    """Return the memory of every freed tensor of `SMALLEST_RETURNED` at once, where the C library is glibc and `keep`
    was not called before; returns whether it will.

    Left to itself glibc soon keeps all below 32 MiB, and where tensors of many sizes come and go, as when ZeRO-3
    gathers parameters, what lies between two that live is lost: a billion of them left 2.5 GiB of such holes.
    """
    return bool(_mallopt()(_MMAP_THRESHOLD, SMALLEST_RETURNED))


def _mallopt() -> Callable[[int, int], int]:
    """That of the C library, or one that does nothing and says so."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            found: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
            return found
    return lambda number, value: 0
