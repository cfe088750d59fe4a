"""Every Accelerate file of launch/ is started, as far as CPUs go: the same tiny training each time, by real ranks."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from bmscale.config import shipped_file, shipped_names

# Process counts are those of the file where a CPU can do that; each inner list is one `accelerate launch`.
STARTS: dict[str, list[list[str]]] = {
    "cpu_2proc.yaml": [[]],
    "one_gpu.yaml": [[]],
    "one_node.yaml": [["--num_processes", "2"]],
    "multi_node.yaml": [
        ["--num_machines", "2", "--num_processes", "2", "--machine_rank", rank, "--main_process_ip", "127.0.0.1"]
        for rank in ("0", "1")
    ],
}
WORLD_SIZES = {"cpu_2proc.yaml": 2, "one_gpu.yaml": 1, "one_node.yaml": 2, "multi_node.yaml": 2}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def stop(process: subprocess.Popen[str]) -> None:
    """End a launcher that is still there; it is asked first, because killed it would leave its ranks behind."""
    process.terminate()
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def launch(folder: Path, name: str) -> list[tuple[int, str]]:
    """Start the file's processes side by side; the exit code and standard error of each."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(shipped_file("launch", name))]
    training = ["-m", "bmscale", "train", "tiny.yaml", f"run=runs/{name}", "training.max_steps=3"]
    training += ["training.log_every_steps=1", "evaluation.pairs=0"]
    training += ["model.dropout=0.0"]  # whose masks are a rank's own; all else is the same on one rank and on two
    port = ["--main_process_port", free_port()] if name == "multi_node.yaml" else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen(
            [*launcher, *options, *port, *training],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for options in STARTS[name]
    ]
    try:
        with ThreadPoolExecutor(max_workers=len(processes)) as pool:
            errors = list(pool.map(lambda process: process.communicate(timeout=300)[1], processes))
    finally:
        for process in processes:
            stop(process)
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def test_there_is_a_start_for_every_file():
    assert sorted(STARTS) == [name for name in shipped_names("launch") if name.endswith(".yaml")]


@pytest.fixture(scope="module")
def outcomes(prepared) -> dict[str, list[tuple[int, str]]]:
    """All files, two at a time: most of each is waiting for imports."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        waiting = {name: pool.submit(launch, prepared, name) for name in STARTS}
        return {name: future.result() for name, future in waiting.items()}


@pytest.mark.parametrize("name", STARTS)
def test_the_file_starts_one_run_of_all_its_ranks(prepared, outcomes, name):
    for code, error in outcomes[name]:
        assert code == 0, error[-4000:]
    run = prepared / "runs" / name
    (start,) = yaml.safe_load((run / "run.yaml").read_text())["starts"]
    assert start["world_size"] == WORLD_SIZES[name]
    assert "ZeRO-2" in start["engine"]
    assert json.loads((run / "exit.json").read_text())["class"] == "done"


def test_every_file_trains_the_same(prepared, outcomes):
    losses = {}
    for name in STARTS:
        lines = map(json.loads, (prepared / "runs" / name / "metrics.jsonl").read_text().splitlines())
        losses[name] = [line["loss"] for line in lines if "loss" in line]
    assert len(losses["one_gpu.yaml"]) == 3
    for name, found in losses.items():
        assert found == pytest.approx(losses["one_gpu.yaml"], abs=2e-5), name  # lines are rounded to five places
