"""What an export that was killed has left goes; what one that lives works in stays."""

import contextlib
import fcntl
import subprocess
import sys

from bmscale.deployment.scratch import REPLACED, remove_stale, scratch_folder

PROGRAM = """
import sys
from pathlib import Path
from bmscale.deployment.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "out").mkdir()
    (folder / "out" / "half").touch()
    if len(sys.argv) > 2:
        Path(sys.argv[1]).rename(folder / sys.argv[2])
    print(folder, flush=True)
    sys.stdin.read()
"""


def start(*arguments):
    """An export that has begun: its process, and its folder."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_folder_is_removed_once_its_process_was_killed(tmp_path):
    out, other = tmp_path / "out", tmp_path / ".outer.abcd.exporting"
    other.mkdir()
    with start(out)[0] as process:
        (folder,) = tmp_path.glob(".out.*.exporting")
        remove_stale(out)
        assert (folder / "out" / "half").exists()
        process.kill()
        process.wait()
        assert folder.exists()
        remove_stale(out)
        assert list(tmp_path.iterdir()) == [other]


def test_an_older_export_that_had_made_room_comes_back(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "export.json").touch()
    with start(out, "replaced")[0] as process:
        assert not out.exists()
        process.kill()
        process.wait()
        remove_stale(out)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["out", "out/export.json"]


def test_nothing_is_left_after_an_error(tmp_path):
    try:
        with scratch_folder(tmp_path / "out") as folder:
            (folder / "out").touch()
            raise ValueError
    except ValueError:
        assert list(tmp_path.iterdir()) == []


def test_an_older_export_comes_back_after_an_interrupt(tmp_path):
    """Between making room and moving the new one there."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "export.json").touch()
    with contextlib.suppress(KeyboardInterrupt), scratch_folder(out) as folder:
        out.rename(folder / REPLACED)
        raise KeyboardInterrupt
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["out", "out/export.json"]


def test_folders_of_other_names_and_other_hosts_stay(tmp_path):
    out, longer = tmp_path / "out", tmp_path / "out.x"
    with start(longer)[0] as process:
        process.kill()
    (lock,) = tmp_path.glob(".out.x.*.exporting/lock")
    own = lock.read_bytes()
    remove_stale(out)
    assert lock.exists()
    for other in (b"another.host 1\n", b""):
        lock.write_bytes(other)
        remove_stale(longer)
        assert lock.exists()
    lock.write_bytes(own)
    remove_stale(longer)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_locked_yet_stays(tmp_path, monkeypatch):
    """Another export to the same place comes between its making and its lock."""
    out, flock = tmp_path / "out", fcntl.flock

    def late(*given):
        monkeypatch.setattr(fcntl, "flock", flock)
        remove_stale(out)
        flock(*given)

    monkeypatch.setattr(fcntl, "flock", late)
    with scratch_folder(out) as folder:
        assert fcntl.flock is flock
        assert (folder / "lock").exists()
