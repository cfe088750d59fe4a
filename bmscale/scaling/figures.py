"""The pictures of a study's report, each an element of the page and a file of its own; readable without colours.

Data are ink, laws and frontiers the page's first colour, which is a dark grey in print; sizes and budgets are told
apart by their marks, what was held out by being filled.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from bmscale.evaluation.charts import GRID, INK, SERIES, for_the_page, settings, standing_alone, to_svg
from bmscale.scaling.analysis import Analysis
from bmscale.scaling.approaches import Minimum
from bmscale.scaling.backtest import scale_of
from bmscale.scaling.charts import MARKERS, MOST_BUDGETS, UNITS
from bmscale.scaling.intervals import predict
from bmscale.scaling.law import Array
from bmscale.scaling.power_sum import PowerSum
from bmscale.scaling.scoring import FORECAST, Scored
from bmscale.scaling.tables import Table
from bmscale.scaling.targets import columns_at, ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAPER = {"--ink": "#1d1f23", "--rule": "#b8bcc4", "--series-1": "#1f5fae", "--series-2": "#bb4d0f"}
"""Colours of the files."""
_SIZE = (5.4, 3.9)
_LAW, _BAND = SERIES[0], 0.18
_POINTS = 60


@dataclass(frozen=True)
class Figure:
    """One picture."""

    name: str
    """Of its file, without .svg."""
    title: str
    caption: str
    element: Markup
    """For the page."""
    file: str
    """SVG that stands alone."""


def figure(
    name: str, title: str, caption: str, draw: Callable[["Axes"], None], size: tuple[float, float] = _SIZE
) -> Figure:
    """Draw on axes of so many inches."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(settings(name)):
        canvas = Canvas(figsize=size, layout="constrained")
        axes = canvas.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=GRID, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", length=0)
        draw(axes)
        svg = to_svg(canvas)
    return Figure(name, title, caption, Markup(for_the_page(svg, title)), standing_alone(svg, PAPER))


def figures(found: Analysis, scored: Sequence[Scored]) -> list[Figure]:
    """Those that the table and the law allow."""
    table, law = found.table, found.fit.law
    scale = scale_of(table)
    held = [one for one in _last(scored) if one.outcome is not None]
    made = [
        figure(
            "loss",
            f"{law.target.capitalize()} against {UNITS.get(scale, scale)}",
            _loss_caption(found),
            lambda axes: _loss(axes, found, held),
        )
    ]
    if curves := _isoflops(found.minima):
        made.append(
            figure(
                "isoflop",
                "isoFLOP curves",
                "Each budget's rows, and the parabola in log N through the mean of each size; a large mark is its "
                "minimum, a cross one at the edge of the grid, which says only that sizes are missing there.",
                lambda axes: _parabolas(axes, table, curves),
            )
        )
    made.append(
        figure(
            "residuals",
            "Residuals",
            "Outcome over law: rows that it was fitted to, crosses for those that its window leaves out, filled for "
            "cells that were forecast. A pattern here is a law of the wrong form.",
            lambda axes: _residuals(axes, table, found, held),
        )
    )
    if scored:
        height = max(1.6, 0.9 + 0.42 * len(scored))
        title = "Forecast and outcome"
        made.insert(
            0, figure("forecast", title, FORECAST_CAPTION, lambda axes: _forecasts(axes, scored), (6.4, height))
        )
    if _split_shares(table) is not None:
        made.append(
            figure(
                "split",
                "Encoder and decoder",
                "Loss over that of the best share at its size and tokens, by the encoder's share of N_e + N_d.",
                lambda axes: _split(axes, found),
            )
        )
    return made


FORECAST_CAPTION = (
    "Outcome over forecast. Bars: the frozen 90 % interval, thin to 95 %. A filled mark is an outcome inside the 90 % "
    "interval, a cross one outside; a hollow one is no forecast: the cell was trained before, or the file was changed."
)


def _last(scored: Sequence[Scored]) -> list[Scored]:
    """One of each cell: the last that was frozen."""
    return list({one.cell: one for one in scored}.values())


def _splits(found: Analysis) -> bool:
    """Whether the law has a best N and D."""
    return any(one.approach == "approach 3" for one in found.allocations)


def _marked_sizes(table: Table) -> Array:
    """Those that have a mark and a line each; none where they are too many."""
    sizes = np.unique(table["N"]) if "N" in table.columns else np.array([])
    return sizes if 1 < len(sizes) <= len(MARKERS) else np.array([])


def _loss_caption(found: Analysis) -> str:
    lines = ", a thin line one size" if len(_marked_sizes(found.table)) else ""
    law = " Thick: the law at the best N and D, with its 90 % prediction interval." if _splits(found) else ""
    return f"A mark is a row: a run, or a point of its loss curve{lines}; filled: cells that were forecast.{law}"


def _loss(axes: "Axes", found: Analysis, held: Sequence[Scored]) -> None:
    table, target = found.table, found.fit.law.target
    scale = scale_of(table)
    sizes = _marked_sizes(table)
    if len(sizes):
        for mark, size in zip(MARKERS, sizes, strict=False):
            rows = np.flatnonzero(table["N"] == size)
            rows = rows[np.argsort(table[scale][rows], kind="stable")]
            axes.plot(
                table[scale][rows], table[target][rows], f"-{mark}", color=INK, linewidth=0.5, markersize=4,
                markerfacecolor="none", label=f"N {_short(size)}",
            )  # fmt: skip
    else:
        axes.plot(table[scale], table[target], "o", color=INK, markersize=3, markerfacecolor="none", label="rows")
    outside = [(one.columns[scale], one.outcome) for one in held if scale in one.columns]
    if outside:
        axes.plot(*zip(*outside, strict=True), "D", color=INK, markersize=6, label="forecast cells")
    x = np.geomspace(table[scale].min(), max([table[scale].max(), *(c for c, _ in outside)]), _POINTS)
    if scale == "C" and _splits(found):
        _frontier(axes, found, x)
    elif found.fit.law.needs == (scale,):
        axes.plot(x, found.fit.predict({scale: x}), color=_LAW, linewidth=1.8, label=found.fit.law.name)
    _log(axes, "x", _power if scale == "C" else _short)
    _log(axes, "y")
    axes.set_xlabel(UNITS.get(scale, scale))
    axes.set_ylabel(target)
    axes.legend(frameon=False, fontsize=7.5, ncols=2)


def _frontier(axes: "Axes", found: Analysis, x: Array) -> None:
    law, times = PowerSum.of(found.fit.law, found.fit.parameters), ratio(found.fitted, False)
    best = [law.at_budget(float(compute) / times) for compute in x]
    rows = [columns_at(law, times, one.N, one.D) for one in best]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    axes.plot(x, found.fit.predict(columns), color=_LAW, linewidth=1.8, label="law, best N and D")
    if found.bootstrap is not None:
        band = predict(found.bootstrap, columns, 0.9)
        axes.fill_between(x, band.low, band.high, color=_LAW, alpha=_BAND, linewidth=0)


def _isoflops(minima: Sequence[Minimum]) -> list[Minimum]:
    """Those with a curve, evenly chosen where there are many."""
    curves = [one for one in minima if one.curve is not None]
    picked = np.unique(np.linspace(0, len(curves) - 1, min(MOST_BUDGETS, len(curves))).round().astype(int))
    return [curves[index] for index in picked]


def _parabolas(axes: "Axes", table: Table, curves: Sequence[Minimum]) -> None:
    for mark, one in zip(MARKERS, curves, strict=False):
        assert one.curve is not None
        rows = np.isin(table.rows, one.rows)
        axes.plot(
            table["N"][rows], table["loss"][rows], mark, color=INK, markersize=4, markerfacecolor="none",
            label=f"{_power(one.C)} FLOPs",
        )  # fmt: skip
        n = np.geomspace(one.sizes[0], one.sizes[-1], _POINTS)
        axes.plot(n, np.polyval(one.curve, np.log(n)), color=_LAW, linewidth=1)
        if one.best is not None:
            axes.plot([one.best.N], [one.best.loss], mark, color=_LAW, markersize=9, markerfacecolor=_LAW)
        elif one.end is not None:
            least = np.polyval(one.curve, np.log(one.end))
            axes.plot([one.end], [least], "x", color=_LAW, markersize=7, markeredgewidth=1.5)
    _log(axes, "x")
    _log(axes, "y")
    axes.set_xlabel("parameters N")
    axes.set_ylabel("loss")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** (0.06 * math.ceil(len(curves) / 2)))  # room for the legend above
    axes.legend(frameon=False, fontsize=7.5, ncols=2, loc="upper right")


def _residuals(axes: "Axes", table: Table, found: Analysis, held: Sequence[Scored]) -> None:
    scale, target = scale_of(found.fitted), found.fit.law.target
    log = found.fit.objective.log
    other = ~np.isin(table.rows, found.fitted.rows)
    if other.any():
        rest = table.select(other)
        law = found.fit.predict(rest.columns)
        over = 100 * (rest[target] / law - 1 if log else rest[target] - law)
        axes.plot(rest[scale], over, "x", color=INK, markersize=4, markeredgewidth=0.6, label="not fitted")
    values = 100 * (np.expm1(found.fit.residuals) if log else found.fit.residuals)
    axes.plot(found.fitted[scale], values, "o", color=INK, markersize=4, markerfacecolor="none", label="fitted")
    errors = [(one.columns[scale], 100 * (one.error or 0.0)) for one in held if scale in one.columns]
    if errors and log:
        axes.plot(*zip(*errors, strict=True), "D", color=INK, markersize=6, label="forecast cells")
    if errors or other.any():
        axes.legend(frameon=False, fontsize=7.5)
    axes.axhline(0, color=_LAW, linewidth=1.2)
    _log(axes, "x", _power if scale == "C" else _short)
    axes.set_xlabel(UNITS.get(scale, scale))
    axes.set_ylabel("outcome over law, %" if log else "outcome less law, hundredths")


def _forecasts(axes: "Axes", scored: Sequence[Scored]) -> None:
    """One line a cell and forecast, the first on top."""
    for at, one in enumerate(reversed(scored)):
        for (low, high), width in ((one.interval_95, 1.2), (one.interval_90, 6.0)):
            ends = [100 * (end / one.predicted - 1) for end in (low, high)]
            axes.plot(ends, [at, at], color=_LAW, linewidth=width, solid_capstyle="butt", alpha=0.45)
        if one.error is not None:
            mark = ("o" if one.inside(90) else "X") if one.status == FORECAST else "o"
            fill = INK if one.status == FORECAST else "none"
            axes.plot([100 * one.error], [at], mark, color=INK, markersize=7, markerfacecolor=fill)
    axes.axvline(0, color=INK, linewidth=0.8)
    several = len({one.frozen for one in scored}) > 1
    names = [f"{one.cell}, {one.frozen[:16]}" if several else one.cell for one in reversed(scored)]
    axes.set_yticks(range(len(scored)), names)
    axes.set_ylim(-0.6, len(scored) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("outcome over forecast, %")


def _split_shares(table: Table) -> Array | None:
    """(rows,) encoder's share, where the table has several splits."""
    if not {"N_e", "N_d"} <= set(table.columns):
        return None
    share = table["N_e"] / (table["N_e"] + table["N_d"])
    return share if share.max() > 1.2 * share.min() else None


def _split(axes: "Axes", found: Analysis) -> None:
    table = found.table
    share = _split_shares(table)
    assert share is not None
    total = np.log(table["N_e"] + table["N_d"])
    keys = np.stack([np.round(total / np.log(1.3)), np.round(np.log(table["D"]) / np.log(1.3))], axis=1)
    groups = [np.flatnonzero((keys == key).all(axis=1)) for key in np.unique(keys, axis=0)]
    groups = [rows for rows in groups if len(np.unique(share[rows])) >= 3][:MOST_BUDGETS]
    for mark, rows in zip(MARKERS, groups, strict=False):
        rows = rows[np.argsort(share[rows], kind="stable")]
        label = f"{_short(float(np.exp(total[rows].mean())))}, {_short(float(table['D'][rows].mean()))} tokens"
        axes.plot(
            share[rows], table["loss"][rows] / table["loss"][rows].min(), f"-{mark}", color=INK, linewidth=0.6,
            markersize=4, markerfacecolor="none", label=label,
        )  # fmt: skip
    if not groups:
        axes.plot(share, table["loss"], "o", color=INK, markersize=4, markerfacecolor="none")
    else:
        axes.legend(frameon=False, fontsize=7.5, title="N_e + N_d", title_fontsize=7.5)
    axes.set_xlabel("encoder's share of N_e + N_d")
    axes.set_ylabel("loss over the least of its curve" if groups else "loss")


def _short(value: float) -> str:
    """12.3k, 4.1M, 3e18."""
    if value >= 9.995e11:
        return _power(value)
    for unit, factor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def _power(value: float) -> str:
    """3e18."""
    return f"{value:.1e}".replace("e+", "e").replace(".0e", "e")


def _log(axes: "Axes", which: str, say: Callable[[float], str] = _short) -> None:
    """A logarithmic axis, whose ticks are numbers of `say` where it spans less than three decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = getattr(axes, f"get_{which}lim")()
    if high / low < 4:
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: say(value)))
        axis.set_minor_locator(LogLocator(subs=(1.0,), numticks=2))
    elif high / low < 1000:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=10))
        axis.set_major_formatter(FuncFormatter(lambda value, _: say(value)))
    else:
        axis.set_major_locator(LogLocator(numticks=7))
    axis.set_minor_formatter(NullFormatter())
