"""`bmscale benchmark`: cases in turns, A B C A B C, so that what slows the machine down for a while slows all of them;
then medians, ranges and ratios, as a table and as JSON."""

import fnmatch
import itertools
import json
import logging
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from bmscale.benchmark import command_case, decoding, peer_case, training_case
from bmscale.benchmark.figures import Figures, middle, paired_ratios
from bmscale.benchmark.setting import Setting
from bmscale.benchmark.shape import SHAPES
from bmscale.config import shipped_names, suggest
from bmscale.data.corpus import read_pairs
from bmscale.data.workers import cores
from bmscale.errors import BadInput, BmscaleError

log = logging.getLogger("bmscale")

Measure = Callable[[Setting, str], Figures]

KINDS = {
    "train": "train/SHAPE/PRECISION[/ENGINE]: `bmscale train` on the corpus",
    "step": "step/SHAPE/PRECISION[/ENGINE]: the training step alone; ENGINE `bare` is a torch loop",
    **{system: f"{system}/SHAPE/PRECISION: that system's training on the corpus" for system in peer_case.SCRIPTS},
    "decode": "decode/SHAPE/PRECISION/SEARCH: greedy or beam5",
    "ctranslate2": "ctranslate2/SHAPE/PRECISION/SEARCH: the same in CTranslate2, fp32 or int8",
    "start": "start/SHAPE/PRECISION[/ENGINE]: from the command to the first training step",
    "checkpoint": "checkpoint/SHAPE/PRECISION[/ENGINE]: saving the training state",
    "prepare": "prepare: `bmscale prepare` of the corpus",
    "answer": "answer/help, answer/import: `bmscale --help`, `import bmscale`",
}
"""What there is to measure, by the first word of a case."""

USUAL = (
    "train/d256/fp32",
    "train/d256/bf16",
    "train/d256/bf16/zero2x2",
    "step/d256/bf16/none",
    "step/d256/bf16/bare",
    "start/d256/bf16/zero2x2",
    "answer/help",
    "answer/import",
    "prepare",
)
"""The cases of `bmscale benchmark` without any named."""


TRAINING = ("train", "step", "start", "checkpoint")
"""Kinds of which an engine is part."""

SEARCHES = ("greedy", "beam5")
"""Examples of how a decoding case looks for translations; any width does."""


def listed() -> str:
    """What `--list` prints: kinds of cases, the words that they are made of, and the usual ones."""
    words = {
        "SHAPE": f"{', '.join(SHAPES)}; a decoder of step alone",
        "PRECISION": f"{', '.join(training_case.PRECISIONS)}; of ctranslate2 fp32, int8",
        "ENGINE": f"none, {', '.join(_zero_engines())}, with a number of ranks behind it as in zero2x2; bare (of step)",
        "SEARCH": f"{', '.join(SEARCHES)}, or another width",
    }
    lines = [f"{word}: {text}" for word, text in words.items()]
    ranks = f"ranks on this machine: {most_ranks()} at most, one a GPU or, without any, one a core"
    return "\n".join([*KINDS.values(), "", *lines, ranks, "", "usual:", *USUAL])


def _zero_engines() -> list[str]:
    """Those that a case may name: all files of ds_configs but the one that needs a disk."""
    return [name.removesuffix(".json") for name in shipped_names("ds_configs") if "nvme" not in name]


def most_ranks() -> int:
    """Ranks that this machine can run side by side: one a GPU, or where there is none one a core."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else cores()


def _choice(name: str) -> training_case.EngineChoice:
    """The engine of a case; `none` where it names none. Raises BadInput."""
    words = name.split("/")
    return training_case.EngineChoice.parse(words[3] if words[0] in TRAINING and len(words) > 3 else "none")


def check_engine(name: str) -> None:
    """Raises BadInput for an engine that does not exist, and one of more ranks than this machine has room for."""
    choice, most, known = _choice(name), most_ranks(), ("none", "bare", *_zero_engines())
    if choice.name not in known:
        raise BadInput(f"engine: must be one of {', '.join(known)}; got '{choice.name}' in {name}")
    if choice.name == "bare" and not name.startswith("step/"):
        raise BadInput(f"case {name}: `bare` is a loop of steps; use step/ in place of {name.partition('/')[0]}/")
    if choice.ranks > most:
        raise BadInput(
            f"case {name}: must have at most {most} rank{'s' if most > 1 else ''} on this machine, one a GPU or, "
            f"without any, one a core; got {choice.ranks}"
        )


def find(name: str) -> Measure:
    """The measurement that a case names. Raises BadInput."""
    kind, *words = name.split("/")
    if kind not in KINDS:
        raise BadInput(f"case: must begin with one of {', '.join(KINDS)}; got '{name}'{suggest(kind, KINDS)}")
    least, most = {"prepare": (0, 0), "answer": (1, 1), "decode": (3, 3), "ctranslate2": (3, 3)}.get(kind, (2, 3))
    if kind in peer_case.SCRIPTS:
        most = 2
    if not least <= len(words) <= most:
        raise BadInput(f"case: must have the form {KINDS[kind].split(':')[0]}; got '{name}'")
    if kind not in ("prepare", "answer") and words[0] not in SHAPES:
        raise BadInput(
            f"case {name}: the shape must be one of {', '.join(SHAPES)}; got '{words[0]}'{suggest(words[0], SHAPES)}"
        )
    if kind == "answer" and words[0] not in ("help", "import"):
        raise BadInput(f"case: must be answer/help or answer/import; got '{name}'")
    if kind in peer_case.SCRIPTS:
        return lambda setting, case: peer_case.train(setting, case, kind, *words)
    measure: Any = {
        "train": training_case.train,
        "step": training_case.step,
        "decode": decoding.decode,
        "ctranslate2": decoding.decode_with_ctranslate2,
        "start": command_case.start,
        "checkpoint": command_case.checkpoint,
        "prepare": command_case.prepare,
        "answer": command_case.answer,
    }[kind]
    return lambda setting, case: measure(setting, case, *words)


def check(setting: Setting, cases: Sequence[str], ratios: Sequence[tuple[str, str, float]]) -> None:
    """Raises BadInput for a corpus or a case that does not exist, more ranks than there is room for, a rival without
    an interpreter, and a ratio of cases that are not measured."""
    if setting.corpus is not None:
        data = setting.data_config()
        read_pairs(data.train[0], data.source_language, data.target_language)  # reads the first
    for name in cases:
        words = name.split("/")
        find(name)
        if words[0] in peer_case.SCRIPTS:
            peer_case.interpreter(setting, peer_case.ENVIRONMENTS[peer_case.SCRIPTS[words[0]]])
        elif words[0] == "ctranslate2":
            peer_case.interpreter(setting, words[0])
        if words[0] in TRAINING:
            training_case.check_precision(words[2])
            check_engine(name)
            if words[0] != "step":
                setting.experiment(name, words[1], precision=words[2])
        if words[0] in ("decode", "ctranslate2"):
            decoding.check(*words)
    for one, other, _ in ratios:
        for name in (one, other):
            if name not in cases:
                raise BadInput(f"--at-least: {name} is not among the cases that are measured: {', '.join(cases)}")


def parse_ratios(given: Sequence[Sequence[str]]) -> list[tuple[str, str, float]]:
    """`CASE CASE RATIO` of the command line. Raises BadInput."""
    ratios = []
    for one, other, text in given:
        try:
            least = float(text)
        except ValueError:
            least = math.nan
        if not 0 < least < math.inf:
            raise BadInput(f"--at-least {one} {other}: the ratio must be a number above 0; got '{text}'")
        ratios.append((one, other, least))
    return ratios


def benchmark(setting: Setting, cases: Sequence[str], repeats: int) -> dict[str, list[Figures]]:
    """Measure every case `repeats` times, in turns; results.json is written after each. A case that fails is said and
    left out of the following turns."""
    setting.folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Figures]] = {name: [] for name in cases}
    failed: dict[str, str] = {}
    for turn, name in itertools.product(range(repeats), cases):
        if name in failed:
            continue
        log.info("%s, %d of %d", name, turn + 1, repeats)
        try:
            found[name].append(find(name)(setting, name))
        except BmscaleError as error:
            failed[name] = str(error)
            log.warning("%s failed: %s", name, error)
        write(setting, found, failed)
    return found


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    names = ("torch", "deepspeed", "accelerate", "transformers")
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            processor = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), processor)
    except OSError:
        pass
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions = {name: metadata.version(name) for name in names}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor,
        "cores": cores(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "accelerator": accelerator,
        "python": platform.python_version(),
        "versions": versions,
    }


def write(setting: Setting, found: dict[str, list[Figures]], failed: dict[str, str]) -> None:
    """results.json of the benchmark's folder."""
    content = {
        "machine": machine(),
        "command": ["bmscale", *sys.argv[1:]],
        "setting": {
            "corpus": setting.corpus or "toy",
            "tokens_per_step": setting.tokens_per_step,
            "micro_batch_tokens": setting.micro_batch_tokens,
            "warmup_steps": setting.warmup_steps,
            "steps": setting.steps,
        },
        "cases": {name: [figures.as_dict() for figures in measured] for name, measured in found.items()},
        "failed": failed,
    }
    path = setting.folder / "results.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    temporary.replace(path)


COLUMNS = {
    "case": "case",
    "speed": "target tokens/s (range)",
    "source": "source tokens/s",
    "step": "s a step",
    "gflops": "GFLOP/s",
    "mfu": "MFU, measured peak",
    "datasheet_mfu": "MFU, data sheet",
    "padding": "padding",
    "waiting": "waiting for data",
    "memory": "GiB",
    "loss": "nats, first to last",
}


def table(found: dict[str, list[Figures]]) -> str:
    """A Markdown table of the medians; a column that no case fills is left out."""
    rows = [_row(name, measured) for name, measured in found.items() if measured]
    used = [key for key in COLUMNS if key == "case" or any(row[key] for row in rows)]
    lines = [[COLUMNS[key] for key in used], ["---"] * len(used), *([row[key] for key in used] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _row(name: str, measured: list[Figures]) -> dict[str, str]:
    speeds = sorted(figures.speed for figures in measured)
    median = middle(speeds) or 0.0
    first = measured[0]
    if first.target_tokens is not None:
        speed = f"{median:,.0f} ({speeds[0]:,.0f}–{speeds[-1]:,.0f})"
    elif first.unit:
        speed = f"{median:,.3g} {first.unit}/s ({speeds[0]:,.3g}–{speeds[-1]:,.3g})"
    else:
        speed = f"{1 / median:.2f} s ({1 / speeds[-1]:.2f}–{1 / speeds[0]:.2f})"
    sources = middle([None if f.source_tokens is None else f.source_tokens / f.seconds for f in measured])
    steps = middle([None if not f.steps else f.seconds / f.steps for f in measured])
    gflops = middle([None if f.flops is None else f.flops / f.seconds / 1e9 for f in measured])
    memory = middle([f.memory_gib for f in measured])
    losses = first.losses
    return {
        "case": f"`{name}`",
        "speed": speed,
        "source": "" if sources is None else f"{sources:,.0f}",
        "step": "" if steps is None else f"{steps:.3f}",
        "gflops": "" if gflops is None else f"{gflops:,.0f}",
        "mfu": _percent(middle([f.mfu for f in measured])),
        "datasheet_mfu": _percent(middle([f.datasheet_mfu for f in measured])),
        "padding": _percent(middle([f.padding for f in measured])),
        "waiting": _percent(middle([f.waiting for f in measured])),
        "memory": "" if memory is None else f"{memory:.2f}",
        "loss": "" if losses is None else f"{losses[0]:.2f} to {losses[1]:.2f}",
    }


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def ratio_lines(found: dict[str, list[Figures]], ratios: Sequence[tuple[str, str, float]]) -> tuple[list[str], bool]:
    """A line for each ratio that was asked for, and whether all were reached. A case that failed, in whatever turn,
    reaches none."""
    lines, reached, turns = [], True, max(map(len, found.values()))
    for one, other, least in ratios:
        whole = len(found[one]) == len(found[other]) == turns
        pairs = paired_ratios(found[one], found[other]) if whole else []
        if not pairs:
            lines.append(f"{one} / {other}: not measured, must be at least {least:g}")
            reached = False
            continue
        median = middle(pairs) or 0.0
        good = median >= least
        reached &= good
        word = "reached" if good else "NOT reached"
        lines.append(
            f"{one} / {other}: {median:.2f} ({min(pairs):.2f}–{max(pairs):.2f} in {len(pairs)} turns), "
            f"at least {least:g}: {word}"
        )
    return lines, reached


def matching(patterns: Sequence[str]) -> list[str]:
    """The usual cases that patterns with `*` name, and the others as they are; all usual ones where none is given.
    Usual ones of more ranks than this machine has room for are left out."""
    most = most_ranks()
    usual = [name for name in USUAL if _choice(name).ranks <= most]
    chosen: list[str] = []
    for pattern in patterns or usual:
        wild = any(sign in pattern for sign in "*?[")
        names = fnmatch.filter(usual, pattern) if wild else [pattern]
        if not names:
            raise BadInput(f"case: '{pattern}' matches none of the usual cases here: {', '.join(usual)}")
        chosen += [name for name in names if name not in chosen]
    return chosen
