"""A plan as text for a terminal."""

from dataclasses import fields

from bmscale.planning.memory import Breakdown
from bmscale.planning.plan import Cost, Plan, Way, against_chosen, gib

MOST_OTHERS = 12
"""Ways that are shown beside the chosen one."""


def to_text(plan: Plan, costs: Cost | None) -> str:
    """The chosen way, what it takes, costs and beats; where none fits, the nearest and what would make one fit."""
    workload, chosen = plan.workload, plan.ways[0]
    tokens_are = "texts" if workload.tokens_per_row == 1 else "target tokens"
    lengths = f"{workload.source} + {workload.target}" if workload.source else f"{workload.target:,}"
    lines = [
        f"{_short(workload.parameters)} parameters, {workload.precision}, rows of {lengths} tokens "
        f"({workload.lengths_of})",
        f"on {plan.machine.describe()} ({plan.machine.accelerator.source})",
        "",
    ]
    if plan.chosen is None:
        lines += [f"nothing fits; the nearest is {chosen.describe()}: it {chosen.lacks}", "what would make it fit:"]
        lines += [f"  {remedy}" for remedy in plan.remedies]
    else:
        lines += [f"fastest that fits: {chosen.describe()}"]
    lines += ["", *_memory(plan, chosen), "", *_time(chosen, tokens_are)]
    if costs is not None and plan.chosen is not None:
        lines += ["", *_cost(costs, tokens_are)]
    return "\n".join([*lines, "", *_ways(plan)])


def _memory(plan: Plan, way: Way) -> list[str]:
    """The peak, part by part."""
    memory, machine = way.memory, plan.machine
    parts = [(part.name, getattr(memory.accelerator, part.name)) for part in fields(Breakdown)]
    parts = [(name, value) for name, value in parts if value]
    total = memory.accelerator.total
    where = "rank, in RAM" if machine.accelerator.is_cpu else "device"
    lines = [f"peak memory of a {where}: {gib(total)} of {gib(machine.accelerator.memory)}"]
    lines += [f"  {name:<14}{gib(value):>10}  {'#' * round(40 * value / total)}" for name, value in parts]
    ranks = "1 rank" if machine.gpus == 1 else f"{machine.gpus} ranks of {{}} each"
    host, nvme = memory.host * machine.gpus, memory.nvme * machine.gpus
    lines += [f"RAM of a node, {ranks.format(gib(memory.host))}: {gib(host)} of {gib(machine.host_memory)}"]
    if memory.nvme:
        lines += [f"disk of a node, {ranks.format(gib(memory.nvme))}: {gib(nvme)} of {gib(machine.nvme)}"]
        if machine.nvme_source:
            lines += [f"  {machine.nvme_bandwidth / 1e9:.2g} GB/s ({machine.nvme_source})"]
    return lines


def _time(way: Way, tokens_are: str) -> list[str]:
    step = way.step
    parts = {
        "matrix products": step.compute,
        "other operations": step.traffic,
        "communication": step.communication,
        "RAM and disk": step.offload,
        "optimizer": step.optimizer,
    }
    shown = ", ".join(f"{name} {_seconds(value)}" for name, value in parts.items() if value)
    hidden = f" ({_seconds(step.hidden)} of communication beside it)" if step.hidden else ""
    batches = "1 micro-batch" if step.micro_batches == 1 else f"{step.micro_batches} micro-batches"
    return [
        f"a step of {step.tokens:,.0f} {tokens_are}, {batches} a rank: {_seconds(step.seconds)}{hidden}",
        f"  {shown}",
        f"  {step.tokens_per_second:,.0f} {tokens_are}/s, {step.mfu:.1%} of the peak",
    ]


def _cost(costs: Cost, tokens_are: str) -> list[str]:
    often = _duration(costs.checkpoint_minutes / 1440)
    money = "" if costs.money is None else f", {_figure(costs.money)} in the unit of the price"
    return [
        f"{_short(costs.tokens)} {tokens_are}: {costs.steps:,} steps, {_duration(costs.days)}, "
        f"{_figure(costs.gpu_hours)} device hours, {_figure(costs.kwh)} kWh{money}",
        f"  a training state is {gib(costs.checkpoint_bytes)} and takes {_seconds(costs.save_seconds)}; a failure "
        f"every {costs.hours_between_failures:,.0f} h is expected: save every {often} "
        f"(training.save_every_steps={costs.checkpoint_steps}), {costs.lost_share:.1%} of the time is lost",
    ]


def _ways(plan: Plan) -> list[str]:
    """What the experiment asks for and the others, and why they lose; memory is that of a rank."""
    head = f"{'each rank':<27}{'recompute':<11}{'rows':>5}{'device':>11}{'RAM':>11}{'disk':>11}{'step':>9}  why not"
    lines, shown_ways = [head], list(zip(plan.ways[1:], plan.losses, strict=True))[:MOST_OTHERS]
    if plan.asked is not None:
        alike = plan.asked.describe()
        shown_ways = [entry for entry in shown_ways if entry[0].describe() != alike]
        shown_ways.insert(0, (plan.asked, f"yours: {against_chosen(plan, plan.asked)}"))
    for way, why in shown_ways:
        sizes = (way.memory.accelerator.total, way.memory.host, way.memory.nvme)
        shown = "".join(f"{gib(size) if size else '-':>11}" for size in sizes)
        again = "yes" if way.checkpointing else "no"
        lines.append(f"{way.zero.describe():<27}{again:<11}{way.rows:>5}{shown}{_seconds(way.step.seconds):>9}  {why}")
    left = len(plan.losses) - MOST_OTHERS
    return [*lines, f"and {left} more (--json has all)"] if left > 0 else lines


def _duration(days: float) -> str:
    """`45 s`, `12.3 min`, `5.2 h`, `31.4 days`."""
    for unit, scale in (("days", 1), ("h", 24), ("min", 24 * 60)):
        if days * scale >= 2:
            return f"{_figure(days * scale)} {unit}"
    return f"{_figure(days * 86_400)} s"


def _figure(value: float) -> str:
    """Three figures, and all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _seconds(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f} s"
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def _short(count: float) -> str:
    """1.5M, 8.03B, 1.01T."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:g}"
