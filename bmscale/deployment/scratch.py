"""The folder in which an export is made: `.NAME.<hex>.exporting`, beside its place and on the same file system.

Its process holds an flock(2) on the file `lock` in it, which the kernel releases when that process is gone, after
kill -9 as well. So the next export to the same place knows which of these folders nobody works in any more, and removes
them. The file names the host and the process: on some mounts such a lock is known to one host alone, so only folders of
this host are removed. A file system without such locks tells nothing: there they stay.
"""

import contextlib
import fcntl
import glob
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger("bmscale")

REPLACED = "replaced"
"""What an older export is called in it, for the moment between making room and moving the new one there."""
_LOCK = "lock"
_HEX = 4  # bytes


@contextlib.contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """A new folder, which is removed at the end. Of its own name: a second export to the same place has another."""
    path = out.with_name(f".{out.name}.{secrets.token_hex(_HEX)}.exporting")
    path.mkdir()
    with (path / _LOCK).open("wb", buffering=0) as lock:
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.write(f"{os.uname().nodename} {os.getpid()}\n".encode())  # not before: `remove_stale` waits for it
            yield path
        finally:
            _remove(path, out)


def remove_stale(out: Path) -> None:
    """Remove what exports to this place that were killed on this host have left."""
    for path in out.parent.glob(f".{glob.escape(out.name)}.{'[0-9a-f]' * 2 * _HEX}.exporting"):
        # OSError: none of ours, one that is being made or removed at this moment, or somebody works in it
        with contextlib.suppress(OSError), (path / _LOCK).open("rb+") as lock:
            if lock.read().split()[:1] != [os.uname().nodename.encode()]:  # of another host, or not locked yet
                continue
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path, out)
            log.info("removed %s, which an export that was killed had left", path)


def _remove(path: Path, out: Path) -> None:
    """But for an older export that had just made room, and no new one came: it goes back to its place."""
    if (path / REPLACED).is_dir() and not out.exists():
        (path / REPLACED).rename(out)
    shutil.rmtree(path)
