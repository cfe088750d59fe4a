"""What `bmscale plan` predicts against what real ranks take: peak memory and the time of a step.

Each run is a process, or several, of its own: the real engine on random tokens in batches of one shape, as the planner
was told (`step_loop`). Memory is that of the process above what it took once the ranks had met and before there was a
model; of a GPU, what tensors took of it. Times are predicted from matrix products and copies measured on this machine,
and from one run, by which all are multiplied: what is left for the others to err in is what depends on the run.
"""

import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bmscale.benchmark import process
from bmscale.benchmark.training_case import EngineChoice
from bmscale.config import suggest
from bmscale.engine import deepspeed_config
from bmscale.errors import BadInput
from bmscale.model.config import TransformerConfig
from bmscale.model.tasks import TASKS
from bmscale.planning import hardware
from bmscale.planning.hardware import CALIBRATION, GIB, Machine
from bmscale.planning.memory import Memory, estimate
from bmscale.planning.throughput import predict
from bmscale.planning.workload import Workload
from bmscale.planning.zero import Zero

VOCABULARY = 8000

PRESETS = {"pairs": ("translation", "modern"), "rows": ("language_model", "llama")}
"""Task and preset of each kind of run: an encoder-decoder, a decoder."""


@dataclass(frozen=True)
class Run:
    """A short training that is predicted and measured."""

    kind: str
    """One of `PRESETS`."""
    size: str
    precision: str
    engine: str
    """As cases of the benchmark name them: none, zero2, zero2x2."""
    rows: int
    """Of a micro-batch."""
    length: int
    """Tokens of a row; of pairs, of the source and of the target."""
    checkpointing: bool = False
    micro_batches: int = 1

    @property
    def name(self) -> str:
        """`pairs/base/bf16/zero2x2/16x32/recomputed`."""
        parts = [self.kind, self.size, self.precision, self.engine, f"{self.rows}x{self.length}"]
        parts += ["recomputed"] if self.checkpointing else []
        parts += [f"{self.micro_batches}-micro-batches"] if self.micro_batches > 1 else []
        return "/".join(parts)

    @property
    def choice(self) -> EngineChoice:
        """Engine and ranks."""
        return EngineChoice.parse(self.engine)

    @property
    def lengths(self) -> tuple[int, int]:
        """Of source and target."""
        return (self.length if self.kind == "pairs" else 0, self.length)

    @property
    def tokens_per_step(self) -> int:
        """Target tokens of a step, over all ranks."""
        return self.rows * self.length * self.micro_batches * self.choice.ranks

    def question(self, warmup_steps: int, steps: int) -> dict[str, Any]:
        """What the ranks are asked."""
        task, preset = PRESETS[self.kind]
        training = {
            "tokens_per_step": self.tokens_per_step,
            "max_micro_batch_tokens": self.rows * sum(self.lengths),
            "max_steps": warmup_steps + steps,
            "precision": self.precision,
            "deepspeed": self.choice.name,
            "activation_checkpointing": self.checkpointing,
            "trackers": [],
        }
        return {
            "bare": False,
            "task": task,
            "model": {"preset": preset, "size": self.size},
            "vocab_size": VOCABULARY,
            "lengths": self.lengths,
            "training": training | ({} if self.kind == "pairs" else {"sequence_length": self.length}),
            "warmup_steps": warmup_steps,
            "steps": steps,
            "each_step": True,
        }

    def config(self) -> TransformerConfig:
        """That of the model."""
        name, preset = PRESETS[self.kind]
        task = TASKS[name]
        return task.configure(**{**task.presets[preset], **task.sizes[self.size], "vocab_size": VOCABULARY})

    def workload(self) -> Workload:
        """What the planner is told."""
        return Workload(
            *(self.config(), *self.lengths, self.precision, self.tokens_per_step, not torch.cuda.is_available()),
            packed=self.kind == "rows",
        )

    def zero(self) -> Zero:
        """How states are spread."""
        if self.choice.name == "none":
            return Zero(0, plain=True)
        return Zero.from_json(deepspeed_config.read(self.choice.name).values)


RUNS = (
    # One rank: activations take most of the memory, then states do.
    Run("rows", "mini", "bf16", "none", 32, 128),
    Run("rows", "mini", "fp32", "zero2", 32, 128),
    Run("rows", "small", "bf16", "none", 16, 128),
    Run("rows", "small", "fp32", "none", 16, 128),
    Run("rows", "base", "bf16", "none", 4, 256),
    Run("rows", "base", "fp32", "zero0", 4, 256, checkpointing=True),
    Run("rows", "base", "bf16", "zero1", 4, 256),
    Run("rows", "base", "fp32", "zero1", 4, 256, checkpointing=True),
    Run("rows", "base", "bf16", "zero2", 2, 256, micro_batches=2),
    Run("rows", "base", "fp32", "zero2", 2, 256),
    Run("rows", "base", "bf16", "zero3", 8, 256, checkpointing=True),
    Run("rows", "base", "fp32", "zero3", 2, 256),
    Run("rows", "big", "bf16", "none", 2, 256, checkpointing=True),
    Run("rows", "big", "bf16", "zero2", 2, 256, checkpointing=True),
    Run("pairs", "mini", "bf16", "none", 64, 32),
    Run("pairs", "mini", "bf16", "zero2", 64, 32),
    Run("pairs", "small", "fp32", "none", 64, 48),
    Run("pairs", "base", "bf16", "none", 32, 32),
    Run("pairs", "base", "bf16", "zero1", 32, 32, micro_batches=2),
    Run("pairs", "base", "fp32", "zero2", 64, 32, checkpointing=True),
    Run("pairs", "base", "bf16", "zero3", 32, 32),
    Run("pairs", "big", "bf16", "zero2", 16, 32),
    Run("pairs", "300m", "bf16", "none", 8, 32),
    # Two ranks.
    Run("rows", "small", "bf16", "zero0x2", 16, 128),
    Run("rows", "base", "bf16", "zero1x2", 4, 256),
    Run("rows", "base", "bf16", "zero2x2", 4, 256),
    Run("rows", "base", "fp32", "zero2x2", 4, 256, checkpointing=True),
    Run("rows", "base", "bf16", "zero3x2", 4, 256),
    Run("pairs", "small", "fp32", "zero1x2", 64, 32),
    Run("pairs", "base", "bf16", "zero2x2", 64, 32, checkpointing=True),
    Run("pairs", "base", "fp32", "zero3x2", 16, 32, micro_batches=2),
    Run("pairs", "mini", "bf16", "zero3x2", 64, 32),
)

MOST_SECONDS = 900
"""Of a run: more means that its ranks wait for each other for ever."""

CALIBRATING = "rows/small/bf16/none"
"""The run by which predicted times are multiplied, where it is among those that are measured; else the first."""


@dataclass(frozen=True)
class Row:
    """A run predicted and measured: bytes of a rank, seconds of a step."""

    run: Run
    parameters: int
    predicted_memory: float
    memory: float
    predicted_seconds: float
    """Before any run was measured."""
    seconds: float
    """The median of the steps that were timed."""

    @property
    def memory_error(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted_memory / self.memory - 1

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {"name": self.run.name, **asdict(self), "memory_error": self.memory_error}


def choose(names: Sequence[str]) -> list[Run]:
    """The runs whose names begin with one of `names`; without, all that this machine has cores or GPUs for. Raises
    BadInput."""
    room = torch.cuda.device_count() or os.cpu_count() or 1
    for name in names:
        if not any(run.name.startswith(name) for run in RUNS):
            nearest = suggest(name, [run.name for run in RUNS])
            raise BadInput(f"--verify: must be the beginnings of names such as {RUNS[0].name}; got '{name}'{nearest}")
    chosen = [run for run in RUNS if not names or any(run.name.startswith(name) for name in names)]
    too_wide = [run.name for run in chosen if run.choice.ranks > room]
    if too_wide and names:
        raise BadInput(
            f"--verify: each rank must have a core or a GPU of its own; got {too_wide[0]} and {room} of them"
        )
    return [run for run in chosen if run.name not in too_wide]


def verify(runs: Sequence[Run], warmup_steps: int, steps: int) -> Iterator[Row]:
    """Predict and measure one run after another. Raises BmscaleError for a run that fails or does not end."""
    with tempfile.TemporaryDirectory() as folder:
        machine = cache(lambda ranks: hardware.measure(ranks=ranks, folder=Path(folder)))
        for number, run in enumerate(runs):
            yield _row(run, machine(run.choice.ranks), warmup_steps, steps, Path(folder) / f"{number}.log")


def _row(run: Run, machine: Machine, warmup_steps: int, steps: int, log: Path) -> Row:
    choice, workload, zero = run.choice, run.workload(), run.zero()
    memory = estimate(
        *(workload, zero, machine, run.rows), checkpointing=run.checkpointing, micro_batches=run.micro_batches
    )
    step = predict(workload, zero, machine, run.rows, checkpointing=run.checkpointing)
    command = [*choice.start(), "-m", "bmscale.benchmark.step_loop"]
    answer = process.ask(command, run.question(warmup_steps, steps), choice.threads, log, MOST_SECONDS)
    taken = max(peak - begun for peak, begun in zip(answer["peak_gib"], answer["begun_gib"], strict=True))
    seconds = statistics.median(answer["step_seconds"])
    return Row(run, workload.parameters, _tensors(memory, machine), taken * GIB, step.seconds, seconds)


def _tensors(memory: Memory, machine: Machine) -> float:
    """The part of a prediction that is measured: on CPU above the interpreter, on a GPU what tensors take."""
    parts = memory.accelerator
    if machine.accelerator.is_cpu:
        return parts.total - CALIBRATION.interpreter
    return parts.total - parts.context - parts.fragmentation


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Median and worst error of memory, and of time but for the run that it is fitted to (None without another)."""
    fitted = next((row for row in rows if row.run.name.startswith(CALIBRATING)), rows[0])
    factor = fitted.seconds / fitted.predicted_seconds
    times = [factor * row.predicted_seconds / row.seconds - 1 for row in rows if row is not fitted]
    return {
        "memory": _errors([row.memory_error for row in rows]),
        "time": _errors(times) if times else None,
        "fitted": fitted.run.name,
        "factor": factor,
    }


def _errors(errors: Sequence[float]) -> dict[str, float]:
    sizes = [abs(error) for error in errors]
    return {"median": statistics.median(sizes), "worst": max(sizes)}


def table(rows: Sequence[Row]) -> str:
    """As Markdown: MiB of a rank, seconds of a step."""
    found = summary(rows)
    lines = ["| run | parameters | predicted MiB | measured | error | predicted s | measured | error |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        seconds = found["factor"] * row.predicted_seconds
        error = "fitted" if row.run.name == found["fitted"] else f"{seconds / row.seconds - 1:+.0%}"
        memory = f"{row.predicted_memory / 2**20:,.0f} | {row.memory / 2**20:,.0f} | {row.memory_error:+.1%}"
        time = f"{seconds:.2f} | {row.seconds:.2f} | {error}"
        lines.append(f"| `{row.run.name}` | {row.parameters / 1e6:.0f} M | {memory} | {time} |")
    words = [
        f"{what}: median error {found[what]['median']:.1%}, worst {found[what]['worst']:.1%}"
        for what in ("memory", "time")
        if found[what]
    ]
    return "\n".join([*lines, "", *words])
