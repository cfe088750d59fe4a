"""Porian et al. 2024: why Kaplan's and Hoffmann's exponents differ; here a of N* ~ C^a, from the isoFLOP curves.

Of each budget the optimum N* is the lowest point of Akima's interpolation over log N (`interpolation` in analysis.py of
the source); an optimum at the edge is left out. Theirs is a regression on bootstrap medians, weighted by their spread;
ours takes the curves as they are and gives each the same weight.
"""

import io
import lzma
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bmscale.errors import BadInput
from bmscale.scaling.approaches import Allocation, isoflop
from bmscale.scaling.reproduce.check import Reproduction, absolute
from bmscale.scaling.reproduce.source import Part, Source, read_rows
from bmscale.scaling.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CITATION = "Porian et al. 2024, arXiv 2406.19146, table of exponents"
SETTING = ("dataset", "hparams", "warmup", "decay", "param_count", "val")
NUMBERS = ("flops", "n", "t", "loss")
COLUMNS = {"C": "flops", "N": "n", "D": "t", "loss": "loss"}
TOLERANCE = 0.008

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


def reproduce(folder: Path, bootstrap: bool = False) -> Reproduction:
    """The four exponents. Raises BadInput for data that is missing or broken."""
    rows = read_rows(SOURCE, folder)
    tables = {}
    for name, setting, _ in ROWS:
        chosen = [row for row in rows if tuple(map(row.text, SETTING)) == setting]
        if not chosen:
            raise BadInput(f"{folder / SOURCE.file}: must have rows of {', '.join(setting)}; got none")
        columns = {to: np.array([row.number(given) for row in chosen]) for to, given in COLUMNS.items()}
        tables[name] = Table(f"{folder / SOURCE.file}, {name}", columns)
    fits = {name: isoflop(table, curve="akima", leave_out_edges=True) for name, table in tables.items()}
    checks = tuple(absolute(name, published, fits[name].a, TOLERANCE) for name, _, published in ROWS)
    return Reproduction("porian", CITATION, checks, lambda figure: _draw(figure, tables, fits))


def _draw(figure: "Figure", tables: Mapping[str, Table], fits: Mapping[str, Allocation]) -> None:
    left, right = figure.subplots(1, 2)
    name = ROWS[0][0]
    _draw_curves(left, tables[name], fits[name])
    left.set_title(name.removeprefix("a, "))
    for (name, found), marker, style in zip(fits.items(), "os^D", ("-", "--", "-.", ":"), strict=True):
        budgets = np.array([optimum.C for optimum in found.optima])
        sizes = [optimum.N for optimum in found.optima]
        right.plot(budgets, sizes, marker, color="black", fillstyle="none", ms=4)
        label = f"{name.removeprefix('a, ')}: a = {found.a:.3f}"
        right.plot(budgets, found.scale_n * budgets**found.a, style, color="black", lw=0.8, label=label)
    right.set(xscale="log", yscale="log", xlabel="training compute C (FLOP)", ylabel="best number of parameters N*")
    right.legend(frameon=False)


def _draw_curves(axes: "Axes", table: Table, found: Allocation) -> None:
    budgets = np.unique(table["C"])
    for number, budget in enumerate(budgets):
        shade = str(0.7 * (1 - number / max(1, len(budgets) - 1)))
        here = table.select(table["C"] == budget)
        order = np.argsort(here["N"])
        sizes, losses = here["N"][order], here["loss"][order]
        axes.plot(sizes, losses, ".-", color=shade, ms=4, lw=0.8)
        axes.annotate(f"{budget:.1e}", (sizes[-1], losses[-1]), fontsize=6)
    for optimum in found.optima:
        axes.plot(optimum.N, optimum.loss, "*", color="black", ms=7)
    axes.set(xscale="log", yscale="log", xlabel="parameters N", ylabel="validation loss (nats)")
