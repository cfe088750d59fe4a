"""Who is found to hold the others up, and what ends a process whose main thread is stuck."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bmscale.training.ranks import RankState, start_of
from bmscale.training.watchdog import find_hang

LIMIT = 60.0


def at(rank: int, turn: int, *, idle: float = 61.0, beat: float = 1000.0, phase: str = "reading data") -> RankState:
    return RankState(rank, 3, "node", 100 + rank, 1, 12, phase, turn, beat - idle, beat - idle, beat)


def hang(*ranks: RankState, silent: tuple[int, ...] = (), witness: int = 0) -> tuple[RankState, str] | None:
    """The ranks as they are, and 12 s earlier."""
    before = {s.rank: s if s.rank in silent else at(s.rank, s.turn, beat=s.beat - 12) for s in ranks}
    return find_hang(before, {state.rank: state for state in ranks}, witness, LIMIT)


def test_the_rank_that_is_least_far_holds_the_others_up():
    backward = {"turn": 8, "phase": "forward and backward"}
    found = hang(at(0, **backward), at(1, 7, idle=65), at(2, **backward))  # type: ignore[arg-type]
    assert found is not None
    culprit, message = found
    assert culprit.rank == 1
    assert message.startswith(
        "rank 1 (node, process 101) has been at reading data, step 12 for 65 s; rank 0 and 1 more wait for it at "
        "forward and backward, step 12."
    )


def test_a_rank_that_does_not_write_is_the_culprit_wherever_it_was():
    found = hang(at(0, 7), at(1, 9), at(2, 7), silent=(1,))
    assert found is not None
    assert found[0].rank == 1
    assert "rank 1 (node, process 101) has not answered for" in found[1]
    assert "rank 0 and 1 more wait" in found[1]


def test_all_at_the_same_place_are_a_collective_that_does_not_end():
    found = hang(at(0, 7), at(1, 7, idle=62), at(2, 7))
    assert found is not None
    assert found[0].rank == 1
    assert "all 3 ranks: a collective does not end" in found[1]


def test_nobody_holds_up_ranks_of_which_one_comes_forward():
    assert hang(at(0, 7, idle=1), at(1, 6), at(2, 7)) is None
    assert hang(at(0, 7), at(1, 7, idle=59), at(2, 7)) is None
    assert hang(at(0, 7, idle=1), at(1, 6), at(2, 7), silent=(1,)) is None


PRELUDE = """
import os, subprocess, sys, time
from pathlib import Path
from bmscale.experiment import RunFolder
from bmscale.training import ranks, watchdog
from bmscale.training.watchdog import Watchdog
watchdog.TICK_SECONDS = watchdog.BEAT_SECONDS = 0.1
watchdog.OBSERVED_SECONDS = watchdog.GRACE_SECONDS = watchdog.ORPHAN_SECONDS = 1.0
run = RunFolder(Path(sys.argv[1]))
run.record.touch()
"""


def program(text: str, folder: Path) -> list[str]:
    return [sys.executable, "-c", PRELUDE + text, str(folder)]


def end(folder: Path) -> dict:
    found: dict = json.loads((folder / "exit.json").read_text())
    return found


def test_only_a_phase_that_does_not_come_forward_is_a_hang(tmp_path):
    text = """
with Watchdog(run, 0, 1, limit_seconds=1.5) as dog:
    time.sleep(4)  # starting has no limit
    for _ in dog.along("validating", 3, range(30)):
        time.sleep(0.1)
    print("healthy", flush=True)
    def wait_for_ever():
        time.sleep(1000)
    dog.at("reading data", 4)
    wait_for_ever()
"""
    result = subprocess.run(program(text, tmp_path), capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (5, "healthy\n"), result.stderr
    ended = end(tmp_path)
    assert (ended["class"], ended["code"], ended["rank"], ended["step"]) == ("lost_rank", 5, 0, 4)
    assert "has been at reading data, step 4 for" in ended["message"]
    assert "in wait_for_ever" in result.stderr
    assert result.stderr.splitlines()[-1] == f"bmscale: error: {ended['message']}"
    assert ended["message"] in (tmp_path / "log.txt").read_text().splitlines()[-1]
    state = json.loads((tmp_path / "ranks/rank-00000.json").read_text())
    assert "in wait_for_ever" in state["stack"]


def test_a_stuck_rank_ends_when_its_neighbour_is_gone(tmp_path):
    """As in NCCL's collectives, which get no error from a rank that is killed."""
    text = """
other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
dog = Watchdog(run, 1, 2, None)
neighbour = Watchdog(run, 0, 2, None)
neighbour._pid, neighbour._started = other.pid, ranks.start_of(other.pid)
ranks.write(run, neighbour.state())
with dog:
    dog.at("forward and backward", 3)
    time.sleep(3)
    print("healthy", flush=True)
    other.kill()
    time.sleep(1000)
"""
    environment = {**os.environ, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    result = subprocess.run(
        program(text, tmp_path), env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode, result.stdout) == (5, "healthy\n"), result.stderr
    ended = end(tmp_path)
    assert (ended["class"], ended["rank"], ended["step"]) == ("lost_rank", 0, 3)
    assert "is gone without a word" in ended["message"]


def test_a_stuck_rank_ends_without_a_word_when_another_has_said_why(tmp_path):
    text = """
from bmscale.training import record
with Watchdog(run, 1, 2, None) as dog:
    dog.at("forward and backward", 3)
    record.write_exit(run, 3, "diverged")
    time.sleep(1000)
"""
    result = subprocess.run(program(text, tmp_path), capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (3, "")
    assert end(tmp_path) == {"class": "diverged", "code": 3, "message": "diverged"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody hears that the launcher is gone")
def test_a_stuck_rank_ends_when_its_launcher_is_gone(tmp_path):
    text = """
with Watchdog(run, 0, 1, None) as dog:
    dog.at("forward and backward", 3)
    (run.path / "begun").touch()
    time.sleep(1000)
"""
    launcher = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "test"}
    with subprocess.Popen([sys.executable, "-c", launcher, *program(text, tmp_path)], env=environment) as job:
        wait(lambda: (tmp_path / "begun").exists())
        rank = json.loads((tmp_path / "ranks/rank-00000.json").read_text())["pid"]
        job.send_signal(signal.SIGKILL)
    try:
        wait(lambda: start_of(rank) is None)
    finally:
        if start_of(rank) is not None:
            os.kill(rank, signal.SIGKILL)
    assert "launcher" in end(tmp_path)["message"]


def wait(happened) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)
