"""Tables of runs as columns: one row a run, or a point of its loss curve.

Columns by name: N parameters, D tokens (or examples) trained on, C training FLOPs, loss (nats or whatever the law is to
give), N_e and N_d parameters of encoder and decoder, U unique tokens, bleu, and any other convention of N as `N_…`.
`group` (or the seed's absence) says which rows belong to one run.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bmscale.errors import BadInput
from bmscale.scaling.law import Array, Mask


@dataclass(frozen=True)
class Table:
    """Runs as columns, checked: every value is finite, every count above 0."""

    name: str
    """Where it is from, for messages."""
    columns: Mapping[str, Array]
    """(rows,) each."""
    groups: tuple[str, ...] = ()
    """(rows,) what rows are not independent: those of one run, runs of one trunk; the bootstrap draws them together."""
    runs: tuple[str, ...] = ()
    """(rows,) which run a row belongs to, by default the group."""
    rows: tuple[int, ...] = ()
    """(rows,) the row's number in its file, from 1."""
    notes: tuple[str, ...] = ()
    """What was recognised and derived."""
    warnings: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    """Rows that were taken out, and by what rule."""

    def __post_init__(self) -> None:
        count = len(self)
        if not self.groups:
            object.__setattr__(self, "groups", tuple(str(number) for number in range(1, count + 1)))
        if not self.runs:
            object.__setattr__(self, "runs", self.groups)
        if not self.rows:
            object.__setattr__(self, "rows", tuple(range(1, count + 1)))

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> Array:
        if name not in self.columns:
            raise BadInput(f"{self.name}: must have the column {name}; got {', '.join(self.columns)}")
        return self.columns[name]

    def drawn_by(self, parameters: int) -> tuple[str, ...]:
        """(rows,) what the bootstrap of a law with so many parameters draws: groups, or where they are too few for it
        single runs, as if these were independent."""
        return self.groups if len(set(self.groups)) > parameters else self.runs

    def select(self, keep: Mask | Sequence[int]) -> "Table":
        """The rows of a mask or of indices."""
        kept = np.arange(len(self))[np.asarray(keep)]
        return replace(
            self,
            columns={name: values[kept] for name, values in self.columns.items()},
            groups=tuple(self.groups[i] for i in kept),
            runs=tuple(self.runs[i] for i in kept),
            rows=tuple(self.rows[i] for i in kept),
        )

    def with_columns(self, **columns: Array) -> "Table":
        """The same runs with more columns, or others: `with_columns(N=table["N_nonembedding"])`."""
        return replace(self, columns={**self.columns, **columns})

    def drop(self, rules: Sequence[str]) -> "Table":
        """Without the rows of each rule: `rows=1-5,9` as they are numbered in the file, `loss>5` or `N<1e6` for any
        column, `highest-loss=5`. Raises BadInput for a rule that cannot be read or that no row meets."""
        table = self
        for rule in rules:
            out = _matches(table, rule)
            if not out.any():
                raise BadInput(f"--drop: must match rows of {self.name}; got '{rule}', which matches none")
            numbers = ", ".join(str(number) for number, gone in zip(table.rows, out, strict=True) if gone)
            table = replace(table.select(~out), dropped=(*table.dropped, f"{rule}: {int(out.sum())} rows ({numbers})"))
        return table


def _matches(table: Table, rule: str) -> Mask:
    """(rows,) whether a row meets a rule of `drop`."""
    count = re.fullmatch(r"(highest|lowest)-(\w+)=(\d+)", rule)
    if count:
        order = np.argsort(table[count[2]], kind="stable")
        chosen = order[::-1][: int(count[3])] if count[1] == "highest" else order[: int(count[3])]
        return np.isin(np.arange(len(table)), chosen).astype(bool)
    rows = re.fullmatch(r"rows=(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)", rule)
    if rows:
        numbers, out = np.array(table.rows, dtype=np.float64), np.zeros(len(table), dtype=np.bool_)
        for part in rows[1].split(","):
            first, _, last = part.partition("-")
            out |= (numbers >= float(first)) & (numbers <= float(last or first))
        return out
    compared = re.fullmatch(r"(\w+)\s*([<>])\s*([\d.eE+-]+)", rule)
    if compared:
        values = table[compared[1]]
        try:
            limit = float(compared[3])
        except ValueError:
            raise BadInput(f"--drop: the value must be a number; got '{rule}'") from None
        return values > limit if compared[2] == ">" else values < limit
    raise BadInput(f"--drop: must be rows=1-5,9, COLUMN>VALUE, COLUMN<VALUE or highest-loss=5; got '{rule}'")
