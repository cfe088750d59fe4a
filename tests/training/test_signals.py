"""A run that is asked to stop: by signals to one rank, by switch files, in the middle of a validation."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bmscale.training.checkpoint import list_states

LONG = ["training.max_steps=1200", "training.save_every_steps=500", "evaluation.every_steps=300", "evaluation.pairs=0"]
TWO_RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def metrics(run: Path) -> list[dict]:
    """The lines so far; the last one may still be on its way."""
    if not (run / "metrics.jsonl").exists():
        return []
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n")[:-1]]


def computed(run: Path) -> list[dict]:
    """What was computed, without what depends on the clock and without the events of the run's life."""
    timed = (
        "tokens_per_second",
        "read_tokens_per_second",
        "flops_per_second",
        "waiting_for_data",
        "memory_gib",
        "seconds",
    )
    return [{key: line[key] for key in line if key not in timed} for line in metrics(run) if "event" not in line]


def wait_until(happened: Callable[[], bool], job: subprocess.Popen[str], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        if job.poll() is not None or time.monotonic() > deadline:
            said = job.communicate()[1] if job.poll() is not None else "(still running)"
            raise AssertionError(f"it never happened:\n{said[-3000:]}")
        time.sleep(0.02)


def ranks_of(job: subprocess.Popen[str]) -> list[int]:
    """The processes that the launcher started for its ranks."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == job.pid and b"\0train\0" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return sorted(found)


def start(folder: Path, launcher: list[str], run: str) -> subprocess.Popen[str]:
    command = [*launcher, "-m", "bmscale", "train", "tiny.yaml", f"run={run}", *LONG]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def end_of(job: subprocess.Popen[str], run: Path) -> dict:
    _, said = job.communicate(timeout=300)
    assert (run / "exit.json").exists(), said[-3000:]
    found: dict = json.loads((run / "exit.json").read_text())
    return {**found, "said": said}


def is_at(run: Path, step: int) -> Callable[[], bool]:
    return lambda: any(line["step"] >= step for line in metrics(run))


def test_two_ranks_are_stopped_four_times_and_lose_nothing(prepared, tmp_path):
    """USR1 to one rank, the SAVE and STOP files, TERM to the launcher: the result is that of a run left alone."""
    folder = tmp_path / "work"
    shutil.copytree(prepared, folder)
    run, whole = folder / "runs/stopped", folder / "runs/whole"
    assert end_of(start(folder, TWO_RANKS, "runs/whole"), whole)["class"] == "done"

    job = start(folder, TWO_RANKS, "runs/stopped")
    wait_until(is_at(run, 20), job)
    os.kill(ranks_of(job)[1], signal.SIGUSR1)
    ended = end_of(job, run)
    assert (ended["class"], ended["code"]) == ("preempted", 75), ended["said"][-3000:]
    assert "preempted at step" in ended["message"]
    event = metrics(run)[-1]
    assert event["event"] == "preempted"
    assert event["saved"] is True
    assert 0 <= event["seconds_from_signal_to_saved"] < 60
    assert event["step"] == int(list_states(run / "state")[-1].name[5:])
    first = event["step"]

    job = start(folder, TWO_RANKS, "runs/stopped")
    wait_until(is_at(run, first + 10), job)
    (run / "SAVE").touch()
    wait_until(lambda: metrics(run)[-1]["step"] > first and any(
        line.get("event") == "saved" and line["step"] > first for line in metrics(run)), job)  # fmt: skip
    assert not (run / "SAVE").exists()
    (run / "STOP").touch()
    ended = end_of(job, run)
    assert (ended["class"], ended["code"]) == ("stopped", 0)
    assert f"resumed from runs/stopped/state/step-{first:08d}" in ended["said"]
    second = metrics(run)[-1]["step"]

    job = start(folder, TWO_RANKS, "runs/stopped")  # STOP is still there: nothing is trained
    ended = end_of(job, run)
    assert ended["class"] == "stopped"
    assert metrics(run)[-1]["step"] == second
    (run / "STOP").unlink()

    job = start(folder, TWO_RANKS, "runs/stopped")
    wait_until(is_at(run, second + 20), job)
    job.terminate()
    ended = end_of(job, run)
    assert (ended["class"], ended["code"]) == ("preempted", 75), ended["said"][-3000:]

    assert end_of(start(folder, TWO_RANKS, "runs/stopped"), run)["class"] == "done"
    assert computed(run) == computed(whole)
    for which in ("last", "best"):
        wanted, found = (load_file(path / "model" / which / "model.safetensors") for path in (whole, run))
        for name in wanted:
            assert torch.equal(found[name], wanted[name]), f"{which}: {name}"


IN_VALIDATION = """
import os, signal, sys
from bmscale.cli import main
from bmscale.evaluation import validation
translate = validation.translate_ids
def interrupted(*arguments, **options):
    os.kill(os.getpid(), signal.{name})
    return translate(*arguments, **options)
validation.translate_ids = interrupted
sys.exit(main(['train', 'tiny.yaml', 'run=runs/{name}']))
"""


@pytest.mark.parametrize(("name", "kind", "code"), [("SIGTERM", "preempted", 75), ("SIGINT", "interrupted", 130)])
def test_a_signal_in_a_validation_ends_it_and_it_is_done_again(bmscale, trained, name, kind, code):
    program = IN_VALIDATION.format(name=name)
    result = subprocess.run([sys.executable, "-c", program], cwd=trained, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr[-3000:]
    run = trained / "runs" / name
    assert json.loads((run / "exit.json").read_text())["class"] == kind
    assert not any("valid_loss" in line for line in metrics(run))
    assert list_states(run / "state")[-1].name == "step-00000006"
    bmscale("train", "tiny.yaml", f"run=runs/{name}", folder=trained)
    steps = [line["step"] for line in metrics(run) if "valid_loss" in line]
    assert steps == [6, 12]
    weights = [load_file(trained / "runs" / of / "model/last/model.safetensors") for of in (name, "tiny")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])
