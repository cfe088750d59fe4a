"""The promise of the global step, on real ranks: ZeRO stage, world size and micro-batches never change the training.

Losses alone would not show a wrong gradient scale, which AdamW divides out again; so norms before clipping are
compared as well, and two gradients that are wrong on purpose must be noticed.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bmscale.planning.zero import Zero

ROOT = Path(__file__).parent.parent.parent
WORKER = Path(__file__).parent / "equivalence_worker.py"


def launch(out: Path, world_size: int, *arguments: str) -> dict[str, Any]:
    """Run the worker on so many ranks and read what it found."""
    command = [sys.executable, str(WORKER), "--out", str(out), *arguments]
    if world_size > 1:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
        command = [*torchrun, *command[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def launch_all(folder: Path, jobs: dict[str, tuple[int, list[str]]]) -> dict[str, dict[str, Any]]:
    """Several runs, two at a time: most of each is waiting for imports."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        waiting = {
            name: pool.submit(launch, folder / f"{name}.json", world, *arguments)
            for name, (world, arguments) in jobs.items()
        }
        return {name: future.result() for name, future in waiting.items()}


def worst(found: list[float], wanted: list[float]) -> float:
    """The largest relative difference."""
    assert len(found) == len(wanted)
    return max(abs(one - other) / abs(other) for one, other in zip(found, wanted, strict=True))


OVERLAPPED = (2, 3)
STAGES = [f"zero{stage}" for stage in range(4)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("equivalence")
    jobs = {"none": (1, ["--deepspeed", "none"])}
    jobs |= {f"{stage}x{world}": (world, ["--deepspeed", stage]) for stage in STAGES for world in (1, 2)}
    for stage in OVERLAPPED:
        path = folder / f"overlap{stage}.json"
        path.write_text(json.dumps(Zero(stage, overlap=True).to_json()))
        jobs[f"overlap{stage}x2"] = (2, ["--deepspeed", str(path)])
    jobs["accumulation"] = (2, ["--deepspeed", "zero2", "--break-it", "accumulation"])
    jobs["world_size"] = (2, ["--deepspeed", "zero2", "--break-it", "world_size"])
    return launch_all(folder, jobs)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_losses_and_norms_agree(runs, stage, world_size):
    run, reference = runs[f"{stage}x{world_size}"], runs["none"]
    assert f"ZeRO-{stage[-1]}" in run["is"]
    assert f"{world_size} rank" in run["is"]
    assert worst(run["losses"], reference["losses"]) < 1e-6
    assert worst(run["norms"], reference["norms"]) < 1e-5


def test_mup_has_its_groups_under_zero_3_too(tmp_path):
    """There parameters are flat pieces: the groups go by names."""
    jobs = {"none": (1, ["--deepspeed", "none", "--mup"]), "zero3": (2, ["--deepspeed", "zero3", "--mup"])}
    found = launch_all(tmp_path, jobs)
    assert worst(found["zero3"]["losses"], found["none"]["losses"]) < 1e-6
    assert worst(found["zero3"]["norms"], found["none"]["norms"]) < 1e-5


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_moments_are_made_with_the_model(runs, stage, world_size):
    """All zero before the first step, of all parameters together."""
    run, parameters = runs[f"{stage}x{world_size}"], runs["none"]["moments_made"] / 2
    assert parameters > 10_000
    ranks = 1 if stage == "zero0" else world_size
    assert 1 <= ranks * run["moments_made"] / 2 / parameters < 1.05  # parts are padded


@pytest.mark.parametrize("stage", OVERLAPPED)
def test_what_plan_writes_for_several_gpus_trains_the_same(runs, stage):
    """With `overlap_comm`, which no shipped file has: reductions run beside the backward pass."""
    run, reference = runs[f"overlap{stage}x2"], runs["none"]
    assert f"ZeRO-{stage} (overlap{stage}.json), 2 ranks" in run["is"]
    assert worst(run["losses"], reference["losses"]) < 1e-6
    assert worst(run["norms"], reference["norms"]) < 1e-5


@pytest.mark.parametrize("name", ["none", *(f"{stage}x{world}" for stage in STAGES for world in (1, 2))])
def test_every_layer_begins_with_the_spread_that_is_promised(runs, name):
    first = runs[name]["first"]
    assert first.keys() == runs["none"]["weights"].keys()
    assert max(first.values()) < 5, first  # standard errors of mean and deviation


def test_the_reference_learns(runs):
    losses = runs["none"]["losses"]
    assert sum(losses[-4:]) < sum(losses[:4]) - 0.4


@pytest.mark.parametrize("control", ["accumulation", "world_size"])
def test_a_wrong_gradient_is_noticed(runs, control):
    assert worst(runs[control]["norms"], runs["none"]["norms"]) > 1e-2


AVERAGED = ["--ema-decay", "0.8"]


@pytest.fixture(scope="module")
def averaged(tmp_path_factory) -> dict[str, dict[str, Any]]:
    jobs = {name: (world, ["--deepspeed", name, "--steps", "8", *AVERAGED]) for name, world in
            (("none", 1), ("zero1", 2), ("zero3", 2))}  # fmt: skip
    return launch_all(tmp_path_factory.mktemp("averaged"), jobs)


@pytest.mark.parametrize("name", ["none", "zero1", "zero3"])
def test_the_running_mean_is_that_of_the_formula(averaged, name):
    run = averaged[name]
    assert run["average"].keys() == run["weights"].keys()
    for parameter, norm in run["average"].items():
        assert norm == pytest.approx(run["average_by_hand"][parameter], rel=1e-5)


TROUBLED = [2, 4, 6, 7]
OFFLOADS = ["zero2_offload", "zero3_offload"]


@pytest.fixture(scope="module")
def troubled(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """Runs in which one rank has a bad gradient in step 2 and bad losses in 4, 6, 7, and one that leaves them out."""
    common = ["--steps", "10", *AVERAGED, "--deepspeed"]
    jobs = {
        "without": (1, [*common, "none", "--trouble", "omitted"]),
        "taken": (2, [*common, "zero2", "--trouble", "taken"]),
    }
    for precision in ("fp32", "bf16"):
        more = ["--trouble", "refused", "--precision", precision]
        jobs |= {f"{name}-{precision}": (2, [*common, name, *more]) for name in [*STAGES, *OFFLOADS]}
        jobs |= {f"none-{precision}": (1, [*common, "none", *more])}
    return launch_all(tmp_path_factory.mktemp("troubled"), jobs)


def untroubled(values: list[float]) -> list[float]:
    return [value for step, value in enumerate(values) if step not in TROUBLED]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["none", *STAGES, *OFFLOADS])
def test_a_bad_step_is_dropped_by_every_rank_and_leaves_no_trace(troubled, name, precision):
    """Nothing of its gradients stays either, also not of its earlier micro-batches: the next norms are the same."""
    run, wanted = troubled[f"{name}-{precision}"], troubled["without"]
    assert [step for step, skipped in enumerate(run["skipped"]) if skipped] == TROUBLED
    assert [step for step, refused in enumerate(run["refused"]) if refused] == TROUBLED[1:]
    assert run["changed"] == []
    assert run["losses"][2] < 5 < 6 < run["losses"][4] < 1000
    assert run["losses"][6] == run["losses"][7] == float("inf")
    assert worst(untroubled(run["losses"]), wanted["losses"]) < (1e-6 if precision == "fp32" else 2e-3)
    assert worst(untroubled(run["norms"]), wanted["norms"]) < (1e-5 if precision == "fp32" else 2e-2)


def test_a_spike_that_nobody_refuses_changes_what_follows(troubled):
    run, wanted = troubled["taken"], troubled["without"]
    assert [step for step, skipped in enumerate(run["skipped"]) if skipped] == [2, 6, 7]
    assert [step for step, refused in enumerate(run["refused"]) if refused] == [6, 7]
    assert run["changed"] == [4]
    assert worst(untroubled(run["losses"]), wanted["losses"]) > 1e-3
    assert worst(untroubled(run["norms"]), wanted["norms"]) > 5e-2
