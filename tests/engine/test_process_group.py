"""What launchers say, and what is refused."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from bmscale.engine import process_group
from bmscale.engine.process_group import launched_world_size, remove_stale_locks
from bmscale.errors import BadInput


def test_without_a_launcher_there_is_one_rank():
    assert launched_world_size({}) == 1


def test_with_one_it_says_how_many():
    environment = {"MASTER_ADDR": "host", "WORLD_SIZE": "16", "RANK": "3"}
    assert launched_world_size(environment) == 16


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"MASTER_ADDR": "127.0.0.1"}, "MASTER_ADDR but no WORLD_SIZE"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a number; got 'two'"),
        ({"RANK": "abc"}, "RANK must be a number; got 'abc'"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 but RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "5"}, "got RANK 5 and WORLD_SIZE 2"),
        ({"WORLD_SIZE": "0"}, "got RANK 0 and WORLD_SIZE 0"),
        ({"RANK": "3"}, "got RANK 3 and WORLD_SIZE 1"),
    ],
)
def test_half_launched_is_refused(environment, message):
    with pytest.raises(BadInput, match=message):
        launched_world_size(environment)


def test_locks_of_killed_runs_are_removed(tmp_path, monkeypatch, caplog):
    """DeepSpeed's build lock has no owner: a run that is killed while it holds one would stop every later run."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    stale, held, fresh = (tmp_path / name / "lock" for name in ("stale", "held", "fresh"))
    for lock in (stale, held, fresh):
        lock.parent.mkdir()
        lock.touch()
    for lock in (stale, held):
        os.utime(lock, (time.time() - 30, time.time() - 30))
    with held.open():
        remove_stale_locks()
    assert not stale.exists()
    assert held.exists()
    assert fresh.exists()


def test_a_process_that_ends_meanwhile_is_no_mistake(tmp_path, monkeypatch):
    """Its folder in /proc goes between the listing and the look into it."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    lock = tmp_path / "op/lock"
    lock.parent.mkdir()
    lock.touch()
    os.utime(lock, (time.time() - 30, time.time() - 30))
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: (["999999999"] if path == "/proc" else []) + listed(path))
    remove_stale_locks()
    assert not lock.exists()


RANK = """
import deepspeed.comm
from bmscale.engine.engine import Engine
from bmscale.experiment import TrainingConfig
Engine(TrainingConfig(max_steps=1, deepspeed="zero0", precision="fp32"))
assert deepspeed.comm.comm.cdb.shm_comm_op, "the operator whose buffers these are is not in use"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed's shared memory is a matter of Linux")
def test_no_shared_memory_is_left_behind(tmp_path):
    """DeepSpeed itself leaves 67 MB of memory per rank and run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    worker = tmp_path / "worker.py"
    worker.write_text(RANK)
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", str(worker)]
    subprocess.run([sys.executable, *command], check=True, timeout=300)
    assert not list(Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{port}_*"))


def test_at_the_end_threads_that_wait_for_pythons_lock_get_it(tmp_path):
    """One of gloo's that still lets go of a tensor when the interpreter ends would abort the process."""
    go, done = threading.Event(), threading.Event()

    def wait() -> None:
        go.wait()
        done.set()

    thread = threading.Thread(target=wait)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    interval = sys.getswitchinterval()
    try:
        thread.start()
        sys.setswitchinterval(1000)
        go.set()
        process_group._let_gloo_finish()
        assert done.is_set()
    finally:
        sys.setswitchinterval(interval)
        dist.destroy_process_group()
        thread.join()
