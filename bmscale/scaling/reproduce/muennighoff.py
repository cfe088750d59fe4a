"""Muennighoff et al. 2023: what repeated data is worth. The formula is checked; nothing is fitted.

README of huggingface/datablations: 25e9 unique tokens and one budget, in the two allocations of their figure 1 (right).
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bmscale.scaling.law import Array
from bmscale.scaling.laws import DATA_CONSTRAINED
from bmscale.scaling.reproduce.check import Reproduction, absolute

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CITATION = "Muennighoff et al. 2023, arXiv 2305.16264, the formula with its constants"
EXPONENT = 0.3526596
PARAMETERS = {
    "E": float(np.exp(0.6254804)),
    "A": float(np.exp(6.255414)),
    "B": float(np.exp(7.3049974)),
    "alpha": EXPONENT,
    "beta": EXPONENT,
    "R_D*": 15.387756,
    "R_N*": 5.309743,
}
UNIQUE = 25e9
# Parameters, tokens, loss.
POINTS = ((6.34e9, 242e9, 2.2256440889984477), (8.67e9, 178e9, 2.2269634075087867))
TOLERANCE = 1e-9


def reproduce(folder: Path, bootstrap: bool = False) -> Reproduction:
    """The two losses; needs no data."""
    checks = []
    for n, d, loss in POINTS:
        quantity = f"L at N = {n / 1e9:.2f}e9, D = {d / 1e9:.0f}e9"
        checks.append(absolute(quantity, loss, float(_loss(n, np.array([d]))[0]), TOLERANCE, 10))
    return Reproduction("muennighoff", CITATION, tuple(checks), _draw)


def _loss(n: float, tokens: Array, unique: Array | float = UNIQUE) -> Array:
    columns = {"N": np.full_like(tokens, n), "D": tokens, "U": np.broadcast_to(unique, tokens.shape)}
    return DATA_CONSTRAINED.predict(PARAMETERS, columns)


def _draw(figure: "Figure") -> None:
    axes = figure.subplots()
    size, _, _ = POINTS[0]
    epochs = np.geomspace(1, 100, 100)
    tokens = UNIQUE * epochs
    axes.plot(epochs, _loss(size, tokens), color="black", label=f"{UNIQUE / 1e9:.0f}e9 unique tokens, repeated")
    axes.plot(epochs, _loss(size, tokens, tokens), "--", color="black", label="as many tokens, all new")
    axes.set(xscale="log", xlabel="epochs", ylabel=f"loss (nats) at N = {size / 1e9:.2f}e9")
    axes.legend(frameon=False)
