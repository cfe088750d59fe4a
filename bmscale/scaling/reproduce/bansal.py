"""Bansal et al. 2022: how the loss of translation falls with the number of sentence pairs, L = α (1/D + C)^p.

The paper's finding is that the exponent does not depend on how the layers are split between encoder and decoder, only
α and C do. So the three encoder-decoder curves (En-De, 0.5M to 512M pairs) are fitted together with one p, on all data
sizes but the largest, which is then predicted. The curves of other architectures are fitted alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bmscale.errors import BadInput
from bmscale.scaling.fit import Fit, fit
from bmscale.scaling.law import Array, Law, Term
from bmscale.scaling.laws import SATURATING
from bmscale.scaling.reproduce.check import Check, Reproduction, between
from bmscale.scaling.reproduce.source import Part, Source, read_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CITATION = "Bansal et al. 2022, arXiv 2202.01994, English-German"
SOURCE = Source(
    "Bansal et al. 2022",
    "IBM/ColPret",
    "16f23bbe054277ddc4afd07a972dd7cfbe3f48c3",
    "MIT",
    (Part("aggregated_eval/revisiting_lang.csv", "63c346db00a66b692e1ea9a0f71a2f2b267e55f74be5b863a92e199dffbf0983"),),
    "colpret-nmt/revisiting_lang.csv",
)
ENCODER_DECODERS = ("6 Enc, 6 Dec", "28 Enc, 6 Dec", "6 Enc, 28 Dec")
P_RANGE = (0.22, 0.29)
P_PUBLISHED = "0.25 to 0.28"
MOST_ERROR = 2.0  # percent
ELSEWHERE = 1e12  # far above 1: makes a curve's terms vanish in the rows of the others


def shared_exponent(curves: int) -> Law:
    """The saturating law of so many curves with one p: column `not_i` is 1 in the rows of curve i, ELSEWHERE if not."""
    terms: list[Term] = []
    for i in range(curves):
        terms += [Term(f"slope_{i}", {"D": 1.0, f"not_{i}": 1.0}), Term(f"level_{i}", {f"not_{i}": 1.0})]
    return replace(SATURATING, name="saturating-shared", terms=tuple(terms), names=(), to_paper=None, from_paper=None)


def reproduce(folder: Path, bootstrap: bool = False) -> Reproduction:
    """The common exponent and the errors at 512M pairs. Raises BadInput for data that is missing or broken."""
    curves = _curves(folder)
    missing = [name for name in ENCODER_DECODERS if name not in curves]
    if missing:
        raise BadInput(f"{folder / SOURCE.file}: must have the curves of the paper; lacks {', '.join(missing)}")
    together = [curves[name] for name in ENCODER_DECODERS]
    found = fit(shared_exponent(len(together)), columns([curve[:, :-1] for curve in together]))
    largest = columns([curve[:, -1:] for curve in together])
    errors = 100 * (found.predict(largest) / largest["loss"] - 1)
    checks: list[Check] = [between("p, the three curves together", P_PUBLISHED, found.parameters["p"], *P_RANGE)]
    for name, curve, error in zip(ENCODER_DECODERS, together, errors, strict=True):
        quantity = f"error % at {curve[0, -1] / 1e6:.0f}M pairs, {name}"
        checks.append(between(quantity, "", float(error), -MOST_ERROR, MOST_ERROR, 2))
    alone = {name: fit(SATURATING, {"D": c[0, :-1], "loss": c[1, :-1]}) for name, c in curves.items()}
    listed = "; ".join(f"{name} {one.parameters['p']:.3f}" for name, one in alone.items())
    notes = (f"p of each curve fitted alone, on ten points or fewer: {listed}.",)
    return Reproduction("bansal", CITATION, tuple(checks), lambda figure: _draw(figure, curves, found, alone), notes)


def _curves(folder: Path) -> dict[str, Array]:
    """(2, points) of each architecture: sentence pairs, ascending, and loss."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in read_rows(SOURCE, folder):
        if row.text("Domain") == "NMT":
            points.setdefault(row.text("Model"), []).append((row.number("Seen Examples"), row.number("Loss")))
    return {name: np.array(sorted(curve)).T for name, curve in points.items()}


def columns(curves: list[Array]) -> dict[str, Array]:
    """Several curves under each other, as `shared_exponent` reads them."""
    which = np.repeat(np.arange(len(curves)), [curve.shape[1] for curve in curves])
    pairs, losses = np.concatenate(curves, axis=1)
    others = {f"not_{i}": np.where(which == i, 1.0, ELSEWHERE) for i in range(len(curves))}
    return {"D": pairs, "loss": losses, **others}


def _draw(figure: "Figure", curves: Mapping[str, Array], found: Fit, alone: Mapping[str, Fit]) -> None:
    axes = figure.subplots()
    line = np.geomspace(5e5, 1e9, 100)
    for (name, curve), marker, style in zip(curves.items(), "osD^v", ("-", "--", "-.", ":", (0, (5, 1))), strict=False):
        if name in ENCODER_DECODERS:
            number = ENCODER_DECODERS.index(name)
            drawn = columns([np.stack([line, line]) if i == number else np.empty((2, 0)) for i in range(3)])
            fitted = found.predict(drawn)
        else:
            fitted = alone[name].predict({"D": line})
        axes.plot(line, fitted, linestyle=style, color="black", lw=0.8)
        axes.plot(curve[0, :-1], curve[1, :-1], marker, color="black", ms=5, label=name)
        axes.plot(curve[0, -1], curve[1, -1], marker, color="black", ms=7, fillstyle="none")
    axes.plot([], [], "o", color="black", ms=7, fillstyle="none", label="predicted, not fitted")
    axes.set(xscale="log", yscale="log", xlabel="sentence pairs D", ylabel="test loss (nats)")
    axes.legend(frameon=False)
