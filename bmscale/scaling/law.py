"""Scaling laws as one family: a sum of powers, with a power around it where the paper has one.

Every law here is y = (Σ_j c_j Π_q x_q^{-e_jq(θ)})^p with coefficients c_j ≥ 0, columns x_q of a table (N, D, C, …) and
exponents e_jq that are sums of shape parameters θ > 0 and constants. Given θ the coefficients are a non-negative linear
least squares problem (variable projection), and log y has an exact gradient in (log c, log θ): `fit` needs no more.
`named` and `given` go between these and the names and signs of the paper.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bmscale.errors import BadInput

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Columns = Mapping[str, Array]


@dataclass(frozen=True)
class Shape:
    """A parameter that y is not linear in: positive, and looked for on a grid between `low` and `high`."""

    name: str
    low: float
    high: float
    steps: int = 20

    @property
    def grid(self) -> Array:
        """Values to begin at, evenly in the logarithm."""
        return np.geomspace(self.low, self.high, self.steps)


@dataclass(frozen=True)
class Term:
    """One summand: its coefficient's name, and the exponent of each column (a shape's name or a number)."""

    coefficient: str
    exponents: Mapping[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Law:
    """A law, its parameters by the names of its paper, and how to fit it."""

    name: str
    equation: str
    source: str
    terms: tuple[Term, ...]
    shapes: tuple[Shape, ...]
    power: str | None = None
    """The shape that is the power around the sum; None for none."""
    target: str = "loss"
    names: tuple[str, ...] = ()
    """Names of the parameters in the paper; those of terms and shapes where empty."""
    to_paper: Callable[[Mapping[str, float]], dict[str, float]] | None = None
    from_paper: Callable[[Mapping[str, float]], dict[str, float]] | None = None

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns of a table that the powers are of."""
        return tuple(dict.fromkeys(column for term in self.terms for column in term.exponents))

    def origin(self, log_x: Array) -> Array:
        """(columns,): where to centre logarithms, so that coefficients and exponents hardly depend on each other."""
        return log_x.mean(axis=0)

    def effective(self, log_c: Array | None, shape: Array, log_x: Array) -> Array:
        """The columns that the powers are taken of: `log_x` itself, unless a law says otherwise.

        `log_c` (…, terms), None where not known yet; `shape` (…, shapes); `log_x` (rows, columns). Returns
        (rows, columns) or (…, rows, columns).
        """
        return log_x

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that a table must have to predict with this law."""
        return tuple("loss" if column == "exp_loss" else column for column in self.columns)

    @cached_property
    def coefficients(self) -> tuple[str, ...]:
        return tuple(term.coefficient for term in self.terms)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters, as `named` gives them."""
        return self.names or (*self.coefficients, *(shape.name for shape in self.shapes))

    @cached_property
    def fixed(self) -> Array:
        """(terms, columns): the constant part of the exponents."""
        return np.array([[self._constant(term.exponents.get(c, 0.0)) for c in self.columns] for term in self.terms])

    @cached_property
    def varying(self) -> Array:
        """(terms, columns, shapes): how often a shape counts in an exponent."""
        return np.array(
            [
                [[float(term.exponents.get(c) == shape.name) for shape in self.shapes] for c in self.columns]
                for term in self.terms
            ]
        )

    @cached_property
    def _uses(self) -> list[tuple[int, int, int]]:
        """(term, column, shape) where that shape is the exponent of that column in that term."""
        return [(int(term), int(column), int(shape)) for term, column, shape in np.argwhere(self.varying)]

    @cached_property
    def power_index(self) -> int | None:
        names = [shape.name for shape in self.shapes]
        return None if self.power is None else names.index(self.power)

    @staticmethod
    def _constant(exponent: str | float) -> float:
        return 0.0 if isinstance(exponent, str) else exponent

    def exponents(self, shape: Array) -> Array:
        """(…, terms, columns) for shape parameters (…, shapes)."""
        if shape.ndim == 1:
            return self.fixed + self.varying @ shape
        return self.fixed + np.einsum("kqm,...m->...kq", self.varying, shape)

    def log_columns(self, columns: Columns) -> Array:
        """(rows, columns): logarithms of what the powers are of. Raises BadInput for a column that is not there."""
        missing = [name for name in self.needs if name not in columns]
        if missing:
            got = ", ".join(sorted(columns))
            raise BadInput(f"law {self.name}: needs the columns {', '.join(self.needs)}; got {got}")
        rows = [np.asarray(columns["loss"]) if c == "exp_loss" else np.log(columns[c]) for c in self.columns]
        return np.stack(np.broadcast_arrays(*rows), axis=-1).astype(np.float64)

    def log_predict(self, inner: Array, log_x: Array) -> tuple[Array, Array]:
        """log y (rows,) and its derivative (rows, parameters) by (log c, log θ), at columns `log_x` (rows, columns)."""
        k = len(self.terms)
        shape = np.exp(inner[k:])
        terms = inner[:k] - log_x @ self.exponents(shape).T
        top = terms.max(axis=1, keepdims=True)
        weights = np.exp(terms - top)
        total = weights.sum(axis=1, keepdims=True)
        weights /= total
        log_sum = (top + np.log(total))[:, 0]
        slopes = np.zeros((len(log_x), len(inner)))
        slopes[:, :k] = weights
        for term, column, index in self._uses:
            slopes[:, k + index] -= shape[index] * weights[:, term] * log_x[:, column]
        if self.power_index is None:
            return log_sum, slopes
        power = shape[self.power_index]
        slopes *= power
        slopes[:, k + self.power_index] += power * log_sum
        return power * log_sum, slopes

    def shift(self, inner: Array, origin: Array) -> Array:
        """`inner` for columns divided by exp(origin), turned into that for the columns themselves."""
        k = len(self.terms)
        moved = inner.copy()
        moved[:k] += self.exponents(np.exp(inner[k:])) @ origin
        return moved

    def named(self, inner: Array) -> dict[str, float]:
        """The parameters by the paper's names and signs; infinite where a float does not hold them."""
        names = (*self.coefficients, *(shape.name for shape in self.shapes))
        # A law of the wrong form may end at a coefficient beyond the range of a float: it is infinite then.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            plain = dict(zip(names, np.exp(inner), strict=True))
            found = plain if self.to_paper is None else self.to_paper(plain)
        return {name: float(value) for name, value in found.items()}

    def given(self, parameters: Mapping[str, float]) -> Array:
        """(log c, log θ) of parameters by the paper's names; 0 is allowed for a coefficient.

        Raises BadInput for a name that is missing or unknown, and for a value that must be positive and is not.
        """
        if set(parameters) != set(self.parameters):
            raise BadInput(f"law {self.name}: has the parameters {', '.join(self.parameters)}; got {list(parameters)}")
        plain = dict(parameters) if self.from_paper is None else self.from_paper(parameters)
        values = np.array([plain[name] for name in (*self.coefficients, *(shape.name for shape in self.shapes))])
        if not (np.all(values >= 0) and np.all(values[len(self.terms) :] > 0)):
            raise BadInput(f"law {self.name}: coefficients must be at least 0 and exponents above; got {plain}")
        with np.errstate(divide="ignore"):
            return np.log(values)

    def predict(self, parameters: Mapping[str, float], columns: Columns) -> Array:
        """y (rows,) at parameters by the paper's names. Raises BadInput as `given` and `log_columns` do."""
        inner = self.given(parameters)
        return np.exp(self.log_predict(inner, self.log_columns(columns))[0])
