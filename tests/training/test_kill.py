"""A run of two ranks that is killed again and again, most of it inside a save: nothing of it is lost.

`bash tests/run.sh --full tests/training/test_kill.py` does it 52 times; without --full a few of them stand for all.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from bmscale.training.checkpoint import list_states

WORKER = Path(__file__).parent / "kill_worker.py"
SEED = 2026
SETTINGS = [
    "training.save_every_steps=5",
    "training.log_every_steps=7",
    "training.deepspeed=zero2",
    "training.optimizer.learning_rate=1.0e-3",
    "evaluation.every_steps=40",
    "evaluation.pairs=0",
]
BOTH = ("write", "half a file", "read back", "barrier")
MAIN_ONLY = ("prepare", "manifest", "rename", "after the rename", "pointer", "retain")
PHASES = (*BOTH, *MAIN_ONLY)


def start(
    folder: Path, run: str, steps: int, phase: str = "never", occurrence: int = 0, rank: int = 0
) -> subprocess.Popen[str]:
    """The command line, on two ranks, with a death in it or without."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    death = [str(WORKER), phase, str(occurrence), str(rank)]
    return subprocess.Popen(
        [*launcher, *death, "train", "tiny.yaml", f"run={run}", f"training.max_steps={steps}", *SETTINGS],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def descendants(process: int) -> list[int]:
    """All processes that it started, and those that they started."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found, waiting = [], [process]
    while waiting:
        mine = children.get(waiting.pop(), [])
        found += mine
        waiting += mine
    return found


def kill_everything(job: subprocess.Popen[str]) -> None:
    """The launcher and its ranks at once, as when the power fails."""
    for process in [*descendants(job.pid), job.pid]:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def metrics(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text(errors="replace").split("\n") if (run / "metrics.jsonl").exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # the last line of a run that was killed while it wrote it
            continue
    return found


def trained(run: Path) -> list[dict]:
    """What a run computed, without what depends on the clock and without the events of its life."""
    timed = (
        "tokens_per_second",
        "read_tokens_per_second",
        "flops_per_second",
        "waiting_for_data",
        "memory_gib",
        "seconds",
    )
    return [{key: line[key] for key in line if key not in timed} for line in metrics(run) if "event" not in line]


def last_commit(run: Path) -> int:
    """The step of the last state of which the run said that it was saved."""
    return max((line["step"] for line in metrics(run) if line.get("event") == "saved"), default=0)


def wait_for_start(job: subprocess.Popen[str]) -> list[str]:
    """Lines of a starting run, up to the one that says what it trains."""
    lines = []
    assert job.stderr
    for line in job.stderr:
        lines.append(line)
        if "steps planned" in line or "resumed from" in line:
            return lines
    return lines


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(prepared, request, tmp_path):
    full = request.config.getoption("--full")
    kills = 52 if full else 4
    steps = 100 + 40 * kills
    shutil.copytree(prepared, tmp_path / "work")
    folder = tmp_path / "work"
    whole, killed = folder / "runs/whole", folder / "runs/killed"
    reference = start(folder, "runs/whole", steps)
    _, said = reference.communicate(timeout=900)
    assert reference.returncode == 0, said[-3000:]

    chance = random.Random(SEED)
    phases = [phase for _ in range(kills) for phase in chance.sample(PHASES, len(PHASES))]
    hit: dict[str, int] = {}
    for number in range(kills):
        before = last_commit(killed)
        inside = number % 4 != 3  # three of four inside a save
        phase = phases[number] if inside else "any moment"
        rank = 0 if phase in MAIN_ONLY else chance.randrange(2)
        job = start(folder, "runs/killed", steps, phase if inside else "never", chance.randrange(2, 5), rank)
        lines = wait_for_start(job)
        if not inside:
            time.sleep(chance.uniform(0.0, 2.0))
            kill_everything(job)
        _, rest = job.communicate(timeout=300)
        said = "".join(lines) + rest
        assert job.returncode != 0, f"kill {number} ({phase}) came too late:\n{said[-2000:]}"
        assert not descendants(job.pid)
        resumed = [int(line.split(": step ")[1].split()[0]) for line in said.splitlines() if "resumed from" in line]
        # One that is killed at any moment may not have come so far as to say it.
        assert resumed or before == 0 or not inside, (
            f"kill {number}: the start after it did not resume:\n{said[-2000:]}"
        )
        assert not resumed or resumed[0] >= before, f"kill {number}: step {before} was saved, resumed from {resumed[0]}"
        assert last_commit(killed) >= before
        hit[phase] = hit.get(phase, 0) + 1

    end = start(folder, "runs/killed", steps)
    _, said = end.communicate(timeout=900)
    assert end.returncode == 0, said[-3000:]
    assert trained(killed) == trained(whole)
    for which in ("last", "best"):
        wanted, found = (load_file(run / "model" / which / "model.safetensors") for run in (whole, killed))
        assert found.keys() == wanted.keys()
        for name in wanted:
            assert torch.equal(found[name], wanted[name]), f"{which}: {name}"
    assert len(list_states(killed / "state")) == 2
    assert sum(count for phase, count in hit.items() if phase != "any moment") >= kills / 2
    if full:
        assert set(PHASES) <= hit.keys()
    print(f"{kills} kills, {hit}; lost steps beyond the last commit: 0; failed resumes: 0; weights bit-equal")
