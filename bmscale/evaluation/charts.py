"""Line charts over the training steps, as SVG that stands inside a page and takes the page's colours and letters."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Matplotlib writes every colour as #rrggbb in a style attribute. These stand for the page's own, which change with
# its light or dark scheme; no chart uses them for anything else.
INK, GRID, SERIES = "#010203", "#040506", ("#070809", "#0a0b0c")
_OF_THE_PAGE = {INK: "--ink", GRID: "--rule", SERIES[0]: "--series-1", SERIES[1]: "--series-2"}

# Inches. At this size letters of 9 points are those of the page where two charts stand side by side.
_SIZE = (5.4, 3.3)
_FEW_POINTS = 40
"""Up to so many, each value is marked, so that a single one can be seen at all."""
MOST_POINTS = 300
"""A longer series is shown in so many stretches, each by its median and, as a band, its range: spikes stay seen."""
_WIDE_RANGE = 20.0
"""Largest over smallest value from which scale "log" takes effect."""


@dataclass(frozen=True)
class Line:
    """One series; a value that is not finite was not measured and is not drawn."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    plus_minus: Sequence[float] = field(default=())
    """Half the width of the interval at each value; drawn as a band."""

    @property
    def is_empty(self) -> bool:
        """Nothing to draw."""
        return not np.isfinite(self.values).any()


def line_chart(
    title: str,
    y_label: str,
    lines: Sequence[Line],
    tokens: Sequence[tuple[float, float]],
    *,
    scale: Literal["free", "zero", "log"] = "zero",
    counted: str = "target tokens",
) -> str:
    """An `<svg>` element without scripts, links or names that another chart on the page may have.

    `title` is for screen readers. `tokens` holds (step, how many `counted` were seen) in the order of the steps, for
    the upper axis. `scale` is that of the values: `zero` shows 0, `log` does not where they are positive and range far
    enough.
    """
    # Here and not above: training must end well where Matplotlib is broken, and it takes a while to load.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(settings(title)):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        drawn = [line for line in lines if not line.is_empty]
        for line, colour in zip(lines, SERIES, strict=False):  # a series has its colour though another is absent
            if not line.is_empty:
                _draw(axes, line, colour)
        _scale(axes, drawn, scale)
        axes.set_xlabel("step")
        axes.set_ylabel(y_label)
        axes.grid(color=GRID, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(which="both", length=0)
        if drawn and len(lines) > 1:
            axes.legend(frameon=False, labelcolor=INK)
        _add_token_axis(axes, tokens, counted)
        return for_the_page(to_svg(figure), title)


def settings(title: str) -> dict[Any, Any]:
    """Matplotlib's, for a figure whose colours are to become the page's."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.size": 9,
        "axes.edgecolor": GRID,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }


def to_svg(figure: "Figure") -> str:
    """Matplotlib's SVG file, without a date, in the colours above."""
    file = StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return file.getvalue()


def _draw(axes: "Axes", line: Line, colour: str) -> None:
    steps, values = np.asarray(line.steps, float), np.asarray(line.values, float)
    half = np.asarray(line.plus_minus, float) if len(line.plus_minus) else np.zeros(len(values))
    low, high = values - half, values + half
    if len(values) > MOST_POINTS:
        stretches = [part[np.isfinite(values[part])] for part in np.array_split(np.arange(len(values)), MOST_POINTS)]
        stretches = [part for part in stretches if len(part)]
        low, high = (np.array([reach(side[part]) for part in stretches]) for reach, side in ((min, low), (max, high)))
        steps, values = (np.array([np.median(side[part]) for part in stretches]) for side in (steps, values))
    marker = "o" if np.isfinite(values).sum() <= _FEW_POINTS else None
    axes.plot(steps, values, label=line.label, color=colour, linewidth=1.5, marker=marker, markersize=2.5)
    if np.any(high > low):
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)


def _scale(axes: "Axes", lines: Sequence[Line], scale: str) -> None:
    """Ticks that a person reads: 2k and 1.5M for steps, plain numbers for values."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    values = np.concatenate([np.asarray(line.values, float) for line in lines] or [np.array([])])
    values = values[np.isfinite(values)]
    if scale == "log" and len(values) and values.min() > 0 and values.max() / values.min() > _WIDE_RANGE:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif scale != "free":
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]) if len(values) and values.min() < 0 else 0.0)
    large = len(values) and values.max() >= 10_000
    axes.yaxis.set_major_formatter(EngFormatter(sep="") if large else FuncFormatter(lambda value, _: f"{value:g}"))
    last = max((step for line in lines for step in line.steps), default=1.0)
    axes.set_xlim(0, max(1.0, last) * 1.02)  # the same in every chart, for comparing them
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _add_token_axis(axes: "Axes", tokens: Sequence[tuple[float, float]], counted: str) -> None:
    """What was seen at the steps of the lower axis; none beyond what was trained."""
    from matplotlib.ticker import EngFormatter, NullLocator

    if not tokens:
        return
    steps, seen = zip((0.0, 0.0), *tokens, strict=True)
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if max(low, 0) <= tick <= min(high, steps[-1])]
    above = axes.secondary_xaxis("top")
    short = EngFormatter(sep="")
    seen_at = [float(f"{np.interp(tick, steps, seen):.3g}") for tick in ticks]
    labels = [short(count).replace("G", "B") for count in seen_at]
    above.set_xticks(ticks, labels)
    above.xaxis.set_minor_locator(NullLocator())
    above.set_xlabel(counted)
    above.tick_params(length=0)
    above.spines["top"].set_visible(False)


def for_the_page(svg: str, title: str) -> str:
    """The file as an element of a page, in the page's colours and letters."""
    view = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index(">", svg.index("<svg ")) + 1 :]
    for pattern, replacement in (
        (r"<metadata>.*?</metadata>|<style.*?</style>", ""),  # the style would hold for the whole page
        (r' id="(?![mpC]\w*[0-9a-f]{10}")[^"]*"', ""),  # figure_1, …: every chart has them; what is used has a hash
        (r"font-family:[^;]*; ", ""),
        (r'(\d\.\d\d)\d+(?=[\s")])', r"\1"),  # coordinates, not the labels
        (r"\s*\n\s*", "\n"),
        ("xlink:href", "href"),
    ):
        body = re.sub(pattern, replacement, body, flags=re.DOTALL)
    for colour, name in _OF_THE_PAGE.items():
        body = body.replace(colour, f"var({name})")
    return f'<svg role="img" {view[0] if view else ""}><title>{title}</title>{body}'


def standing_alone(svg: str, colours: Mapping[str, str]) -> str:
    """The file as it is for a paper: `colours` stand for those above, by the page's names (`--ink` and the rest)."""
    for colour, name in _OF_THE_PAGE.items():
        svg = svg.replace(colour, colours[name])
    return svg
