"""Two ranks under `accelerate launch`, one of which comes to grief: the job ends, says why once, and leaves nobody."""

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from bmscale.config import shipped_file
from bmscale.training.ranks import start_of

WORKER = Path(__file__).with_name("faulty_worker.py")
FAULTS = ["stopped", "no data", "raises", "killed", "no launcher"]
PROMISED_SECONDS = 60


@dataclass(frozen=True)
class Outcome:
    """What is left of a job."""

    exit: dict
    stderr: str
    log: str
    ranks: dict[int, dict]
    """The content of RUN/ranks."""
    pids: list[int]
    seconds: float
    """From the fault until the last rank was gone."""


def wait_for_ranks(pids: list[int]) -> None:
    deadline = time.monotonic() + 2 * PROMISED_SECONDS
    while any(start_of(pid) is not None for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.2)


def come_to_grief(folder: Path, fault: str) -> Outcome:
    """Train with a fault until no process is left."""
    name = fault.replace(" ", "-")
    notes = folder / f"notes-{name}"
    notes.mkdir()
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    launcher += [str(shipped_file("launch", "cpu_2proc.yaml")), str(WORKER), fault]
    settings = [f"run=runs/{name}", "training.hang_minutes=0.1", "training.max_steps=200", "evaluation.pairs=0"]
    settings += ["training.log_every_steps=1", "evaluation.every_steps=1000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NOTES": str(notes)}
    with (notes / "stderr").open("w") as stderr:
        job = subprocess.Popen(
            [*launcher, "tiny.yaml", *settings], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=stderr
        )
        job.wait(timeout=300)
    said = (notes / "stderr").read_text()
    assert (notes / "when").exists(), said[-4000:]
    pids = [int((notes / f"pid-{rank}").read_text()) for rank in (0, 1)]
    wait_for_ranks(pids)
    run = folder / "runs" / name
    return Outcome(
        exit=json.loads((run / "exit.json").read_text()),
        stderr=(notes / "stderr").read_text(),
        log=(run / "log.txt").read_text(),
        ranks={int(path.stem[5:]): json.loads(path.read_text()) for path in (run / "ranks").glob("rank-*.json")},
        pids=pids,
        seconds=time.time() - float((notes / "when").read_text()),
    )


@pytest.fixture(scope="module")
def outcomes(prepared) -> dict[str, Outcome]:
    """All faults, two at a time: most of each is waiting."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        waiting = {fault: pool.submit(come_to_grief, prepared, fault) for fault in FAULTS}
        return {fault: future.result() for fault, future in waiting.items()}


def ours(stderr: str) -> str:
    """What bmscale said, without the launcher: it warns (W1231 …) of its signals, and reports (E1231 …) at the end."""
    said = re.split(r"^E\d{4} ", stderr, maxsplit=1, flags=re.MULTILINE)[0]
    return re.sub(r"^W\d{4} .*\n", "", said, flags=re.MULTILINE)


@pytest.mark.parametrize("fault", FAULTS)
def test_nobody_is_left(outcomes, fault):
    outcome = outcomes[fault]
    assert [pid for pid in outcome.pids if start_of(pid) is not None] == []
    if fault not in ("stopped", "no data"):  # where the time limit and the launcher's patience come first
        assert outcome.seconds < PROMISED_SECONDS


def test_the_rank_that_failed_has_the_last_word(outcomes):
    outcome = outcomes["raises"]
    assert outcome.exit == {
        "class": "failed",
        "code": 1,
        "message": "ValueError: the fault of rank 1",
        "rank": 1,
        "step": 5,
    }
    for text in (ours(outcome.stderr), outcome.log):
        assert text.rstrip().endswith("ValueError: the fault of rank 1")
        assert text.count("Traceback (most recent call last)") == 1
        assert f"process {outcome.pids[1]}) failed at" in text
    assert "ValueError: the fault of rank 1" in outcome.ranks[1]["error"]
    assert outcome.ranks[0]["pid"] == outcome.pids[0]


def test_a_killed_rank_is_named_by_the_other(outcomes):
    outcome = outcomes["killed"]
    ended = outcome.exit
    assert (ended["class"], ended["code"], ended["rank"], ended["step"]) == ("lost_rank", 5, 1, 5)
    assert f"process {outcome.pids[1]}) is gone without a word" in ended["message"]
    for text in (ours(outcome.stderr), outcome.log):
        assert text.rstrip().endswith(f"bmscale: error: {ended['message']}")
        assert "Traceback" not in text


@pytest.mark.parametrize(
    ("fault", "what"), [("stopped", "has not answered for"), ("no data", "at reading data, step 5")]
)
def test_a_rank_that_holds_the_others_up_is_named(outcomes, fault, what):
    outcome = outcomes[fault]
    ended = outcome.exit
    assert (ended["class"], ended["code"], ended["rank"], ended["step"]) == ("lost_rank", 5, 1, 5)
    assert re.match(rf"rank 1 \(.*, process {outcome.pids[1]}\) ", ended["message"])
    assert what in ended["message"]
    assert "rank 0 waits for it at forward and backward, step 5" in ended["message"]
    for text in (ours(outcome.stderr), outcome.log):
        assert text.rstrip().endswith(f"bmscale: error: {ended['message']}")
        assert text.count("bmscale: error:") == 1
        assert ("in hang" in text) == (fault == "no data")  # the stack of the thread that reads data


def test_a_run_without_its_launcher_saves_and_leaves(outcomes):
    outcome = outcomes["no launcher"]
    assert (outcome.exit["class"], outcome.exit["code"]) == ("preempted", 75)
    assert "the training state is saved" in outcome.exit["message"]
    assert outcome.ranks == {}
