"""The SLURM scripts as a user submits them, on a real SLURM: one run over two nodes, the same as without SLURM."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.slurm.conftest import Cluster, Job

ROOT = Path(__file__).parent.parent.parent
TRAIN, EVALUATE = ROOT / "slurm" / "train.sh", ROOT / "slurm" / "evaluate.sh"
LAUNCH = ROOT / "launch" / "cpu_2proc.yaml"

# The toy experiment, cut down to seconds.
SHORT = [
    "data.train.pairs=600",
    "data.valid.pairs=40",
    "data.tokenizer.vocabulary_size=300",
    "model.hidden_size=32",
    "model.num_attention_heads=2",
    "training.tokens_per_step=600",
    "training.max_steps=6",
    "training.schedule={type: constant, warmup_steps: 2}",
    "training.log_every_steps=1",
    "evaluation.every_steps=6",
    "evaluation.pairs=4",
    "evaluation.test=[{toy: test, pairs: 10}]",
]
QUICK = {"BMSCALE_ENV": "active", "BMSCALE_PREFLIGHT_SECONDS": "0"}


def losses(run: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm by step: AdamW would hide a wrong scale of the gradient from the loss alone."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines if "loss" in line}


def shown(cluster: Cluster, job: str) -> str:
    return cluster.command("scontrol", "show", "job", job, "--oneliner").stdout


def starts(run: Path) -> list[dict]:
    found: list[dict] = yaml.safe_load((run / "run.yaml").read_text())["starts"]
    return found


@pytest.fixture(scope="module")
def folder(cluster, tmp_path_factory) -> Path:
    """Where sbatch is called: not the clone, so BMSCALE_ENV is needed; the toy corpus is prepared in it."""
    folder = tmp_path_factory.mktemp("submit")
    prepare = [sys.executable, "-m", "bmscale", "prepare", "toy", *SHORT]
    result = subprocess.run(prepare, cwd=folder, env=cluster.environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_two_nodes_train_the_run_that_two_local_ranks_train(cluster, folder):
    job = cluster.run("--nodes=2", TRAIN, "toy", *SHORT, cwd=folder, BMSCALE_ENV="active")
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.output[-4000:]
    assert "nodes n1 n2, 1 rank(s) on each, rendezvous 127.0.0.1:" in job.output

    run = folder / "runs" / "toy"
    (start,) = starts(run)
    assert start["world_size"] == 2
    assert "ZeRO-2" in start["engine"]
    assert json.loads((run / "exit.json").read_text())["class"] == "done"

    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH)]
    command += ["-m", "bmscale", "train", "toy", *SHORT, "run=runs/local"]
    local = subprocess.run(command, cwd=folder, env=cluster.environment, capture_output=True, text=True, check=False)
    assert local.returncode == 0, local.stderr[-4000:]
    assert starts(folder / "runs" / "local")[0]["world_size"] == 2
    found, wanted = losses(run), losses(folder / "runs" / "local")
    assert list(found) == list(wanted) == [1, 2, 3, 4, 5, 6]
    for step in wanted:
        assert found[step] == pytest.approx(wanted[step], rel=1e-6), f"step {step}"

    scored = cluster.run(EVALUATE, "runs/toy", cwd=folder, BMSCALE_ENV="active")
    assert (scored.state, scored.exit_code) == ("COMPLETED", 0), scored.output[-4000:]
    results = json.loads((run / "results.json").read_text())
    assert "bleu" in results["test"]["toy-test"]["scores"]


def test_a_job_without_its_environment_fails_at_once_and_says_where(cluster, folder):
    job = cluster.run("--nodes=2", TRAIN, "toy", cwd=folder)
    assert (job.state, job.exit_code) == ("FAILED", 2), job.output
    for node in ("n1", "n2"):
        assert f"bmscale: error: node {node}: there must be a Python environment in {folder}/.venv" in job.output
    job = cluster.run(EVALUATE, "runs/toy", cwd=folder, BMSCALE_ENV="nowhere")
    assert (job.state, job.exit_code) == ("FAILED", 2), job.output
    assert f"there must be a Python environment in {folder}/nowhere" in job.output


def test_a_job_whose_ranks_refuse_fails_once(cluster, folder):
    """Two nodes, two GPUs each as SLURM counts them, and no device behind them: four ranks are started, and refuse."""
    options = ("--nodes=2", "--gpus-per-node=2")
    # What a file of DeepSpeed may hold depends on the ranks, so only they can refuse it.
    (folder / "clip.json").write_text('{"zero_optimization": {"stage": 2}, "gradient_clipping": 0.5}')
    job = cluster.run(*options, TRAIN, "toy", *SHORT, "training.deepspeed=clip.json", cwd=folder, **QUICK)
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", 1, 0), job.output
    assert "2 rank(s) on each" in job.output
    assert "gradient_clipping: must be absent or 1.0" in job.output


def test_a_mistake_in_the_experiment_fails_once_and_ends_its_array(cluster, folder):
    array = cluster.submit("--array=1-3%1", TRAIN, "toy", "training.max_stesp=1", cwd=folder, **QUICK)
    cluster.wait(array, folder, lambda job: job.has_ended)
    elements = shown(cluster, array).splitlines()
    assert len(elements) == 2, elements  # the one that was started, and those that were not
    assert sum("JobState=CANCELLED" in line for line in elements) == 1
    (failed,) = [line for line in elements if "ArrayTaskId=1 " in line]
    number = failed.split()[0].removeprefix("JobId=")
    job = cluster.job(number, folder)
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", 2, 0), job.output
    assert job.output.count("bmscale: error: ") == 1
    assert "did you mean 'max_steps'?" in job.output


# -- interrupted jobs --------------------------------------------------------------------------------------------------

MANY_STEPS = [*SHORT, "training.max_steps=150", "evaluation.every_steps=75", "training.save_every_steps=1000"]


def lines(run: Path) -> list[dict]:
    """metrics.jsonl; the last line may still be on its way."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


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
    return [{key: line[key] for key in line if key not in timed} for line in lines(run) if "event" not in line]


def is_at(run: Path, step: int) -> Callable[[Job], bool]:
    return lambda job: any(line["step"] >= step for line in lines(run))


def rank_process(run: Path, rank: int) -> int:
    number: int = json.loads((run / "ranks" / f"rank-{rank:05d}.json").read_text())["pid"]
    return number


def ask_at(cluster: Cluster, folder: Path, job: str, run: Path, step: int, ask: Callable[[], object]) -> None:
    """Let a signal come to the job after a step: a rank stands still meanwhile, so that the run cannot end before."""
    before = cluster.wait(job, folder, is_at(run, step)).output.count("a signal came")
    process = rank_process(run, 1)
    os.kill(process, signal.SIGSTOP)
    try:
        ask()
        cluster.wait(job, folder, lambda job: job.output.count("a signal came") > before)
    finally:
        os.kill(process, signal.SIGCONT)


def ended(run: Path) -> tuple[str, int]:
    found = json.loads((run / "exit.json").read_text())
    return found["class"], found["code"]


def test_a_job_that_is_interrupted_three_times_ends_as_if_nothing_had_been(cluster, folder):
    """By its time limit, by hand, by a rank that is killed. The run of comparison comes from `bmscale submit`, as two
    elements of an array, of which the second finds it done."""
    whole, run = folder / "runs/whole", folder / "runs/stopped"
    words = ("toy", *MANY_STEPS, "run=runs/whole", "--nodes=2", "--array=1-2%1", "--output=job-%j.log")
    array = cluster.command(sys.executable, "-m", "bmscale", "submit", *words, cwd=folder, extra=QUICK).stdout.strip()
    options = ("--nodes=2", "--time=30", "--signal=B:USR1@170")
    job = cluster.submit(*options, TRAIN, "toy", *MANY_STEPS, "run=runs/stopped", cwd=folder, **QUICK)

    def bring_the_limit_near() -> object:
        """To 120 to 180 s from now; SLURM looks at limits twice a minute."""
        hours, minutes = re.findall(r"RunTime=(\d+):(\d+):", shown(cluster, job))[0]
        return cluster.command("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * int(hours) + int(minutes) + 3}")

    ask_at(cluster, folder, job, run, 5, bring_the_limit_near)
    output = cluster.start_again(job, folder, restart=1).output
    assert ended(run) == ("preempted", 75), output[-4000:]
    assert "preempted: back into the queue, restart 1 of at most 20" in output
    first = lines(run)[-1]
    assert first["event"] == "preempted"
    assert first["saved"] is True

    by_hand = partial(cluster.command, "scancel", "--signal=USR1", "--batch", job)
    ask_at(cluster, folder, job, run, first["step"] + 5, by_hand)
    output = cluster.start_again(job, folder, restart=2).output
    assert f"resumed from runs/stopped/state/step-{first['step']:08d}" in output
    assert ended(run) == ("preempted", 75), output[-4000:]
    second = lines(run)[-1]["step"]
    assert second < 150

    cluster.wait(job, folder, is_at(run, second + 5))
    os.kill(rank_process(run, 1), signal.SIGKILL)
    killed = time.monotonic()
    output = cluster.start_again(job, folder, restart=3).output
    assert time.monotonic() - killed < 300
    assert "lost_rank: back into the queue, restart 3 of at most 20" in output

    done = cluster.wait(job, folder, lambda job: job.has_ended)
    assert (done.state, done.exit_code, done.restarts) == ("COMPLETED", 0, 3), done.output[-4000:]
    assert done.output.count(f"resumed from runs/stopped/state/step-{second:08d}") == 2
    assert ended(run) == ("done", 0)
    assert {path.name for path in (run / "logs").iterdir()} == {"job", f"{job}-n1.txt", f"{job}-n2.txt"}

    last = cluster.wait(array, folder, lambda job: job.has_ended)
    assert (last.state, last.exit_code) == ("COMPLETED", 0), last.output[-4000:]
    assert "trained to its end already" in last.output
    assert len(starts(whole)) == 1
    assert computed(run) == computed(whole)
    model = Path("model/last/model.safetensors")
    assert (run / model).read_bytes() == (whole / model).read_bytes()


def test_a_job_that_is_cancelled_saves_and_does_not_come_back(cluster, folder):
    run = folder / "runs/cancelled"
    arguments = ("toy", *MANY_STEPS, "training.max_steps=100000", "run=runs/cancelled")
    job = cluster.submit(TRAIN, *arguments, cwd=folder, BMSCALE_RANKS_PER_NODE="2", **QUICK)
    cluster.wait(job, folder, is_at(run, 5))
    cluster.command("scancel", job)
    done = cluster.wait(job, folder, lambda job: job.has_ended)
    assert (done.state, done.restarts) == ("CANCELLED", 0), done.output[-4000:]
    assert ended(run) == ("preempted", 75)
    assert lines(run)[-1]["saved"] is True
