"""Compute-optimal allocation: N_opt ∝ C^a and D_opt ∝ C^b by the three approaches of Hoffmann et al. 2022.

1. the least loss over all training curves at each budget, 2. the minimum of each isoFLOP curve, by a parabola in log N
or, as Porian et al. 2024 (arXiv 2406.19146), by Akima's interpolation, 3. a law L(N, D) minimised at fixed C = 6 N D.
An optimum at the smallest or the largest size of a budget says only that the grid was too small: it is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from bmscale.errors import BadInput
from bmscale.scaling.checks import SAME_BUDGET, budgets
from bmscale.scaling.law import Array, Law
from bmscale.scaling.tables import Table

Curve = Literal["parabola", "akima"]
LEAST_OF_A_CURVE = 3
"""Sizes of a budget from which one can say on which side of them the minimum lies."""
LEAST_SIZES = {"parabola": 4, "akima": 5}
"""Sizes of a budget from which its minimum counts for an exponent."""
DENSE = 2001
"""Points at which an interpolated isoFLOP curve is looked at."""
CURVE_BUDGETS = 100
"""Budgets at which training curves are compared, evenly in log C."""


@dataclass(frozen=True)
class Optimum:
    """The best size for one budget."""

    C: float
    """FLOPs."""
    N: float
    """Parameters."""
    D: float
    """Tokens."""
    loss: float


@dataclass(frozen=True)
class Allocation:
    """N_opt = scale_n C^a and D_opt = scale_d C^b."""

    approach: str
    a: float
    b: float
    scale_n: float
    scale_d: float
    optima: tuple[Optimum, ...] = ()
    """What the line was fitted to; none for a law."""
    notes: tuple[str, ...] = ()
    a_interval: tuple[float, float] | None = None
    b_interval: tuple[float, float] | None = None
    """95 % intervals where they are known: Student's for the slope of isoFLOP minima, the bootstrap's for a law."""

    def at(self, C: float) -> tuple[float, float]:
        """(N, D) for a budget of so many FLOPs."""
        return self.scale_n * C**self.a, self.scale_d * C**self.b

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "optima": [vars(optimum) for optimum in self.optima], "notes": list(self.notes)}


@dataclass(frozen=True)
class Minimum:
    """Where the isoFLOP curve of one budget is lowest."""

    C: float
    """FLOPs."""
    sizes: tuple[float, ...]
    """Those trained, ascending."""
    losses: tuple[float, ...]
    """Of each size, the mean of its rows."""
    rows: tuple[int, ...]
    """As they are numbered in the file."""
    curve: tuple[float, float, float] | None
    """What the parabola through `losses` has of (ln N)², of ln N and besides; None of Akima's, and of fewer sizes than
    LEAST_OF_A_CURVE."""
    best: Optimum | None
    """None where it is not between two sizes, or there are fewer than LEAST_OF_A_CURVE."""
    end: float | None
    """The smallest or the largest size where it is there, or beyond."""

    @property
    def at_edge(self) -> str:
        """Which end it is at, and what to add; empty where it lies between two sizes."""
        if self.end is None:
            return ""
        which, where = ("smallest", "below") if self.end == self.sizes[0] else ("largest", "above")
        return f"at {self.C:.3g} FLOPs the {which}, {self.end:.3g} parameters: add sizes {where} it"

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "best": None if self.best is None else vars(self.best), "at_edge": self.at_edge}


def _through(approach: str, optima: list[Optimum], notes: tuple[str, ...] = ()) -> Allocation:
    """Straight lines through the optima in logarithms, by unweighted least squares."""
    if len(optima) < 2 or len({optimum.C for optimum in optima}) < 2:
        raise BadInput(
            f"{approach}: needs the optima of at least 2 budgets for an exponent; got {len(optima)}; add runs of "
            "another budget, at least twice as large or half as large"
        )
    log_c, log_n, log_d = (np.log([getattr(optimum, name) for optimum in optima]) for name in ("C", "N", "D"))
    a, at_n, a_interval = _line(log_c, log_n)
    b, at_d, b_interval = _line(log_c, log_d)
    return Allocation(
        approach, a, b, float(np.exp(at_n)), float(np.exp(at_d)), tuple(optima), notes, a_interval, b_interval
    )


def _line(x: Array, y: Array) -> tuple[float, float, tuple[float, float] | None]:
    """(slope, y at 0, 95 % interval of the slope by Student's t; None for two points)."""
    from scipy.special import stdtrit

    slope, level = (float(value) for value in np.polyfit(x, y, 1))
    free = len(x) - 2
    if free < 1:
        return slope, level, None
    left = y - slope * x - level
    half = float(stdtrit(free, 0.975) * np.sqrt(left @ left / free / ((x - x.mean()) ** 2).sum()))
    return slope, level, (slope - half, slope + half)


def training_curves(table: Table, *, count: int = CURVE_BUDGETS) -> Allocation:
    """Approach 1: at each budget the run with the least loss, from curves (several rows a group, N, D, C and loss).

    Loss is interpolated in log C along each curve. A budget counts where its best size is neither the smallest nor the
    largest of those whose curves reach it. Raises BadInput for a table without curves and where fewer than three sizes
    are ever the best inside the grid.
    """
    curves = _curves(table)
    grid = np.geomspace(table["C"].min(), table["C"].max(), count)
    losses = np.full((len(curves), count), np.inf)
    for row, (_, log_c, log_loss, _) in zip(losses, curves, strict=True):
        inside = (np.log(grid) >= log_c[0]) & (np.log(grid) <= log_c[-1])
        row[inside] = np.interp(np.log(grid[inside]), log_c, log_loss)
    sizes = np.array([size for size, _, _, _ in curves])
    optima, at_edge = [], 0
    for index, C in enumerate(grid):
        there = np.isfinite(losses[:, index])
        if not there.any():
            continue
        best = int(np.argmin(losses[:, index]))
        if sizes[best] in (sizes[there].min(), sizes[there].max()):
            at_edge += 1
            continue
        log_d = np.interp(np.log(C), curves[best][1], curves[best][3])
        optima.append(Optimum(float(C), float(sizes[best]), float(np.exp(log_d)), float(np.exp(losses[best, index]))))
    found = sorted({optimum.N for optimum in optima})
    listed = ", ".join(f"{size:.3g}" for size in found)
    if len(found) < 3:
        raise BadInput(
            f"{table.name}: approach 1 needs at least 3 sizes that are the best at some budget and neither the "
            f"smallest nor the largest there; got {len(found)} ({listed}) of {len(set(sizes))} sizes; "
            f"add sizes below {sizes.min():.3g} and above {sizes.max():.3g}, or train them longer"
        )
    notes = (f"{at_edge} of {count} budgets left out: the best size was the smallest or the largest there",)
    # Neighbouring budgets share their curves: the line's own interval would be far too narrow.
    return replace(_through("approach 1", optima, notes), a_interval=None, b_interval=None)


def _curves(table: Table) -> list[tuple[float, Array, Array, Array]]:
    """(N, log C ascending, log loss, log D) of each run with more than one row."""
    groups: dict[str, list[int]] = {}
    for row, group in enumerate(table.groups):
        groups.setdefault(group, []).append(row)
    found = []
    for group, rows in groups.items():
        if len(rows) < 2:
            continue
        sizes = table["N"][rows]
        if sizes.max() > sizes.min() * 1.0001:
            raise BadInput(f"{table.name}: run '{group}' must have one N; got {sizes.min():g} to {sizes.max():g}")
        order = np.array(rows)[np.argsort(table["C"][rows], kind="stable")]
        found.append(
            (float(sizes[0]), np.log(table["C"][order]), np.log(table["loss"][order]), np.log(table["D"][order]))
        )
    if not found:
        raise BadInput(
            f"{table.name}: approach 1 needs loss curves, several rows a run with a column run, name or group; every "
            "row is a run of its own here; use approach 2 or 3"
        )
    return found


def isoflop(
    table: Table, *, curve: Curve = "parabola", same: float = SAME_BUDGET, leave_out_edges: bool = False
) -> Allocation:
    """Approach 2: the minimum over N of each budget's loss, and lines through the minima.

    Budgets are those of column C (`budgets`); rows of one budget and size, seeds say, are averaged. `parabola` is a
    quadratic of the loss in log N (at least 4 sizes a budget), `akima` an interpolation of it (at least 5).

    Raises BadInput for a budget whose minimum lies at or beyond its smallest or largest size, naming it and where to
    add sizes (`leave_out_edges` leaves it out with a note), and where fewer than two budgets have enough sizes.
    """
    least = LEAST_SIZES[curve]
    optima, skipped, edges = [], [], []
    for one in minima(table, curve=curve, same=same):
        if len(one.sizes) < least:
            skipped.append(f"{one.C:.3g}")
        elif one.best is None:
            edges.append(f"{one.at_edge} (rows={','.join(map(str, one.rows))})")
        else:
            optima.append(one.best)
    if edges and not leave_out_edges:
        raise BadInput(
            f"{table.name}: the best size of a budget must lie between its smallest and largest; got "
            f"{'; '.join(edges)}; or leave the budget out: --drop and its rows"
        )
    notes = tuple(f"left out: {edge}" for edge in edges)
    if skipped:
        notes += (f"budgets with fewer than {least} sizes left out: {', '.join(skipped)} FLOPs",)
    if len(optima) < 2 and skipped:
        raise BadInput(
            f"{table.name}: approach 2 needs at least 2 budgets of at least {least} sizes; got {len(optima)}, and "
            f"fewer sizes at {', '.join(skipped)} FLOPs; budgets are rows whose C is within a factor {same:g}"
        )
    return _through(f"approach 2, {curve}", optima, notes)


def minima(table: Table, *, curve: Curve = "parabola", same: float = SAME_BUDGET) -> list[Minimum]:
    """Where each budget's loss over N is least, the smallest budget first; those of one or two sizes have no curve."""
    found = []
    for rows in budgets(table["C"], same):
        part = table.select(list(rows))
        C = float(np.exp(np.log(part["C"]).mean()))
        log_n, loss, log_d = _by_size(part)
        sizes, through, best, end = tuple(np.exp(log_n).tolist()), None, None, None
        if len(log_n) >= LEAST_OF_A_CURVE:
            if curve == "parabola":
                through, log_best, least = _parabola(log_n, loss)
            else:
                log_best, least = _akima(log_n, loss)
            if log_n[0] < log_best < log_n[-1]:
                log_tokens = np.interp(log_best, log_n, log_d)
                best = Optimum(C, float(np.exp(log_best)), float(np.exp(log_tokens)), least)
            else:
                end = sizes[0] if log_best <= log_n[0] else sizes[-1]
        found.append(Minimum(C, sizes, tuple(loss.tolist()), part.rows, through, best, end))
    return found


def describe(curves: Sequence[Minimum]) -> list[str]:
    """Lines for people: at which budgets the minimum lies between two sizes, and those where it does not."""
    inside = [f"{one.C:.3g}" for one in curves if one.best is not None]
    edges = [one.at_edge for one in curves if one.at_edge]
    if not inside and not edges:
        return []
    where = f": {', '.join(inside)} FLOPs" if inside else ""
    few = len(curves) - len(inside) - len(edges)
    return [
        f"isoFLOP curves of at least {LEAST_OF_A_CURVE} sizes, parabola: the minimum lies between the smallest and the "
        f"largest size at {len(inside)} of {len(inside) + len(edges)} budgets{where}"
        + (f" ({few} more have fewer sizes)" if few else ""),
        *(f"the minimum is at an end of the grid: {edge}" for edge in edges),
    ]


def _by_size(part: Table) -> tuple[Array, Array, Array]:
    """(sizes,) log N ascending, mean loss, mean log D."""
    log_n, index = np.unique(np.log(part["N"]), return_inverse=True)
    counts = np.bincount(index)
    return log_n, np.bincount(index, part["loss"]) / counts, np.bincount(index, np.log(part["D"])) / counts


def _parabola(log_n: Array, loss: Array) -> tuple[tuple[float, float, float], float, float]:
    """(`Minimum.curve`, log N and loss of the vertex); where the curve bends down, of the end with the least loss."""
    middle = float(log_n.mean())
    bend, slope, level = (float(value) for value in np.polyfit(log_n - middle, loss, 2))
    curve = (bend, slope - 2 * bend * middle, level - slope * middle + bend * middle**2)
    if bend <= 0:
        end = int(np.argmin(loss[[0, -1]])) * (len(log_n) - 1)
        return curve, float(log_n[end]), float(loss[end])
    vertex = -slope / (2 * bend)
    return curve, vertex + middle, level + slope * vertex / 2


def _akima(log_n: Array, loss: Array) -> tuple[float, float]:
    from scipy.interpolate import Akima1DInterpolator

    dense = np.linspace(log_n[0], log_n[-1], DENSE)
    values = Akima1DInterpolator(log_n, loss)(dense)
    best = int(np.argmin(values))
    return float(dense[best]), float(values[best])


def from_law(law: Law, parameters: Mapping[str, float]) -> Allocation:
    """Approach 3: where a law's terms in N and in D balance, with C = 6 N D.

    a = e_D/(e_N + e_D) and N_opt = G (C/6)^a, G = (e_N A/(e_D B))^(1/(e_N + e_D)) for terms A/N^e_N and B/D^e_D
    (Hoffmann et al. 2022, equation 4). Raises BadInput for a law that has no such terms, and where one of them is 0.
    """
    inner = law.given(parameters)
    k = len(law.terms)
    exponents = law.exponents(np.exp(inner[k:]))
    found = []
    for name in ("N", "D"):
        alone = [j for j, term in enumerate(law.terms) if tuple(term.exponents) == (name,)]
        if len(alone) != 1:
            raise BadInput(f"approach 3: needs a law with a term in N and one in D; {law.name} is {law.equation}")
        found.append((float(exponents[alone[0], law.columns.index(name)]), float(inner[alone[0]])))
    (e_n, log_a), (e_d, log_b) = found
    if not np.isfinite([log_a, log_b]).all():
        raise BadInput(f"approach 3: both terms must be above 0; got {dict(parameters)}: N or D does not matter here")
    a, b = e_d / (e_n + e_d), e_n / (e_n + e_d)
    log_g = (np.log(e_n) + log_a - np.log(e_d) - log_b) / (e_n + e_d)
    return Allocation("approach 3", a, b, float(np.exp(log_g - a * np.log(6))), float(np.exp(-log_g - b * np.log(6))))
