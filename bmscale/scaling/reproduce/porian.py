"""Porian et al. 2024: why Kaplan's and Hoffmann's exponents differ; here a of N* ~ C^a, from the isoFLOP curves.

Of each budget the optimum N* is the lowest point of Akima's interpolation of log loss over log N (analysis.py of the
source, `interpolation`, on its grid of 25 points an interval); an optimum at the edge is left out. Theirs is a
regression weighted by bootstrap noise, and on bootstrap medians; ours gives every curve the same weight.
"""

import io
import lzma
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from bmscale.errors import BadInput
from bmscale.scaling.law import Array
from bmscale.scaling.reproduce.check import Reproduction, absolute
from bmscale.scaling.reproduce.source import Part, Source, read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CITATION = "Porian et al. 2024, arXiv 2406.19146, table of exponents"
SETTING = ("dataset", "hparams", "warmup", "decay", "param_count", "val")
NUMBERS = ("flops", "n", "t", "loss")
TOLERANCE = 0.008
POINTS = 25  # of the grid, an interval between two sizes

# What is drawn and compared: name, setting, published a (`bmw_n_exponent`: bootstrap median, weighted).
ROWS = (
    ("a, RefinedWeb, tuned", ("rw", "tuned", "short", "const", "standard", "val"), 0.496895),
    ("a, RefinedWeb, cosine", ("rw", "base", "short", "chinchilla", "standard", "val"), 0.571495),
    ("a, OpenWebText2, tuned", ("owt2", "tuned", "short", "const", "standard", "val"), 0.518454),
    ("a, OpenWebText2, cosine", ("owt2", "base", "short", "chinchilla", "standard", "val"), 0.574295),
)

# The only classes and functions that the source's pickles need: data, nothing that runs.
PICKLED = {
    ("builtins", "slice"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("pandas._libs.internals", "_unpickle_block"),
    ("pandas.core.frame", "DataFrame"),
    ("pandas.core.indexes.base", "Index"),
    ("pandas.core.indexes.base", "_new_Index"),
    ("pandas.core.indexes.range", "RangeIndex"),
    ("pandas.core.internals.managers", "BlockManager"),
    ("pandas.core.internals.managers", "SingleBlockManager"),
    ("pandas.core.series", "Series"),
}


class _Unpickler(pickle.Unpickler):
    """Reads tables, and refuses whatever else a pickle may name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PICKLED:
            raise BadInput(f"pickle: must hold tables only; got {module}.{name}")
        return super().find_class(module, name)


def to_csv(contents: Mapping[str, bytes]) -> bytes:
    """The raw isoFLOP points, a line each, of the source's tables; their hashes were verified before."""
    lines = [",".join((*SETTING, *NUMBERS))]
    for packed in contents.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # names of old numpy
            table = _Unpickler(io.BytesIO(lzma.decompress(packed))).load()
        for study in table.to_dict("records"):
            setting = [str(study[name]) for name in SETTING]
            for curve in study["data"].to_dict("records"):
                if not hasattr(curve["orig_n"], "__len__"):  # a budget that no run reached
                    continue
                for point in zip(curve["orig_n"], curve["orig_t"], curve["orig_loss"], strict=True):
                    lines.append(",".join((*setting, *(repr(float(x)) for x in (curve["flops"], *point)))))
    return ("\n".join(lines) + "\n").encode()


SOURCE = Source(
    "Porian et al. 2024",
    "formll/resolving-scaling-law-discrepancies",
    "0dc60d91b8a525858a3067fc9e4a46ff5374cc6f",
    "MIT",
    (
        Part("data/summary_df.pickle.xz", "afbf07ec92d23182f56a44dd43599f2a7e9716fd70492fbc0a35f6093272b74f"),
        Part("data/summary_df_owt2.pickle.xz", "7aed67d1ad9bc1d7b0518e3814cee1129216b423b4538d4b724873dd670cff30"),
    ),
    "porian/isoflop_points.csv",
    to_csv,
)


@dataclass(frozen=True)
class IsoFlop:
    """The runs of one budget: FLOPs, sizes (sorted) and losses; and the interpolated optimum, None at an edge."""

    budget: float
    sizes: Array
    losses: Array
    best_size: float | None
    best_loss: float

    def interpolated(self, sizes: Array) -> Array:
        """The loss at other sizes."""
        akima = Akima1DInterpolator(np.log(self.sizes), np.log(self.losses))
        return np.asarray(np.exp(akima(np.log(sizes))))


def curve(budget: float, sizes: Array, losses: Array) -> IsoFlop:
    """Find the optimum of one budget."""
    order = np.argsort(sizes)
    found = IsoFlop(budget, sizes[order], losses[order], None, float("nan"))
    grid = np.geomspace(found.sizes[0], found.sizes[-1], POINTS * (len(sizes) - 1))
    values = found.interpolated(grid)
    lowest = int(values.argmin())
    inside = 0 < lowest < len(grid) - 1
    return IsoFlop(budget, found.sizes, found.losses, float(grid[lowest]) if inside else None, float(values[lowest]))


def exponent(curves: list[IsoFlop]) -> tuple[float, float]:
    """(a, log of the factor) of N* = factor · C^a, all optima with one weight; fewer than two raise BadInput."""
    inner = [(c.budget, c.best_size) for c in curves if c.best_size is not None]
    if len(inner) < 2:
        raise BadInput(f"{SOURCE.file}: must have at least 2 budgets with an inner optimum; got {len(inner)}")
    budgets, sizes = np.log(np.array(inner)).T
    a, factor = np.polyfit(budgets, sizes, 1)
    return float(a), float(factor)


def reproduce(folder: Path, bootstrap: bool = False) -> Reproduction:
    """The four exponents. Raises BadInput for data that is missing or broken."""
    rows = read_rows(SOURCE, folder)
    studies = {}
    for name, setting, _ in ROWS:
        chosen = [row for row in rows if tuple(map(row.text, SETTING)) == setting]
        points = sorted((row.number("flops"), row.number("n"), row.number("loss")) for row in chosen)
        curves = []
        for budget, group in groupby(points, key=lambda point: point[0]):
            _, sizes, losses = np.array(list(group)).T
            if len(np.unique(sizes)) >= 3 and len(np.unique(sizes)) == len(sizes):
                curves.append(curve(budget, sizes, losses))
        studies[name] = curves
    fits = {name: exponent(curves) for name, curves in studies.items()}
    checks = tuple(absolute(name, published, fits[name][0], TOLERANCE) for name, _, published in ROWS)
    return Reproduction("porian", CITATION, checks, lambda figure: _draw(figure, studies, fits))


def _draw(figure: "Figure", studies: Mapping[str, list[IsoFlop]], fits: Mapping[str, tuple[float, float]]) -> None:
    left, right = figure.subplots(1, 2)
    name = ROWS[0][0]
    _draw_curves(left, name.removeprefix("a, "), studies[name])
    for (name, curves), marker, style in zip(studies.items(), "os^D", ("-", "--", "-.", ":"), strict=True):
        inner = [c for c in curves if c.best_size is not None]
        budgets = np.array([c.budget for c in inner])
        a, factor = fits[name]
        right.plot(budgets, [float(c.best_size or 0) for c in inner], marker, color="black", fillstyle="none", ms=4)
        line = np.exp(factor) * budgets**a
        right.plot(budgets, line, style, color="black", lw=0.8, label=f"{name.removeprefix('a, ')}: a = {a:.3f}")
    right.set(xscale="log", yscale="log", xlabel="training compute C (FLOP)", ylabel="best number of parameters N*")
    right.legend(frameon=False)


def _draw_curves(axes: "Axes", title: str, curves: list[IsoFlop]) -> None:
    for number, found in enumerate(curves):
        shade = str(0.7 * (1 - number / max(1, len(curves) - 1)))
        grid = np.geomspace(found.sizes[0], found.sizes[-1], 200)
        axes.plot(grid, found.interpolated(grid), color=shade, lw=0.8)
        axes.plot(found.sizes, found.losses, ".", color=shade, ms=4)
        axes.annotate(f"{found.budget:.1e}", (found.sizes[-1], found.losses[-1]), fontsize=6)
        if found.best_size is not None:
            axes.plot(found.best_size, found.best_loss, "*", color="black", ms=7)
    axes.set(xscale="log", yscale="log", xlabel="parameters N", ylabel="validation loss (nats)", title=title)
