"""Models whose states are larger than the memory: ZeRO-3 with optimizer and parameters on disk.

`bash tests/run.sh --full -s tests/training/test_billions.py` plans and trains a billion and three billion parameters on
one CPU rank in 10 and 20 GiB of RAM (36 and 52 GiB of disk), and prints what it took. Without --full a small model is
trained, saved and resumed on disk, where DeepSpeed's operator for it is built already: building it takes some minutes.
"""

import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.utils.cpp_extension

ROOT = Path(__file__).parent.parent.parent
GIB = 2**30
BUILT = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or torch.utils.cpp_extension.get_default_build_root())


@pytest.fixture(scope="session")
def operator(request) -> None:
    """Skip where it would first have to be built, or cannot be."""
    import deepspeed
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not Path("/usr/include/libaio.h").exists() or not AsyncIOBuilder().is_compatible():
        pytest.skip("libaio and its headers are not installed (Debian: libaio-dev)")
    here = str(Path(deepspeed.__file__).parent)  # ninja builds it anew for another installation
    built = any(here in file.read_text() for file in BUILT.glob("**/async_io/build.ninja"))
    if not (built or request.config.getoption("--full")):
        pytest.skip("DeepSpeed's async_io operator is not built yet, which takes minutes; --full builds it")


# -- a small model -----------------------------------------------------------------------------------------------------

WIDE = ["model.hidden_size=512", "training.schedule={type: constant, warmup_steps: 0}", "training.precision=bf16"]
WIDE += ["evaluation.pairs=0", "training.log_every_steps=1"]


def lines_of(run: Path) -> list[tuple[float, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["loss"], line["grad_norm"]) for line in lines if "grad_norm" in line]


@pytest.mark.usefixtures("operator")
def test_a_run_on_disk_is_that_in_memory_and_resumes_bit_for_bit(bmscale, prepared, tmp_path):
    """Of 7 million parameters, in several sub-groups; each matrix is large enough for DeepSpeed to write it."""
    config = json.loads((ROOT / "ds_configs/zero3_nvme.json").read_text())
    config["zero_optimization"] |= {"sub_group_size": 1_500_000, "stage3_prefetch_bucket_size": 600_000}
    on_disk = prepared / "on_disk.json"
    on_disk.write_text(json.dumps(config))

    def train(name: str, steps: int, *words: str) -> subprocess.CompletedProcess[str]:
        run = [f"run=runs/{name}", f"training.max_steps={steps}"]
        return bmscale("train", "tiny.yaml", *WIDE, *run, *words, folder=prepared)

    there = ["training.deepspeed=on_disk.json", f"training.offload_folder={tmp_path}"]
    train("memory", 3, "training.deepspeed=zero3")
    train("whole", 3, *there)
    train("halves", 2, *there)
    resumed = train("halves", 3, *there)
    assert "probe batch: loss" in resumed.stderr
    whole, halves = prepared / "runs/whole", prepared / "runs/halves"
    assert lines_of(halves) == lines_of(whole)
    (weights,) = (whole / "model/last").glob("*.safetensors")
    assert (halves / "model/last" / weights.name).read_bytes() == weights.read_bytes()
    for found, wanted in zip(lines_of(whole), lines_of(prepared / "runs/memory"), strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)  # lines are rounded to five places
    assert not list(tmp_path.iterdir())  # what lay there went with the runs


# -- billions ----------------------------------------------------------------------------------------------------------

EXPERIMENT = """\
name: big
data:
  directory: prepared
  source_language: en
  target_language: de
  train: train.tsv
  valid: valid.tsv
  tokenizer: {{vocabulary_size: {vocabulary}}}
  max_source_tokens: 64
  max_target_tokens: 64
model: {{size: {size}}}
training:
  tokens_per_step: 256
  max_micro_batch_tokens: 512
  max_steps: {steps}
  precision: bf16
  optimizer: {{learning_rate: 1.0e-4}}
  schedule: {{type: constant, warmup_steps: 0}}
  log_every_steps: 1
evaluation: {{pairs: 0}}
"""


def write_corpus(folder: Path) -> None:
    """Pairs of made-up words, of which there are enough for any vocabulary."""
    draw = random.Random(0)

    def line() -> str:
        return " ".join("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 8))) for _ in range(8))

    for name, pairs in (("train", 9000), ("valid", 8)):
        text = "".join(f"{line()}\t{line()}\n" for _ in range(pairs))
        (folder / f"{name}.tsv").write_text(text, encoding="utf-8")


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(os.cpu_count() or 1)}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return result


class Watched:
    """A training under its launcher: the peak of its rank in each phase, of all processes, and of what is on disk."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self.run, self.peaks, self.seconds = folder / "runs/big", dict[str, float](), dict[str, float]()
        self.all_gib = self.disk_gib = 0.0
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "plan/accelerate.yaml"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(os.cpu_count() or 1)}
        with (folder / "stderr.txt").open("w") as stderr:
            self.process = subprocess.Popen(
                [*launch, "-m", "bmscale", "train", "big.yaml", *words],
                cwd=folder,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )

    def follow(self, steps: int | None) -> None:
        """Until the training ends, or has logged so many steps: then it is killed."""
        try:
            self._follow(steps)
        finally:
            with contextlib.suppress(OSError, ValueError):
                os.kill(json.loads((self.run / "ranks/rank-00000.json").read_text())["pid"], signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _follow(self, steps: int | None) -> None:
        phase, since = "", time.monotonic()
        while self.process.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                rank = json.loads((self.run / "ranks/rank-00000.json").read_text())
                now, pid = f"{rank['phase']}, step {rank['step']}", rank["pid"]
                if now != phase:
                    Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets the peak (proc(5))
                    phase, since = now, time.monotonic()
                self.peaks[phase] = max(self.peaks.get(phase, 0.0), status_gib(pid, "VmHWM"))
                self.seconds[phase] = round(time.monotonic() - since, 1)
                self.all_gib = max(self.all_gib, self.peaks[phase] + status_gib(self.process.pid, "VmHWM"))
                files = [path.stat().st_blocks for path in (self.run / "offload").rglob("*")]
                self.disk_gib = max(self.disk_gib, sum(files) * 512 / GIB)
                if steps is not None and len(lines_of(self.run)) >= steps:
                    return
            time.sleep(0.1)
        assert self.process.returncode == 0, (self.run.parent.parent / "stderr.txt").read_text()[-4000:]


def status_gib(pid: int, what: str) -> float:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(what)]
    return round(int(line.split()[1]) / 2**20, 2)


@pytest.fixture
def place(tmp_path) -> Iterator[Path]:
    """A folder whose content goes at once, being large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(("size", "vocabulary", "gib"), [("1b", 49_152, 10), ("3b", 32_000, 20)])
def test_billions_on_a_small_machine(size, vocabulary, gib, place, request):
    if not request.config.getoption("--full"):
        pytest.skip("takes many minutes and gibibytes: --full")
    to_the_end = size == "1b"  # the state and the models of three billion take 56 GiB more, which a small disk has not
    write_corpus(place)
    text = EXPERIMENT.format(vocabulary=vocabulary, size=size, steps=2 if to_the_end else 100)
    (place / "big.yaml").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "bmscale"]
    run(place, *command, "prepare", "big.yaml")
    plan = ["plan", "big.yaml", "--this-machine", "--gpus", "1", f"--ram-gib={gib}", "--write", "plan", "--json"]
    planned = json.loads(run(place, *command, *plan).stdout)
    chosen = planned["ways"][0]
    assert planned["fits"]
    assert (chosen["zero"]["optimizer"], chosen["zero"]["parameters"]) == ("nvme", "nvme")
    words = (place / "plan/overrides.txt").read_text().split()

    found: dict[str, Any] = {"size": size, "parameters": planned["parameters"], "ln V": round(math.log(vocabulary), 3)}
    if to_the_end:
        worker = [sys.executable, "-m", "tests.training.construction_worker", "big.yaml", *words]
        found["construction"] = json.loads(run(place, *worker, "run=runs/made").stdout.splitlines()[-1])
    watched = Watched(place, words if to_the_end else [*words, "--unchecked"])  # it says that states have no room
    watched.follow(None if to_the_end else 2)
    losses = [loss for loss, _ in lines_of(watched.run)]
    memory = chosen["memory_bytes"]
    found |= {
        "losses": losses,
        "planned_gib": round(memory["host"] / GIB, 2),
        "gib_of_the_rank": watched.peaks,
        "gib_with_the_launcher": watched.all_gib,
        "planned_disk_gib": round(memory["nvme"] / GIB, 2),
        "disk_gib": round(watched.disk_gib, 2),
        "planned_seconds_a_step": round(chosen["step"]["seconds"], 1),
        "seconds": watched.seconds,
    }
    if to_the_end:
        resumed = Watched(place, [*words, "training.max_steps=3"])
        resumed.follow(None)
        losses_to_the_end = [loss for loss, _ in lines_of(resumed.run)]
        found["resumed"] = {"gib_of_the_rank": resumed.peaks, "losses": losses_to_the_end}
        assert "probe batch: loss" in (resumed.run / "log.txt").read_text()
    print(json.dumps(found, indent=1))
    assert len(losses) >= 2
    assert losses[0] == pytest.approx(math.log(vocabulary), rel=0.05)
    assert watched.all_gib <= gib
    assert max(watched.peaks.values()) == pytest.approx(memory["host"] / GIB, rel=0.15)
    assert watched.disk_gib == pytest.approx(memory["nvme"] / GIB, rel=0.05)
    if to_the_end:
        assert found["construction"]["gib_to_make_the_weights"] < 2  # the weights alone are 1.9 GiB
        assert found["construction"]["furthest_from_the_promise"] < 5
        assert resumed.all_gib <= gib
        assert len(found["resumed"]["losses"]) == 3
