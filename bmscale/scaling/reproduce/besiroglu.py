"""Besiroglu et al. 2024 (Epoch AI): approach 3 of Hoffmann et al. 2022, fitted again to the points of their figure.

245 points read from the figure; D = C/(6N); the five of highest loss are left out. Two estimators, which the paper does
not tell apart: Huber's function (delta 1e-3) of log losses, whose optimum their grid of 4,500 starts finds; and the
headline constants, from a Huber density with a free scale, which falls to e^-12.27: least absolute deviation.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from bmscale.errors import BadInput
from bmscale.scaling.approaches import from_law
from bmscale.scaling.fit import Fit, Objective, fit
from bmscale.scaling.law import Array
from bmscale.scaling.laws import CHINCHILLA
from bmscale.scaling.reproduce.check import Check, Reproduction, at_most, relative
from bmscale.scaling.reproduce.source import Part, Source, read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger("bmscale")

CITATION = "Besiroglu et al. 2024, arXiv 2404.10102, data_analysis.ipynb of their repository"
# The same bytes as data/svg_extracted_data.csv of epoch-research/analyzing-chinchilla, which states no licence.
SOURCE = Source(
    "Besiroglu et al. 2024",
    "mcleish7/gemstone-scaling-laws",
    "5f420478f6057b0cbb4d13405fb10ca64675bccb",
    "MIT",
    (
        Part(
            "data/epoch_chinchilla_svg_extracted_data.csv",
            "193478df4e90f040016431996c45682659306840ecdadf83cfb9cd5ca0aa1b30",
        ),
    ),
    "chinchilla/points.csv",
)
DROPPED = 5
HUBER = 1e-3
NAMES = ("A", "B", "E", "alpha", "beta")
DIGITS = {"A": 3, "B": 2, "E": 5, "alpha": 5, "beta": 5}

PUBLISHED_OBJECTIVE = 0.0010182740346
OBJECTIVE = 0.00101827405
FITTED = {"A": 477.84, "B": 2143.86, "E": 1.81724, "alpha": 0.347313, "beta": 0.367183}
FITTED_TOLERANCE = 1e-3
HEADLINE = {"A": 482.01, "B": 2085.43, "E": 1.8169, "alpha": 0.34781, "beta": 0.36585}
HEADLINE_TOLERANCE = 5e-4

# Standard error, ends of the 95 % interval.
BOOTSTRAP = {
    "A": (124.52232, 285.214, 743.626),
    "B": (1293.28410, 1042.357, 5810.344),
    "E": (0.02566, 1.769, 1.871),
    "alpha": (0.01540, 0.317, 0.373),
    "beta": (0.02060, 0.331, 0.415),
}
BOOTSTRAP_TOLERANCE = 1e-2
DRAWS = 4000
SEED = 42
# Hoffmann et al. 2022 unrounded: log A, log B, log E, alpha, beta; each draw's search begins there.
HOFFMANN = np.array([6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083])


def reproduce(folder: Path, bootstrap: bool = False) -> Reproduction:
    """Objective and parameters of both estimators, with `bootstrap` the standard errors and intervals as well.

    Raises BadInput for data that is missing or broken.
    """
    every, kept = points(folder)
    columns = {name: values[kept] for name, values in every.items()}
    huber = fit(CHINCHILLA, columns, Objective(delta=HUBER))
    headline = fit(CHINCHILLA, columns, Objective("lad"))
    checks = [at_most("objective, Huber", f"{PUBLISHED_OBJECTIVE:.13f}", huber.value, OBJECTIVE, 13)]
    for kind, published, found, share in (
        ("Huber", FITTED, huber, FITTED_TOLERANCE),
        ("headline", HEADLINE, headline, HEADLINE_TOLERANCE),
    ):
        for name in NAMES:
            checks.append(relative(f"{name}, {kind}", published[name], found.parameters[name], share, DIGITS[name]))
    if bootstrap:
        log.info("besiroglu: %d fits of the bootstrap, half a minute", DRAWS)
        checks += _bootstrap_checks(draws(every, kept, DRAWS))
    return Reproduction("besiroglu", CITATION, tuple(checks), lambda figure: _draw(figure, every, headline))


def points(folder: Path) -> tuple[dict[str, Array], NDArray[np.int64]]:
    """(N, D, loss) of all points, and the indices of those that are kept: all but the highest losses."""
    rows = read_rows(SOURCE, folder)
    if len(rows) < DROPPED + len(NAMES):
        raise BadInput(f"{folder / SOURCE.file}: must have the 245 points of the paper; got {len(rows)}")
    sizes, compute, losses = np.array(
        [(row.number("Model Size"), row.number("Training FLOP"), row.number("loss")) for row in rows]
    ).T
    kept = np.flatnonzero(losses < np.sort(losses)[-DROPPED])
    return {"N": sizes, "D": compute / (6 * sizes), "loss": losses}, kept


def draws(every: Mapping[str, Array], kept: NDArray[np.int64], count: int) -> Array:
    """(draws, 5): A, B, E, alpha, beta of the first `count` bootstrap samples, by the recipe of the paper.

    It is theirs to the letter, numpy's legacy generator and scipy's BFGS from Hoffmann's values: where a search of
    theirs stops early, so does ours, and the standard errors agree to every digit they print.
    """
    generator = np.random.RandomState(SEED)
    log_n, log_d, log_y = np.log(every["N"]), np.log(every["D"]), np.log(every["loss"])
    found = np.empty((count, len(NAMES)))
    for draw in range(count):
        chosen = generator.choice(kept, size=len(kept), replace=True)
        given = (log_n[chosen], log_d[chosen], log_y[chosen])
        found[draw] = minimize(_objective, HOFFMANN, args=given, jac=True, method="BFGS").x
    return np.concatenate([np.exp(found[:, :3]), found[:, 3:]], axis=1)


def _objective(parameters: Array, log_n: Array, log_d: Array, log_y: Array) -> tuple[float, Array]:
    """Σ Huber and its gradient by (log A, log B, log E, alpha, beta), in which their BFGS goes."""
    a, b, e, alpha, beta = parameters
    terms = np.stack([a - alpha * log_n, b - beta * log_d, np.full_like(log_n, e)])
    top = terms.max(axis=0)
    shares = np.exp(terms - top)
    total = shares.sum(axis=0)
    residual = top + np.log(total) - log_y
    size = np.abs(residual)
    value = np.where(size <= HUBER, residual**2 / 2, HUBER * (size - HUBER / 2)).sum()
    slopes = shares / total * np.clip(residual, -HUBER, HUBER)
    return float(value), np.array([*slopes.sum(axis=1), -(slopes[0] @ log_n), -(slopes[1] @ log_d)])


def _bootstrap_checks(found: Array) -> list[Check]:
    errors = found.std(axis=0, ddof=1)
    low, high = np.percentile(found, [2.5, 97.5], axis=0)
    checks = []
    for i, name in enumerate(NAMES):
        for quantity, published, ours in zip(
            ("standard error", "2.5 %", "97.5 %"), BOOTSTRAP[name], (errors[i], low[i], high[i]), strict=True
        ):
            text = f"{name}, {quantity}"
            checks.append(relative(text, published, float(ours), BOOTSTRAP_TOLERANCE, DIGITS[name]))
    return checks


def _draw(figure: "Figure", every: Mapping[str, Array], found: Fit) -> None:
    left, right = figure.subplots(1, 2)
    compute = 6 * every["N"] * every["D"]
    shown = left.scatter(compute, every["N"], c=np.log(every["loss"]), cmap="gray", s=14, edgecolors="black", lw=0.4)
    budgets = np.geomspace(compute.min(), 1e25, 100)
    hoffmann = dict(zip(NAMES, [*np.exp(HOFFMANN[:3]), *HOFFMANN[3:]], strict=True))
    lines = ((found.parameters, "-", "fitted here"), (hoffmann, "--", "Hoffmann et al., approach 3"))
    for parameters, style, label in lines:
        best = from_law(CHINCHILLA, parameters)
        sizes = best.scale_n * budgets**best.a
        inside = budgets <= 10 * compute.max()
        left.plot(budgets[inside], sizes[inside], style, color="black", lw=0.9, label=label)
        right.plot(budgets, budgets / (6 * sizes**2), style, color="black", lw=0.9, label=label)
    figure.colorbar(shown, ax=left, label="log loss")
    left.set(xscale="log", yscale="log", xlabel="training compute C (FLOP)", ylabel="parameters N")
    left.legend(frameon=False)
    _ratios(right)


def _ratios(axes: "Axes") -> None:
    axes.axhline(20, color="black", lw=0.6, linestyle=":")
    axes.plot(6 * 70e9 * 1.4e12, 20, "o", color="black", fillstyle="none", label="Chinchilla, 70e9 on 1.4e12 tokens")
    axes.set(xscale="log", yscale="log", xlabel="training compute C (FLOP)", ylabel="best tokens a parameter")
    axes.legend(frameon=False)
