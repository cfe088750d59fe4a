"""exit.json and the last words: which cause is believed, and who says it."""

import json
import os
import subprocess
import sys

import pytest
import torch

from bmscale.errors import BadInput, Diverged
from bmscale.experiment import RunFolder
from bmscale.training import ending, record
from bmscale.training.ending import Ending
from bmscale.training.watchdog import Watchdog


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunFolder:
    for name in ("RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    run = RunFolder(tmp_path)
    run.record.touch()
    return run


def test_the_first_cause_is_believed_and_a_lost_rank_is_only_concluded(run):
    assert record.write_exit(run, 5, "rank 1 is gone", rank=1)
    assert not record.write_exit(run, 5, "rank 0 is gone")
    assert record.write_exit(run, 4, "no memory", rank=1)
    assert not record.write_exit(run, 1, "connection closed")
    assert not record.write_exit(run, 5, "rank 1 is gone")
    assert record.read_exit(run) == {"class": "out_of_memory", "code": 4, "message": "no memory", "rank": 1}
    assert record.write_exit(run, 0, "trained", replace=True)
    assert record.read_exit(run) == {"class": "done", "code": 0, "message": "trained"}
    assert [path.name for path in run.path.iterdir() if "exit" in path.name] == ["exit.json"]


ERRORS = [
    (BadInput("a wrong key"), "bad_input", "bmscale: error: a wrong key"),
    (Diverged("step 3"), "diverged", "bmscale: error: step 3"),
    (KeyboardInterrupt(), "interrupted", "bmscale: error: interrupted"),
    (FileNotFoundError(2, "No such file", "x"), "bad_input", "bmscale: error: x: No such file"),
    (OSError(28, "No space left", "x"), "failed", "bmscale: error: x: No space left"),
    (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", "CUDA out of memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8"), "out_of_memory", "can't allocate memory: 8"),
    (MemoryError(), "out_of_memory", "MemoryError"),
    (KeyError("name"), "failed", "KeyError: 'name'"),
]


@pytest.mark.parametrize(("error", "kind", "last"), ERRORS, ids=[type(error).__name__ for error, *_ in ERRORS])
def test_an_error_of_a_started_run_is_recorded_and_said_last(run, capsys, error, kind, last):
    def train() -> Ending:
        with Watchdog(run, 0, 1, None) as dog:
            dog.at("optimizer step", 3)
            raise error

    with pytest.raises(SystemExit) as ended:
        ending.of(run, train)
    found = record.read_exit(run)
    assert found is not None
    assert (found["class"], found["rank"], found["step"]) == (kind, 0, 3)
    assert ended.value.code == found["code"] == record.exit_code(kind)
    said = capsys.readouterr().err
    for text in (said, run.log.read_text()):
        assert text.rstrip().splitlines()[-1].endswith(last)
    assert ("Traceback" in said) == ("bmscale: error" not in said)
    assert "failed at optimizer step, step 3" in said or "bmscale: error" in said
    assert "Traceback" in json.loads((run.ranks / "rank-00000.json").read_text())["error"]


def test_an_end_without_error_replaces_what_was_said_of_an_earlier_start(run):
    record.write_exit(run, 1, "failed")
    assert ending.of(run, lambda: Ending("preempted", "at step 4")) == Ending("preempted", "at step 4")
    assert record.read_exit(run) == {"class": "preempted", "code": 75, "message": "at step 4"}


def test_an_error_before_the_start_replaces_it_too_unless_it_is_bad_input(run):
    record.write_exit(run, 75, "preempted")

    def refuse() -> Ending:
        raise BadInput("a wrong key")

    with pytest.raises(BadInput):
        ending.of(run, refuse)
    assert (record.read_exit(run) or {})["class"] == "preempted"

    def fail() -> Ending:
        raise Diverged("at once")

    with pytest.raises(Diverged):
        ending.of(run, fail)
    assert (record.read_exit(run) or {})["class"] == "diverged"


# Rank 0 of two loses its connection. The other rank's file says that it is another process, or on another machine.
PROGRAM = """
import dataclasses, os, sys, threading
from pathlib import Path
from bmscale.experiment import RunFolder
from bmscale.training import ending, ranks, record
from bmscale.training.watchdog import Watchdog
ending.WORD_SECONDS = ending.OBSERVED_SECONDS = 1.0
run, case = RunFolder(Path(sys.argv[1])), sys.argv[2]
run.record.touch()
other = dataclasses.replace(Watchdog(run, 1, 2, None).state(), pid=os.getppid(), started=ranks.start_of(os.getppid()))
if case == "elsewhere":
    other = dataclasses.replace(other, host="elsewhere")
    os.environ["LOCAL_WORLD_SIZE"] = "1"
ranks.write(run, other)
def train():
    with Watchdog(run, 0, 2, None) as dog:
        dog.at("forward and backward", 3)
        if case == "told":
            threading.Timer(0.5, record.write_exit, (run, 4, "no memory")).start()
        raise RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:1")
ending.of(run, train)
"""


@pytest.mark.parametrize("case", ["told", "elsewhere", "nobody"])
def test_a_rank_that_lost_its_connection_looks_for_the_cause(tmp_path, case):
    environment = {**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), case]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    ended = json.loads((tmp_path / "exit.json").read_text())
    if case == "told":
        assert (ended["class"], result.returncode, result.stderr) == ("out_of_memory", 4, "")
        return
    assert (ended["class"], result.returncode) == ("lost_rank", 5), result.stderr
    if case == "elsewhere":  # no process to look at, but its file stays as it is
        assert ended["rank"] == 1
        assert "rank 1 (elsewhere, process" in ended["message"]
        assert result.stderr == f"bmscale: error: {ended['message']}\n"
    else:  # the error itself is all that is known
        assert ended["rank"] == 0
        assert "failed at forward and backward, step 3" in result.stderr
        assert result.stderr.rstrip().endswith("RuntimeError: [pair.cc:553] Connection closed by peer [127.0.0.1]:1")
