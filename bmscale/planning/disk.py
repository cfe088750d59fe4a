"""The disk that offloaded states go to, measured: a file written and read in large blocks past the page cache."""

import contextlib
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

BLOCK = 8 * 2**20
"""Bytes of one request."""
REQUESTS = 4
"""That are on their way at a time."""
MOST = 2**30
"""Bytes of the file at most."""
SPARE = 2**28
"""Bytes that stay free on the disk while it is measured."""


@dataclass(frozen=True)
class Disk:
    """A folder's disk: how much room it has, how fast it is."""

    free: float
    """Bytes."""
    read: float
    """Bytes/s."""
    write: float
    """Bytes/s."""
    source: str
    """What was measured, for people."""

    @property
    def bandwidth(self) -> float:
        """Bytes/s over as much reading as writing, which is what a step does."""
        return 2 / (1 / self.read + 1 / self.write)


def place(offload_folder: str | None, run_folder: Path) -> Path:
    """The folder whose disk a run would use: the one that is named, else the nearest of the run's that is there."""
    if offload_folder is not None:
        return Path(os.path.expandvars(offload_folder))
    return next(path for path in (run_folder, *run_folder.absolute().parents) if path.is_dir())


def measure(folder: Path, seconds: float) -> Disk | None:
    """Write and read in `folder` for about `seconds` each; None where it has no room, may not be written, or the system
    has no such requests.

    Direct I/O where the file system has it, as DeepSpeed's operator does; else writing counts until the disk has it,
    and reading may come from memory, which `source` says.
    """
    if not hasattr(os, "preadv"):
        return None
    try:
        free = shutil.disk_usage(folder).free
        size = int(min(MOST, free - SPARE)) // BLOCK * BLOCK
        if size < REQUESTS * BLOCK:
            return None
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".bmscale-") as file:
            descriptor, direct = _open(file.name)
            try:
                written, write = _pass(descriptor, os.pwritev, size, seconds)
                _, read = _pass(descriptor, os.preadv, written, seconds)
            finally:
                os.close(descriptor)
    except OSError:
        return None
    how = "direct I/O" if direct else "through the page cache, since its file system has no direct I/O"
    return Disk(free, read, write, f"{folder}: {written / 2**20:.0f} MiB in blocks of {BLOCK // 2**20} MiB, {how}")


def _open(path: str) -> tuple[int, bool]:
    """A descriptor, and whether it goes past the page cache."""
    direct = getattr(os, "O_DIRECT", 0)
    if direct:
        with contextlib.suppress(OSError):
            return os.open(path, os.O_RDWR | direct), True
    return os.open(path, os.O_RDWR), False


def _pass(
    descriptor: int, request: Callable[[int, list[mmap.mmap], int], int], size: int, seconds: float
) -> tuple[int, float]:
    """(bytes done, bytes/s) of requests over the first `size` bytes, for `seconds` at most."""
    blocks = [mmap.mmap(-1, BLOCK) for _ in range(REQUESTS)]  # direct I/O needs memory that is aligned to pages
    for block in blocks:
        block.write(os.urandom(BLOCK))  # some disks store nothing for zeros
    begun, done = time.perf_counter(), 0
    with ThreadPoolExecutor(REQUESTS) as pool:
        while done < size and (done == 0 or time.perf_counter() - begun < seconds):
            places = range(done, min(size, done + REQUESTS * BLOCK), BLOCK)
            done += sum(pool.map(request, [descriptor] * len(places), [[block] for block in blocks], places))
        os.fsync(descriptor)
    return done, done / (time.perf_counter() - begun)
