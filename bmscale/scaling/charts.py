"""A fit as a picture: loss against compute with the law, isoFLOP curves, residuals. Readable without colours."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bmscale.planning.charts import check_path
from bmscale.scaling.analysis import Analysis
from bmscale.scaling.backtest import scale_of
from bmscale.scaling.checks import budgets

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "os^vD<>ph*XP"
MOST_BUDGETS = 8
"""So many isoFLOP curves are drawn, evenly chosen."""
UNITS = {"C": "training FLOPs", "D": "tokens", "N": "parameters", "loss": "loss"}


def draw(analysis: Analysis, path: Path) -> None:
    """Write the picture; its kind is that of the name."""
    import matplotlib
    from matplotlib.figure import Figure

    check_path(path)
    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": path.name}):
        figure = Figure(figsize=(13, 4.2), layout="constrained")
        by_scale, curves, residuals = figure.subplots(1, 3)
        _by_scale(by_scale, analysis)
        _curves(curves, analysis)
        _residuals(residuals, analysis)
        for axes in (by_scale, curves, residuals):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(linewidth=0.3)
        for axes in (by_scale, curves):
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def _by_scale(axes: "Axes", analysis: Analysis) -> None:
    """Outcome against compute: every row, and the law at the best allocation where it says one."""
    table, law = analysis.table, analysis.fit.law
    scale = scale_of(table)
    axes.plot(table[scale], table[law.target], "o", color="0.55", markersize=3, label="rows")
    ours = [one for one in analysis.allocations if one.approach == "approach 3"]
    x = np.geomspace(table[scale].min(), table[scale].max(), 100)
    if scale == "C" and ours and set(law.needs) == {"N", "D"}:
        best = [ours[0].at(compute) for compute in x]
        columns = {"N": np.array([n for n, _ in best]), "D": np.array([d for _, d in best])}
        axes.plot(x, analysis.fit.predict(columns), "k-", linewidth=1.2, label=f"{law.name}, best N and D")
    elif law.needs == (scale,):
        axes.plot(x, analysis.fit.predict({scale: x}), "k-", linewidth=1.2, label=law.name)
    axes.set_xscale("log" if scale in ("C", "D", "N") else "linear")
    axes.set_yscale("log")
    axes.set_xlabel(UNITS.get(scale, scale))
    axes.set_ylabel(law.target)
    axes.legend(frameon=False, fontsize=7)


def _curves(axes: "Axes", analysis: Analysis) -> None:
    """Loss against N, a mark and a line for each budget; the minima of approach 2 where they were asked for."""
    table, fit = analysis.table, analysis.fit
    if not {"N", "C"} <= set(table.columns) or fit.law.target != "loss":
        axes.text(0.5, 0.5, "no isoFLOP curves without N and C", ha="center", transform=axes.transAxes)
        return
    groups = [rows for rows in budgets(table["C"]) if len(np.unique(table["N"][rows])) >= 3]
    picked = np.unique(np.linspace(0, len(groups) - 1, min(MOST_BUDGETS, len(groups))).round().astype(int))
    for number, index in enumerate(picked):
        rows = groups[index]
        compute = float(np.exp(np.log(table["C"][rows]).mean()))
        axes.plot(
            table["N"][rows], table["loss"][rows], MARKERS[number % len(MARKERS)], color="black", markersize=4,
            markerfacecolor="none", label=f"{compute:.2g}",
        )  # fmt: skip
        if set(fit.law.needs) == {"N", "D"}:
            n = np.geomspace(table["N"][rows].min(), table["N"][rows].max(), 60)
            ratio = float(np.exp(np.log(table["N"][rows] * table["D"][rows]).mean()))
            axes.plot(n, fit.predict({"N": n, "D": ratio / n}), "-", color="0.4", linewidth=0.8)
    for one in analysis.allocations:
        if one.optima:
            axes.plot([best.N for best in one.optima], [best.loss for best in one.optima], "k--", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("parameters N")
    axes.set_ylabel("loss")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7, title="FLOPs", title_fontsize=7)
    else:
        axes.text(0.5, 0.5, "no budget has three sizes", transform=axes.transAxes, ha="center", fontsize=8)


def _residuals(axes: "Axes", analysis: Analysis) -> None:
    """What the law leaves over, by scale: a pattern here is a law of the wrong form."""
    scale = scale_of(analysis.fitted)
    axes.plot(analysis.fitted[scale], 100 * analysis.fit.residuals, "o", color="black", markersize=3)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale("log" if scale in ("C", "D", "N") else "linear")
    axes.set_xlabel(UNITS.get(scale, scale))
    unit = "%, log outcome − log law" if analysis.fit.objective.log else "hundredths, outcome − law"
    axes.set_ylabel(f"residual, {unit}")
