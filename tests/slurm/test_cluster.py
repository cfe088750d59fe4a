"""The SLURM scripts as a user submits them, on a real SLURM: one run over two nodes, the same as without SLURM."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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


def losses(run: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm by step: AdamW would hide a wrong scale of the gradient from the loss alone."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines if "loss" in line}


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
    job = cluster.run("--nodes=2", TRAIN, "toy", cwd=folder, seconds=60)
    assert (job.state, job.exit_code) == ("FAILED", 2), job.output
    for node in ("n1", "n2"):
        assert f"bmscale: error: node {node}: there must be a Python environment in {folder}/.venv" in job.output
    job = cluster.run(EVALUATE, "runs/toy", cwd=folder, seconds=60, BMSCALE_ENV="nowhere")
    assert (job.state, job.exit_code) == ("FAILED", 2), job.output
    assert f"there must be a Python environment in {folder}/nowhere" in job.output


def test_a_job_whose_ranks_fail_fails(cluster, folder):
    """Two nodes, two GPUs each as SLURM counts them, and no device behind them: four ranks are started, and refuse."""
    options = ("--nodes=2", "--gpus-per-node=2")
    job = cluster.run(*options, TRAIN, "toy", "training.max_stesp=1", cwd=folder, BMSCALE_ENV="active")
    assert (job.state, job.exit_code) == ("FAILED", 1), job.output
    assert "2 rank(s) on each" in job.output
    assert job.output.count("bmscale: error: ") >= 1
    assert "did you mean 'max_steps'?" in job.output
