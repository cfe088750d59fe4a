"""The fastest way to train an experiment on a machine that fits into its memory, and what it costs.

1. Every combination of ZeRO stage, offload and activation checkpointing that is worth considering (`ways`);
2. for each the micro-batch with which it fits and is fastest (`search`);
3. the fastest of them, and why the others lose;
4. where none fits: by how much, and what would make one fit (`remedies`).
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from bmscale.errors import BadInput
from bmscale.planning.hardware import ACCELERATORS, CALIBRATION, GIB, Calibration, Machine
from bmscale.planning.memory import Memory, estimate
from bmscale.planning.throughput import StepTime, micro_batches, predict
from bmscale.planning.workload import Workload
from bmscale.planning.zero import BUCKET, MANY_RANKS, NVME_SUB_GROUP, WIDE_BUCKET, Zero

ALIKE = 0.01
"""Plans whose speeds differ by less are alike: the simplest of them is chosen."""
MOST_ROWS = 4096
"""Of a micro-batch: beyond it nothing becomes faster."""


@dataclass(frozen=True)
class Way:
    """One way to train: what it takes and how fast it is."""

    zero: Zero
    checkpointing: bool
    rows: int
    """Of a micro-batch."""
    memory: Memory
    step: StepTime
    lacks: str | None
    """What it lacks, None where it fits."""
    excess: float
    """The largest of what is needed over what there is; above 1 it does not fit."""

    def describe(self) -> str:
        """`zero2, micro-batches of 16 rows, recomputing activations`."""
        again = ", activations recomputed" if self.checkpointing else ""
        rows = "1 row" if self.rows == 1 else f"{self.rows} rows"
        return f"{self.zero.describe()}{again}, micro-batches of {rows}"


@dataclass(frozen=True)
class Plan:
    """What `bmscale plan` found."""

    workload: Workload
    machine: Machine
    ways: list[Way]
    """The best of each combination, the fastest that fit first, then the others by what they lack."""
    losses: list[str]
    """Why each way but the first is not chosen, in the order of `ways`."""
    remedies: list[str]
    """What would make one fit, where none does."""
    asked: Way | None = None
    """What the experiment asks for, where that is known."""

    @property
    def chosen(self) -> Way | None:
        """The one to train with; None where none fits."""
        return self.ways[0] if self.ways[0].lacks is None else None


def ways(workload: Workload, machine: Machine) -> Iterator[Zero]:
    """What is worth considering. Offload to RAM is none where ranks compute in it already."""
    card, ranks = machine.accelerator, machine.world_size
    bucket = WIDE_BUCKET if ranks > MANY_RANKS else BUCKET
    base = Zero(0, bucket=bucket, prefetch=bucket, overlap=not card.is_cpu and ranks > 1)
    yield replace(base, overlap=False)
    if ranks > 1:
        yield replace(base, stage=1, overlap=False)
    yield replace(base, stage=2)
    lean = replace(base, stage=3, reuse=0)
    if ranks > 1:
        yield replace(base, stage=3)
        yield lean
    if not card.is_cpu:
        yield replace(base, stage=2, optimizer="cpu")
        yield replace(lean, optimizer="cpu")
        yield replace(lean, optimizer="cpu", parameters="cpu")
    if machine.nvme:
        piece = -(-workload.largest_matrix // ranks)
        on_disk = replace(lean, optimizer="nvme", sub_group=NVME_SUB_GROUP, buffer=max(20_000_000, piece))
        yield on_disk
        yield replace(on_disk, parameters="nvme", prefetch=min(bucket, 20_000_000) if ranks <= MANY_RANKS else bucket)


def make(workload: Workload, machine: Machine, calibration: Calibration = CALIBRATION) -> Plan:
    """Search, choose and explain. Raises BadInput where the step cannot be split over the ranks."""
    micro_batches(workload, machine.world_size, 1)
    found = [
        search(workload, zero, machine, checkpointing, calibration)
        for zero in ways(workload, machine)
        for checkpointing in (False, True)
    ]
    fitting = [way for way in found if way.lacks is None]
    fastest = min((way.step.seconds for way in fitting), default=0.0)
    # Of those alike the first is the simplest: `ways` goes from simple to intricate.
    chosen = next((way for way in fitting if way.step.seconds <= fastest * (1 + ALIKE)), None)
    fitting.sort(key=lambda way: (way is not chosen, way.step.seconds))
    others = sorted((way for way in found if way.lacks is not None), key=lambda way: way.excess)
    ordered = fitting + others
    losses = [way.lacks or _slower(way, ordered[0]) for way in ordered[1:]]
    return Plan(workload, machine, ordered, losses, [] if chosen else remedies(workload, machine, calibration))


def search(workload: Workload, zero: Zero, machine: Machine, checkpointing: bool, calibration: Calibration) -> Way:
    """The fastest micro-batch that fits; the smallest one where none does."""
    each = min(MOST_ROWS, -(-workload.rows_per_step // machine.world_size))
    best = assess(workload, zero, machine, 1, checkpointing, calibration)
    for rows in sorted({min(2**power, each) for power in range(1, 13)} - {1}):
        if best.lacks is not None:
            break
        way = assess(workload, zero, machine, rows, checkpointing, calibration)
        if way.lacks is not None:
            break
        if way.step.seconds < best.step.seconds * (1 - ALIKE / 10):
            best = way
    return best


def assess(
    workload: Workload,
    zero: Zero,
    machine: Machine,
    rows: int,
    checkpointing: bool,
    calibration: Calibration = CALIBRATION,
) -> Way:
    """Memory and time of one way, and whether it fits."""
    count = micro_batches(workload, machine.world_size, rows)
    memory = estimate(
        workload,
        zero,
        machine,
        rows,
        checkpointing=checkpointing,
        micro_batches=count,
        calibration=calibration,
    )
    step = predict(workload, zero, machine, rows, checkpointing=checkpointing, calibration=calibration)
    lacks, excess = _lacks(memory, machine, calibration)
    return Way(zero, checkpointing, rows, memory, step, lacks, excess)


def _lacks(memory: Memory, machine: Machine, calibration: Calibration) -> tuple[str | None, float]:
    """What does not fit, and the largest share of anything that is taken."""
    free = 1 - calibration.margin
    needs = [("of RAM on a node", memory.host * machine.gpus, machine.host_memory * free)]
    if not machine.accelerator.is_cpu:
        needs.insert(0, ("of accelerator memory", memory.accelerator.total, machine.accelerator.memory * free))
    if memory.nvme:
        needs.append(("of disk on a node", memory.nvme * machine.gpus, machine.nvme * free))
    what, need, there = max(needs, key=lambda entry: entry[1] / max(1.0, entry[2]))
    excess = need / max(1.0, there)
    if excess <= 1:
        return None, excess
    part = ""
    if what == "of accelerator memory" or machine.accelerator.is_cpu:
        name, value = max(_parts(memory).items(), key=lambda entry: entry[1])
        part = f", {gib(value)} {'each ' if machine.accelerator.is_cpu else ''}of it {name}"
    return f"needs {gib(need)} {what} and has {gib(there)}{part}", excess


def against_chosen(plan: Plan, way: Way) -> str:
    """Of what the experiment asks for: `the chosen one`, `needs …`, `12% slower: computes more`."""
    chosen = plan.ways[0]
    if way.describe() == chosen.describe():
        return "the nearest one above" if plan.chosen is None else "the chosen one"
    if way.lacks is not None or plan.chosen is None:
        return way.lacks or "fits"
    return f"fits, {_slower(way, chosen).removesuffix(', and less simple')}"


def _parts(memory: Memory) -> dict[str, float]:
    return {name: value for name, value in vars(memory.accelerator).items() if value}


def _slower(way: Way, chosen: Way) -> str:
    """By how much, and where the time goes."""
    ratio = way.step.seconds / chosen.step.seconds - 1
    if ratio < -ALIKE:
        return f"{-ratio:.0%} faster"
    if ratio <= ALIKE:
        return "as fast, and less simple"
    names = {
        "compute": "computes more",
        "traffic": "moves more memory",
        "communication": "waits for communication",
        "offload": "waits for RAM" if way.zero.offload == "cpu" else "waits for the disk",
        "optimizer": "steps more parameters a rank",
    }
    more = {name: getattr(way.step, name) - getattr(chosen.step, name) for name in names}
    return f"{ratio:.0%} slower: {names[max(more, key=lambda name: more[name])]}"


def remedies(workload: Workload, machine: Machine, calibration: Calibration) -> list[str]:
    """What would make a way fit where none does, each alone: more nodes, another card, more RAM, more disk."""
    card, factors = machine.accelerator, [2**power for power in range(1, 15)]
    cards = [] if card.is_cpu else sorted(ACCELERATORS.values(), key=lambda other: other.memory)
    tried = [
        [(wider := replace(machine, nodes=machine.nodes * factor), wider.describe()) for factor in factors],
        [
            (replace(machine, accelerator=other), f"{other.name} in place of {card.name}")
            for other in cards
            if other.memory > card.memory
        ],
        [
            (_with_ram(machine, factor), f"--ram-gib {machine.host_memory * factor / GIB:.0f} a node")
            for factor in factors[:5]
        ],
        [
            (replace(machine, nvme=size * GIB), f"--nvme-gib {size} a node")
            for size in (factor * max(16, round(machine.nvme / GIB)) for factor in factors[:8])
        ],
    ]
    found = [next((label for other, label in kind if _any_fits(workload, other, calibration)), None) for kind in tried]
    return [label for label in found if label] or ["nothing that was tried; a smaller model, or shorter rows"]


def _with_ram(machine: Machine, factor: int) -> Machine:
    card = machine.accelerator
    card = replace(card, memory=card.memory * factor) if card.is_cpu else card
    return replace(machine, accelerator=card, host_memory=machine.host_memory * factor)


def _any_fits(workload: Workload, machine: Machine, calibration: Calibration) -> bool:
    """Whether some way fits with micro-batches of one row, the step being large enough."""
    rows = max(workload.rows_per_step, machine.world_size)
    larger = workload.with_tokens_per_step(rows * workload.tokens_per_row)
    return any(
        _lacks(
            estimate(larger, zero, machine, 1, checkpointing=True, micro_batches=2, calibration=calibration),
            machine,
            calibration,
        )[0]
        is None
        for zero in ways(larger, machine)
        if zero.stage > 0
    )


# -- what a target costs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Of training on so many target tokens."""

    tokens: float
    steps: int
    days: float
    gpu_hours: float
    kwh: float
    """Of nodes, not of cooling."""
    money: float | None
    """In the unit of the price; None without one."""
    checkpoint_bytes: float
    """Of a training state: fp32 weights and moments."""
    save_seconds: float
    hours_between_failures: float
    checkpoint_minutes: float
    """The interval that loses least to saving and to repeating (Young 1974, Daly 2006)."""
    checkpoint_steps: int
    lost_share: float
    """Of the time, to both."""


def cost(
    plan: Plan, way: Way, tokens: float, price: float | None = None, calibration: Calibration = CALIBRATION
) -> Cost:
    """Of a way, for `tokens` target tokens; `price` is that of an accelerator hour. Raises BadInput for no tokens."""
    if not 0 < tokens < math.inf:
        raise BadInput(f"--target-tokens: must be above 0; got {tokens:g}")
    machine, card = plan.machine, plan.machine.accelerator
    seconds = tokens / way.step.tokens_per_second
    hours = seconds / 3600 * machine.world_size
    size = (16 if plan.workload.keeps_average else 12) * float(plan.workload.parameters)
    save = size / min(machine.nodes * calibration.state_bandwidth, calibration.shared_bandwidth)
    between = 86_400 / (calibration.failures_per_node_day * machine.nodes)
    # Daly's first-order interval is of computing between two saves: sqrt(2 save M) less the save itself.
    interval = max(way.step.seconds, math.sqrt(2 * save * between) - save)
    return Cost(
        tokens=tokens,
        steps=math.ceil(tokens / way.step.tokens),
        days=seconds / 86_400,
        gpu_hours=hours,
        kwh=hours * card.watts * (1 + calibration.host_watts) / 1000,
        money=None if price is None else hours * price,
        checkpoint_bytes=size,
        save_seconds=save,
        hours_between_failures=between / 3600,
        checkpoint_minutes=interval / 60,
        checkpoint_steps=max(1, round(interval / way.step.seconds)),
        lost_share=save / interval + interval / 2 / between,
    )


MOST_TOKENS = 1e18
"""Of a target: far above any training there was, and costs stay numbers that can be read."""

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}


def parse_tokens(text: str) -> float:
    """`10Gt`, `300B`, `1.5T`, `2000000`: a number of tokens. Raises BadInput."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgbt]?)t?\s*", text.lower())
    try:
        value = float(match[1]) * _UNITS[match[2]] if match else math.nan
    except ValueError:
        value = math.nan
    if not value > 0:
        raise BadInput(f"--target-tokens: must be a number with k, M, G, B or T behind it, as in 10Gt; got '{text}'")
    if value > MOST_TOKENS:
        raise BadInput(f"--target-tokens: must be at most {MOST_TOKENS:g}; got '{text}'")
    return value


_SIZES = (("TiB", 1024.0 * GIB), ("GiB", 1.0 * GIB), ("MiB", 2.0**20))


def gib(count: float) -> str:
    """`850 MiB`, `12.3 GiB`, `4.5 TiB`."""
    unit, size = next((entry for entry in _SIZES if count >= 0.98 * entry[1]), _SIZES[-1])
    return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:.0f} {unit}"


def to_dict(plan: Plan, costs: Cost | None) -> dict[str, Any]:
    """For --json."""
    return {
        "parameters": plan.workload.parameters,
        "machine": {
            "accelerator": vars(plan.machine.accelerator),
            **{key: value for key, value in vars(plan.machine).items() if key != "accelerator"},
            "world_size": plan.machine.world_size,
        },
        "fits": plan.chosen is not None,
        "ways": [
            _way_to_dict(plan, way, why) for way, why in zip(plan.ways, [plan.ways[0].lacks, *plan.losses], strict=True)
        ],
        "yours": plan.asked and _way_to_dict(plan, plan.asked, against_chosen(plan, plan.asked)),
        "remedies": plan.remedies,
        "cost": None if costs is None else vars(costs),
    }


def _way_to_dict(plan: Plan, way: Way, why: str | None) -> dict[str, Any]:
    return {
        "zero": way.zero.to_dict(),
        "activation_checkpointing": way.checkpointing,
        "rows": way.rows,
        "max_micro_batch_tokens": plan.workload.slots(way.rows),
        "memory_bytes": way.memory.to_dict(),
        "step": way.step.to_dict(),
        "fits": way.lacks is None,
        "why_not": why,
    }
