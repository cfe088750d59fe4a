"""Worker processes: order, bounded memory, errors."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bmscale.data import workers
from bmscale.data.workers import Workers, _interrupts_held
from bmscale.errors import BadInput, BmscaleError


def _crash(_: int) -> int:
    os._exit(9)


def _square(number: int) -> int:
    return number * number


def _wrong(number: int) -> int:
    if number == 30:
        raise BadInput("thirty")
    return number


def test_worker_processes_keep_order_bound_memory_and_pass_errors_on():
    drawn = []

    def items():
        for i in range(100):
            drawn.append(i)
            yield i

    with Workers(2) as pool:
        results = pool.map(_square, items())
        assert next(results) == 0
        assert len(drawn) <= 8  # the input is not read ahead without bound
        assert list(results) == [i * i for i in range(1, 100)]
        with pytest.raises(BadInput, match="thirty"):
            list(pool.map(_wrong, range(100)))
        with pytest.raises(BmscaleError, match="worker process was killed"):
            list(pool.map(_crash, range(4)))


ENDLESS = """
import os, time
from bmscale.data.workers import Workers
def work(number):
    os.write(1, f"{os.getpid()}\\n".encode())  # at once: two of them write to one pipe
    time.sleep(1000)
if __name__ == "__main__":
    list(Workers(2).map(work, range(4)))
"""


def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path):
    (tmp_path / "endless.py").write_text(ENDLESS)
    with subprocess.Popen([sys.executable, tmp_path / "endless.py"], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            workers = [int(parent.stdout.readline()) for _ in range(2)]
        finally:
            parent.kill()
        deadline = time.monotonic() + 60
        while any(is_running(worker) for worker in workers):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        status = Path(f"/proc/{pid}/stat")  # one that is dead and not reaped by anybody does not count
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("threads", [0, 2])  # another thread takes a signal that the main thread blocks
def test_an_interrupt_while_processes_start_comes_afterwards(threads):
    reached = []
    done = threading.Event()
    others = [threading.Thread(target=done.wait) for _ in range(threads)]

    def start() -> None:
        with _interrupts_held():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            reached.append(True)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has it ignored
    for other in others:
        other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
        done.set()
        for other in others:
            other.join()
    assert reached


def test_a_handler_that_c_set_stays(monkeypatch):
    """Python says None for it, which it cannot put back."""
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(workers.signal, "getsignal", lambda number: None)
    with _interrupts_held():
        pass
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is before
