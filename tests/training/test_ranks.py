"""The files of RUN/ranks: what they say, and whose process is gone."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import pytest

from bmscale.experiment import RunFolder
from bmscale.training import ranks
from bmscale.training.ranks import RankState


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(tmp_path)


def state(rank: int = 0, pid: int | None = None, **values) -> RankState:
    pid = os.getpid() if pid is None else pid
    started = ranks.start_of(pid) or 0
    given = {"step": 3, "phase": "reading data", "turn": 7, "since": 90.0, "moved": 95.0, "beat": 100.0, **values}
    return RankState(rank, 2, socket.gethostname(), pid, started, **given)


def test_what_is_written_is_read(run):
    ranks.write(run, state(1))
    assert ranks.read(run, range(3)) == {1: state(1)}
    written = json.loads((run.ranks / "rank-00001.json").read_text())
    assert {"rank": 1, "pid": os.getpid(), "host": socket.gethostname(), "step": 3}.items() <= written.items()
    assert [path.name for path in run.ranks.iterdir()] == ["rank-00001.json"]
    (run.ranks / "rank-00000.json").write_text('{"rank": 0')
    assert list(ranks.read(run, range(3))) == [1]


def test_the_last_rank_takes_the_folder_away(run):
    for rank in (0, 1):
        ranks.write(run, state(rank))
    ranks.remove(run, 0)
    assert list(ranks.read(run, range(2))) == [1]
    ranks.remove(run, 1)
    assert not run.ranks.exists()


def test_an_earlier_start_is_forgotten(run):
    for rank in range(4):
        ranks.write(run, state(rank))
    ranks.clear(run)
    assert ranks.read(run, range(4)) == {}
    ranks.clear(RunFolder(run.path / "new"))


def test_a_process_is_gone_when_it_ended_or_its_number_is_anothers():
    assert not ranks.is_gone(state())
    assert ranks.is_gone(dataclasses.replace(state(), started=1))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        other = state(pid=process.pid)
        assert not ranks.is_gone(other)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert ranks.is_gone(other)  # dead, and its parent has not looked yet
    assert ranks.is_gone(other)
    assert not ranks.is_gone(dataclasses.replace(other, host="another-machine"))


def test_own_state_is_of_this_very_process(run):
    assert ranks.read_own(run, 0) is None
    ranks.write(run, dataclasses.replace(state(), started=1))
    assert ranks.read_own(run, 0) is None
    ranks.write(run, state())
    assert ranks.read_own(run, 0) == state()


def test_ranks_of_a_node_are_numbered_in_a_row(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert list(ranks.on_this_node(0)) == [0]
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert list(ranks.on_this_node(9)) == [8, 9, 10, 11]
