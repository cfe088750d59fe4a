"""Is a table one that a law can be fitted to? What is wrong is refused, what is odd or thin becomes a warning."""

from dataclasses import replace

import numpy as np

from bmscale.errors import BadInput
from bmscale.scaling.law import Array, Law
from bmscale.scaling.tables import Table

COUNTED = ("N", "D", "C", "N_e", "N_d", "U")
MIXED = 1e3
"""A factor between neighbouring values that no ladder of sizes has: units are mixed."""
SAME_BUDGET = 1.25
"""FLOPs within this factor of the smallest of them are one budget."""
FEW = 5
"""Fewer different values than this of a column, and its exponent rests on little."""


def check(table: Table) -> Table:
    """The table with its warnings. Raises BadInput for values that no law can be fitted to.

    Refused: neither loss nor bleu, values that are not finite, counts of 0 or below, a loss that is the same in all
    rows, units that must be mixed within a column, C far from 6 N D in some rows and near in others. Warned of: rows
    that are there twice, units that look odd.
    """
    if "loss" not in table.columns and "bleu" not in table.columns:
        got = ", ".join(table.columns) or "none"
        raise BadInput(f"{table.name}: must have a column for the loss; recognised {got}; give --columns loss=NAME")
    for name, values in table.columns.items():
        counted = name in COUNTED or name.startswith("N_")
        _check_values(table, name, values, positive=counted or name in ("loss", "bleu"))
        if counted:
            _check_unit(table, name, values)
    _check_varies(table, "loss" if "loss" in table.columns else "bleu")
    warnings = [*_odd_units(table), *_odd_compute(table), *_twice(table)]
    return replace(table, warnings=(*table.warnings, *warnings))


def _check_values(table: Table, name: str, values: Array, *, positive: bool) -> None:
    bad = ~np.isfinite(values) | (positive & (values <= 0))
    if bad.any():
        first = int(np.argmax(bad))
        raise BadInput(
            f"{table.name}: row {table.rows[first]}, {name} must be finite{' and above 0' if positive else ''}; got "
            f"{values[first]:g} ({int(bad.sum())} such rows); a diverged run belongs out of the table: --drop rows=…"
        )


def _check_varies(table: Table, target: str) -> None:
    values = table[target]
    if len(values) > 1 and np.ptp(values) <= 1e-9 * values.max():
        raise BadInput(
            f"{table.name}: {target} must differ between rows; got {values[0]:g} in all {len(values)}; is it the right "
            f"column? --columns {target}=NAME"
        )


def _check_unit(table: Table, name: str, values: Array) -> None:
    """A gap of a thousand between neighbours, with several values on both sides, is N in millions in some rows."""
    order = np.unique(values)
    ratio = order[1:] / order[:-1]
    if len(ratio) and ratio.max() >= MIXED:
        low, high = order[ratio.argmax()], order[ratio.argmax() + 1]
        row = table.rows[int(np.argmax(values == low))]
        raise BadInput(
            f"{table.name}: {name} must have one unit in all rows; got nothing between {low:g} (row {row}) "
            f"and {high:g}; write all rows in one unit, given as --columns {name}=NAME*1e6, or --drop "
            f"'{name}<{high:g}'"
        )


def _odd_units(table: Table) -> list[str]:
    found = []
    for name, least in (("N", 1e3), ("D", 1e4)):
        if name in table.columns and table[name].max() < least:
            found.append(
                f"{name} is at most {table[name].max():g}: if it is in millions, give --columns {name}=NAME*1e6"
            )
    if "loss" in table.columns and table["loss"].max() > 30:
        found.append(
            f"the loss goes up to {table['loss'].max():g}: is it perplexity? Laws are of the loss in nats or bits"
        )
    return found


def _odd_compute(table: Table) -> list[str]:
    """C beside 6 N D. Other counts of N move it by a small factor, not by hundreds."""
    if not {"N", "D", "C"} <= set(table.columns):
        return []
    ratio = np.log(table["C"] / (6 * table["N"] * table["D"]))
    middle = float(np.median(ratio))
    far = np.abs(ratio - middle) > np.log(100)
    if far.any():
        row = int(np.argmax(far))
        raise BadInput(
            f"{table.name}: C must be about the same multiple of 6 N D in all rows, {np.exp(middle):.3g}; "
            f"got {np.exp(ratio[row]):.3g} in row {table.rows[row]}: are units mixed?"
        )
    if abs(middle) > np.log(5):
        return [
            f"C is {np.exp(middle):.3g} times 6 N D in the middle row: are N, D and C in parameters, tokens and FLOPs?"
        ]
    return []


def _twice(table: Table) -> list[str]:
    names = [name for name in table.columns if name != "C"]
    rows = np.stack([table.columns[name] for name in names], axis=1)
    again = len(rows) - len(np.unique(rows, axis=0))
    return [f"{again} rows are there twice, every column alike: they count double"] if again else []


def budgets(compute: Array, same: float = SAME_BUDGET) -> list[Array]:
    """The rows of each budget, smallest budget first: FLOPs within a factor `same` of the budget's smallest."""
    order = np.argsort(compute, kind="stable")
    found: list[list[int]] = []
    for row in order:
        if not found or compute[row] > same * compute[found[-1][0]]:
            found.append([])
        found[-1].append(int(row))
    return [np.array(rows) for rows in found]


def check_law(table: Table, law: Law) -> list[str]:
    """Warnings for this law on this table. Raises BadInput for a column that is not there or does not vary enough.

    A term c x^-e beside a constant needs three different x, without a constant two; a law of N and D needs more than
    one budget, within which N and D say the same.
    """
    _check_varies(table, law.target)
    constant = any(not term.exponents for term in law.terms)
    warnings = []
    for name in law.needs:
        values = table[name]
        different = len(np.unique(np.round(np.log(values), 3)))
        least = 3 if constant else 2
        if name != "U" and different < least:
            raise BadInput(
                f"{table.name}: law {law.name} needs at least {least} different values of {name}; got {different}; add "
                f"runs with other {name}, or fit a law without it"
            )
        if name not in ("U", "loss") and different < FEW:
            warnings.append(f"{name} has only {different} different values: its exponent rests on little")
    if {"N", "D"} <= set(law.needs):
        compute = table["N"] * table["D"]
        if compute.max() <= SAME_BUDGET * compute.min():
            raise BadInput(
                f"{table.name}: law {law.name} needs runs of more than one budget; all have about "
                f"{6 * compute.max():.2g} FLOPs, where N and D cannot be told apart; add a budget "
                "at least twice as large"
            )
    free = len(table) - len(law.parameters)
    if free < 0:
        raise BadInput(f"{table.name}: law {law.name} has {len(law.parameters)} parameters; got {len(table)} rows")
    if free < len(law.parameters):
        warnings.append(f"{len(table)} rows for {len(law.parameters)} parameters: intervals will be wide")
    return warnings
