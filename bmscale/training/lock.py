"""RUN/lock: one training at a time is at a run folder.

Rank 0 holds an flock(2) on it from before the first change in the folder until it has written how it ended, or its
process is gone: then the system lets go, after kill -9 as well. Over NFS, Linux (since 2.6.12) makes a lock of the
server's of it, which the other nodes see. Not covered: file systems without such locks (Lustre mounted without `flock`,
of which a warning tells; NFS mounted with `nolock` or `local_lock`, where only trainings on the same node meet), and a
node that its NFS server has not heard of for longer than the server's lease, while its training goes on.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

from bmscale.engine import process_group
from bmscale.errors import BadInput, message
from bmscale.experiment import RunFolder

log = logging.getLogger("bmscale")

PATIENCE_SECONDS = 10.0
"""A process that was killed a moment ago lets go only when its memory is freed."""
LEASE_SECONDS = 120.0
"""An NFS server keeps the lock of a node that died for its lease, 90 s unless set otherwise."""

_HELD_BY_ANOTHER = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_taken: dict[Path, int | None] = {}
"""Runs that this process trains; on rank 0 with the open file, which must stay open."""


def path_of(run: RunFolder) -> Path:
    """Where the lock of a run lies. The file stays; its lock does not."""
    return run.path / "lock"


def take(run: RunFolder) -> None:
    """Take the run for the ranks of this start. Collective. Raises BadInput on every rank when another training has
    it, or the folder cannot be written."""
    rank, _ = process_group.rank_and_world_size()
    key, problem = run.path.resolve(), None
    if rank == 0 and key not in _taken:
        try:
            _taken[key] = _lock(run)
        except (BadInput, OSError) as error:
            problem = message(error)
    (problem, *_) = process_group.gather_objects(problem)
    if problem is not None:
        raise BadInput(problem)
    _taken.setdefault(key, None)


def sign(run: RunFolder) -> None:
    """Say in the file who has it, for those that are refused. On rank 0, once the start is certain."""
    descriptor = _taken.get(run.path.resolve())
    if descriptor is not None:
        with contextlib.suppress(OSError):  # a full disk
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_me()).encode(), 0)


def release(run: RunFolder) -> None:
    """Let go, if this process has the run."""
    descriptor = _taken.pop(run.path.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)


def is_anothers(run: RunFolder) -> bool:
    """Whether another training is at the run now."""
    if run.path.resolve() in _taken:
        return False
    try:
        descriptor = os.open(path_of(run), os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _HELD_BY_ANOTHER
    finally:
        os.close(descriptor)
    return False


def _lock(run: RunFolder) -> int:
    path, begun = path_of(run), time.monotonic()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise BadInput(
            f"{run.path}: must be a folder that can be written ({path}: {error.strerror}); choose another run=FOLDER"
        ) from None
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError as error:
            if error.errno in _NO_LOCKS:
                log.warning("%s: the file system has no locks; nothing stops a second training of this run", path)
                return descriptor
            if error.errno not in _HELD_BY_ANOTHER:
                os.close(descriptor)
                raise
        holder = _read(path)
        # SLURM starts a job anew only when its earlier start is over.
        job, restart = (_me()[key] for key in ("job", "restart"))
        is_over = job is not None and holder.get("job") == job and holder.get("restart") != restart
        if time.monotonic() - begun > (LEASE_SECONDS if is_over else PATIENCE_SECONDS):
            if is_over:
                log.warning("%s: still locked for an earlier start of this job, which SLURM has ended", path)
                return descriptor
            os.close(descriptor)
            raise BadInput(
                f"{run.path}: another training ({holder.get('host')}, process {holder.get('pid')}) is at this run; "
                f"wait for its end, or end it: touch {run.path / 'STOP'}. If its node has crashed, remove {path}"
            )
        time.sleep(0.1)


def _me() -> dict[str, Any]:
    job, restart = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
    return {"host": socket.gethostname(), "pid": os.getpid(), "job": job, "restart": restart}


def _read(path: Path) -> dict[str, Any]:
    """Who has it; nothing where it was not said yet."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
