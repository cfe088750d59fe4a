"""The folder in which an export is made: `.NAME.<hex>.exporting`, beside its place and on the same file system.

Its process holds an flock(2) on the file `lock` in it, which the kernel releases when that process is gone, after
kill -9 as well. So the next export to the same place knows which of these folders nobody works in any more, and removes
them. A file system without such locks tells nothing: there they stay.
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


@contextlib.contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """A new folder, which is removed at the end. Of its own name: a second export to the same place has another."""
    path = out.with_name(f".{out.name}.{secrets.token_hex(4)}.exporting")
    path.mkdir()
    descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path
    finally:
        shutil.rmtree(path)
        os.close(descriptor)


def remove_stale(out: Path) -> None:
    """Remove what exports to this place that were killed have left. An older export that one of them had just made room
    of goes back to its place."""
    for path in out.parent.glob(f".{glob.escape(out.name)}.*.exporting"):
        try:
            descriptor = os.open(path / _LOCK, os.O_RDWR)
        except OSError:  # none of ours, or one that is being made at this moment
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (path / REPLACED).is_dir() and not out.exists():
                (path / REPLACED).rename(out)
            shutil.rmtree(path)
            log.info("removed %s, which an export that was killed had left", path)
        except OSError:  # somebody works in it, or removes it too
            continue
        finally:
            os.close(descriptor)
