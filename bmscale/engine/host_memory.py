"""How a process that computes on CPU keeps its memory between tensors."""

import contextlib
import ctypes
import hashlib
import logging
import os
import shutil
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


def peak() -> int:
    """The most bytes of memory that this process has had."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, StopIteration):  # ru_maxrss begins at what the parent had
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
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
    return sys.platform == "linux" and (_keep_in_region() or _keep_in_heap())


def _keep_in_region() -> bool:
    path = _library()
    if path is None:
        return False
    try:
        bmscale_keep = ctypes.CDLL(str(path)).bmscale_keep
    except OSError as error:
        log.warning("%s: cannot be loaded, tensors stay in the heap: %s", path, error)
        return False
    bmscale_keep.restype, bmscale_keep.argtypes = ctypes.c_bool, [ctypes.c_size_t]
    # Of addresses there is no want; what is never written takes no memory.
    return bool(bmscale_keep(2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))


def _library() -> Path | None:
    """host_memory.cpp, compiled for this PyTorch; None where that cannot be done."""
    folder, torch_folder = _build_folder(), Path(torch.__file__).parent
    key = hashlib.sha256(SOURCE.read_bytes() + f"{torch.__version__} {torch_folder}".encode()).hexdigest()[:16]
    path = folder / f"host_memory-{key}.so"
    if path.exists():
        return path
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return None
    whole = folder / f"{uuid.uuid4().hex}.so"  # ranks may do this side by side
    libraries = ["-L", str(torch_folder / "lib"), "-lc10", f"-Wl,-rpath,{torch_folder / 'lib'}"]
    command = [compiler, "-O2", "-std=c++20", "-shared", "-fPIC", "-I", str(torch_folder / "include"), str(SOURCE)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([*command, *libraries, "-o", str(whole)], check=True, capture_output=True, timeout=300)
        whole.replace(path)
    except (OSError, subprocess.SubprocessError) as error:
        why = getattr(error, "stderr", None) or str(error).encode()
        log.warning("%s could not be compiled, tensors stay in the heap: %s", SOURCE, why.decode(errors="replace"))
        return None
    return path


def _build_folder() -> Path:
    """Where DeepSpeed's operators are as well."""
    return (
        Path(os.environ.get("TORCH_EXTENSIONS_DIR") or torch.utils.cpp_extension.get_default_build_root()) / "bmscale"
    )


def _keep_in_heap() -> bool:
    mallopt = _mallopt()
    # Before glibc 2.35 no larger threshold is taken than the second.
    kept = mallopt(_MMAP_THRESHOLD, LARGEST_KEPT) or mallopt(_MMAP_THRESHOLD, 32 * 2**20)
    return bool(mallopt(_TRIM_THRESHOLD, MOST_KEPT) and kept)


def give_back() -> bool:
    """Return the memory of every freed tensor of `SMALLEST_RETURNED` at once, where the C library is glibc; returns
    whether it will.

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
