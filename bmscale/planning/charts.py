"""A plan as a picture: the memory of each way in stacked bars, and how the chosen one scales."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bmscale.errors import BadInput
from bmscale.planning.hardware import GIB
from bmscale.planning.memory import Breakdown, estimate
from bmscale.planning.plan import Plan, Way
from bmscale.planning.throughput import COUNTS, ScalingPoint, scaling

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
MOST_BARS = 10


def check_path(path: Path) -> None:
    """Raises BadInput for a picture of a kind that is not drawn."""
    if path.suffix.lower() not in FORMATS:
        raise BadInput(f"--plot: must end in {' or '.join(FORMATS)}; got '{path.name}'")


def draw(plan: Plan, path: Path) -> None:
    """Write the picture; its kind is that of the name."""
    import matplotlib
    from matplotlib.figure import Figure

    check_path(path)
    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": path.name}):
        figure = Figure(figsize=(12, 4.6), layout="constrained")
        bars, lines = figure.subplots(1, 2, width_ratios=(3, 2))
        _memory(bars, plan)
        _scaling(lines, plan, plan.ways[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def _memory(axes: "Axes", plan: Plan) -> None:
    """One bar for each way, the chosen one first."""
    shown = plan.ways[:MOST_BARS]
    names = [f"{way.zero.describe()}{', recompute' if way.checkpointing else ''}, {way.rows}" for way in shown]
    left = [0.0] * len(shown)
    for part in fields(Breakdown):
        values = [getattr(way.memory.accelerator, part.name) / GIB for way in shown]
        if any(values):
            axes.barh(names, values, left=left, label=part.name, height=0.7)
            left = [start + value for start, value in zip(left, values, strict=True)]
    limit = plan.machine.accelerator.memory / GIB
    if limit < 3 * max(left):
        axes.axvline(limit, color="black", linestyle="--", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel(f"GiB of a rank on {plan.machine.describe()}, at its peak")
    axes.legend(frameon=False, fontsize=7, ncols=5, loc="upper center", bbox_to_anchor=(0.4, -0.12))
    axes.spines[["top", "right"]].set_visible(False)


def _scaling(axes: "Axes", plan: Plan, way: Way) -> None:
    """Tokens/s where the step grows with the devices and where it does not, and the memory of a device."""
    weak, strong = scaled(plan, way, "weak"), scaled(plan, way, "strong")
    for label, points, style in (("weak scaling", weak, "o-"), ("strong scaling", strong, "s--")):
        rates = [point.step.tokens_per_second for point in points]
        axes.plot([point.gpus for point in points], rates, style, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("devices")
    axes.set_ylabel("target tokens/s")
    memory = axes.twinx()
    peaks = [_peak(plan, way, point) / GIB for point in weak]
    memory.plot([point.gpus for point in weak], peaks, "^:", color="grey", label="memory of a device")
    memory.set_ylabel("GiB")
    memory.set_ylim(bottom=0)
    handles = [*axes.get_legend_handles_labels()[0], *memory.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, frameon=False, fontsize=7)
    axes.grid(linewidth=0.3)


def scaled(plan: Plan, way: Way, kind: str) -> list[ScalingPoint]:
    """The chosen way over numbers of devices, those of the plan among them."""
    most = max(COUNTS[-1], plan.machine.world_size)
    counts: Sequence[int] = sorted({n for n in (*COUNTS, plan.machine.world_size, 4096, 16384) if n <= most})
    counts = [count for count in counts if count % min(count, plan.machine.gpus) == 0]
    return scaling(
        plan.workload,
        way.zero,
        plan.machine,
        way.rows,
        checkpointing=way.checkpointing,
        kind="weak" if kind == "weak" else "strong",
        counts=counts,
    )


def _peak(plan: Plan, way: Way, point: ScalingPoint) -> float:
    on_node = min(point.gpus, plan.machine.gpus)
    there = replace(plan.machine, gpus=on_node, nodes=point.gpus // on_node)
    memory = estimate(plan.workload, way.zero, there, way.rows, checkpointing=way.checkpointing)
    return memory.accelerator.total
