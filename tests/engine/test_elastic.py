"""A state saved by any ranks under any ZeRO stage goes on under any other, on the same data, to the same losses.

`bash tests/run.sh --full tests/engine/test_elastic.py` runs the whole matrix, 19 shapes by 19; without --full a sample
of it. Every load goes through `States.load`, which itself compares the loss on a probe batch within 1e-6.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
STAGES = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
ALL = ["none-1", *(f"{stage}-{world}" for stage in STAGES for world in (1, 2, 4))]
SAMPLE_SAVED = ["none-1", "zero1-2", "zero3-4", "zero2_offload-1"]
SAMPLE_LOADED = ["none-1", "zero0-2", "zero1-2", "zero2-4", "zero3-2", "zero3-4", "zero2_offload-1"]

SAVED_AT = 8  # as elastic_worker has it
Found = dict[str, Any]


def launch(shape: str, out: Path, *arguments: str) -> Found:
    """The worker under `zero2-4`: that configuration on four ranks."""
    deepspeed, _, world = shape.rpartition("-")
    worker = ["-m", "tests.engine.elastic_worker", "--deepspeed", deepspeed, "--out", str(out), *arguments]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if int(world) > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, *worker]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    assert result.returncode == 0, f"{shape}: {result.stderr[-3000:]}"
    found: Found = json.loads(out.read_text())
    return found


@pytest.fixture(scope="module")
def matrix(tmp_path_factory, request) -> tuple[dict[str, Found], dict[str, Found]]:
    """What each shape found that saved, and each that loaded all that was saved."""
    full = request.config.getoption("--full")
    savers, loaders = (ALL, ALL) if full else (SAMPLE_SAVED, SAMPLE_LOADED)
    folder = tmp_path_factory.mktemp("elastic")
    states = [str(folder / shape) for shape in savers]
    with ThreadPoolExecutor(max_workers=2) as pool:
        saving = {
            shape: pool.submit(launch, shape, folder / f"save-{shape}.json", "--save", str(folder / shape))
            for shape in savers
        }
        saved = {shape: future.result() for shape, future in saving.items()}
        loading = {
            shape: pool.submit(launch, shape, folder / f"load-{shape}.json", "--load", *states) for shape in loaders
        }
        return saved, {shape: future.result() for shape, future in loading.items()}


def worst(found: list[float], wanted: list[float]) -> float:
    """The largest relative difference."""
    assert len(found) == len(wanted) > 0
    return max(abs(one - other) / abs(other) for one, other in zip(found, wanted, strict=True))


def test_every_shape_goes_on_from_every_state(matrix):
    saved, loaded = matrix
    reference = saved["none-1"]
    found = {}
    for shape, runs in loaded.items():
        for origin in saved:
            run = runs[origin]
            losses, norms = (worst(run[what], reference[what][SAVED_AT:]) for what in ("losses", "norms"))
            found[f"{origin} -> {shape}"] = (run["probe"], losses, norms)
    probe, losses, norms = (max(values) for values in zip(*found.values(), strict=True))
    print(f"{len(found)} resumes: probe within {probe:.1e}, losses {losses:.1e}, norms {norms:.1e}")
    assert probe < 1e-6, found
    assert losses < 1e-6, found
    assert norms < 1e-5, found


def test_the_same_shape_goes_on_bit_for_bit(matrix):
    saved, loaded = matrix
    same = saved.keys() & loaded.keys()
    assert len(same) >= 3
    for shape in same:
        run = loaded[shape][shape]
        assert run["probe"] == 0.0, shape
        for what in ("losses", "norms"):
            assert run[what] == saved[shape][what][SAVED_AT:], f"{shape}: {what}"
        assert run["weights"] == saved[shape]["weights"], shape


def test_the_running_mean_goes_on_as_well(matrix):
    saved, loaded = matrix
    for shape, found in loaded.items():
        for origin in saved:
            for name, figures in found[origin]["weights"].items():
                wanted = saved["none-1"]["weights"][name]
                assert figures[1] == pytest.approx(wanted[1], rel=1e-6), f"{origin} -> {shape}: {name}"
