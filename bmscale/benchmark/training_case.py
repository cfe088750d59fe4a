"""Cases that train: the whole of `bmscale train` on a corpus, and the training step alone."""

import re
from dataclasses import dataclass
from typing import Any

import torch

from bmscale.benchmark import peak, process
from bmscale.benchmark.figures import Figures
from bmscale.benchmark.setting import Setting, read_lines
from bmscale.benchmark.shape import shape
from bmscale.data.workers import cores
from bmscale.errors import BadInput, BmscaleError
from bmscale.experiment import RunFolder
from bmscale.planning.hardware import of_device

PRECISIONS = ("fp32", "bf16")
_ENGINE = re.compile(r"(bare|none|zero[0-3](?:_offload)?)(?:x([1-9][0-9]*))?")


@dataclass(frozen=True)
class EngineChoice:
    """`none`, `zero2`, `zero2x2` (on two ranks), or `bare`: a torch loop without our engine."""

    name: str
    ranks: int

    @classmethod
    def parse(cls, text: str) -> "EngineChoice":
        """Raises BadInput."""
        found = _ENGINE.fullmatch(text)
        if not found:
            raise BadInput(f"engine: must be none, bare, or zero0 to zero3 with x and a number of ranks; got '{text}'")
        ranks = int(found[2] or 1)
        if ranks > 1 and found[1] in ("none", "bare"):
            raise BadInput(f"engine: {found[1]} runs on one rank; got '{text}'. zero0 keeps everything on every rank")
        return cls(found[1], ranks)

    @property
    def threads(self) -> int:
        """Of each rank: the machine's cores are shared out."""
        return max(1, cores() // self.ranks)

    def start(self) -> list[str]:
        """The words in front of `-m MODULE`."""
        return process.python(self.ranks, None if self.name in ("none", "bare") else self.name)


def datasheet_flops(precision: str, ranks: int) -> float | None:
    """The data sheet's peak of so many of this machine's GPUs (FLOP/s); None on CPU and for an unknown card."""
    if not torch.cuda.is_available():
        return None
    card = of_device(torch.cuda.get_device_name())
    return None if card is None else card.peak(precision) * ranks


def check_precision(precision: str) -> None:
    """Raises BadInput."""
    if precision not in PRECISIONS:
        raise BadInput(f"precision: must be {' or '.join(PRECISIONS)}; got '{precision}'")


def new_run(
    setting: Setting, name: str, shape_name: str, precision: str, choice: EngineChoice, **training: Any
) -> tuple[RunFolder, list[str]]:
    """An empty run folder on the prepared corpus, and the command that trains it. Raises BadInput."""
    setting.prepare()
    experiment = setting.experiment(name, shape_name, precision=precision, deepspeed=choice.name, **training)
    config = setting.new_run(name, experiment)
    return experiment.run_folder, [*choice.start(), "-m", "bmscale", "train", str(config)]


def train(setting: Setting, name: str, shape_name: str, precision: str, engine: str = "none") -> Figures:
    """`bmscale train` from the prepared corpus, its first steps left out: reading data, training, counting. The clock
    is that of metrics.jsonl, which stands still while a line is logged."""
    check_precision(precision)
    choice = EngineChoice.parse(engine)
    run, command = new_run(setting, name, shape_name, precision, choice, log_every_steps=setting.warmup_steps)
    process.run(command, choice.threads, setting.log(name), setting.max_seconds)
    return _of_run(run, precision, choice)


def _of_run(run: RunFolder, precision: str, choice: EngineChoice) -> Figures:
    lines = [line for line in read_lines(run.metrics) if "tokens_per_second" in line]
    if len(lines) < 2:
        raise BmscaleError(f"{run.metrics}: must hold two logged lines at least; got {len(lines)}: raise --steps")
    first, timed = lines[0], lines[1:]
    seconds = [later["seconds"] - earlier["seconds"] for earlier, later in zip(lines, timed, strict=False)]
    target_tokens = timed[-1]["tokens"] - first["tokens"]
    tokens = [line["read_tokens_per_second"] * second for line, second in zip(timed, seconds, strict=True)]
    if not sum(seconds) > 0:
        raise BmscaleError(f"{run.metrics}: {len(timed)} lines took no time that can be measured: raise --steps")
    return Figures(
        seconds=sum(seconds),
        steps=timed[-1]["step"] - first["step"],
        target_tokens=target_tokens,
        source_tokens=round(sum(tokens)) - target_tokens,
        slots=round(sum(count / (1 - (line["padding"] or 0)) for count, line in zip(tokens, timed, strict=True))),
        flops=sum(line["flops_per_second"] * second for line, second in zip(timed, seconds, strict=True)),
        peak_flops=peak.measure_ranks(precision, choice.ranks, choice.threads),
        datasheet_flops=datasheet_flops(precision, choice.ranks),
        waited_seconds=sum(line["waiting_for_data"] * second for line, second in zip(timed, seconds, strict=True)),
        memory_gib=max(lines[-1]["memory_gib"]),
        losses=None if None in (first["nll"], timed[-1]["nll"]) else (first["nll"], timed[-1]["nll"]),
    )


def step(setting: Setting, name: str, shape_name: str, precision: str, engine: str = "none") -> Figures:
    """The training step alone: batches lie ready in memory; no logging, no files."""
    check_precision(precision)
    choice, chosen = EngineChoice.parse(engine), shape(shape_name)
    training: dict[str, Any] = {"precision": precision, "deepspeed": "none" if choice.name == "bare" else choice.name}
    question: dict[str, Any] = {
        "bare": choice.name == "bare",
        "warmup_steps": setting.warmup_steps,
        "steps": setting.steps,
    }
    if chosen["task"] == "translation":
        setting.prepare()
        experiment = setting.experiment(name, shape_name, **training)
        question["experiment"] = experiment.model_dump(mode="json", exclude_unset=True)
    else:
        length = chosen["sequence_length"]
        section = setting.training(sequence_length=length, **training)
        for key in ("tokens_per_step", "max_micro_batch_tokens"):
            section[key] = max(length, section[key] // length * length)
        question |= {"model": chosen["model"], "training": section, "vocab_size": chosen["vocab_size"]}
        question["lengths"] = (0, length)
    command = [*choice.start(), "-m", "bmscale.benchmark.step_loop"]
    answer = process.ask(command, question, choice.threads, setting.log(name), setting.max_seconds)
    losses, memory = answer.pop("losses"), max(answer.pop("peak_gib"))
    for of_prediction in ("begun_gib", "step_seconds"):
        answer.pop(of_prediction)
    measured = peak.measure_ranks(precision, choice.ranks, choice.threads)
    sheet = datasheet_flops(precision, choice.ranks)
    return Figures(
        **answer, memory_gib=memory, losses=(losses[0], losses[-1]), peak_flops=measured, datasheet_flops=sheet
    )
