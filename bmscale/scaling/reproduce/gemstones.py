"""Gemstones (McLeish et al. 2025): the Chinchilla law over 22 models of many widths and depths, after the cooldown.

Their 4,500 starts of L-BFGS-B minimise the sum of Huber's function (delta 1e-3) of log losses (`grid_search` in
depth_width.py of the source); published is parameters_delta-3/approach_3_parameters_grid_search_0_cool_end.json.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bmscale.scaling.fit import Fit, Objective, fit
from bmscale.scaling.law import Array
from bmscale.scaling.laws import CHINCHILLA
from bmscale.scaling.reproduce.check import Reproduction, absolute, at_most
from bmscale.scaling.reproduce.source import Part, Source, read_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CITATION = "Gemstones, McLeish et al. 2025, arXiv 2502.06857, runs with cooldown"
SOURCE = Source(
    "Gemstones (McLeish et al. 2025)",
    "mcleish7/gemstone-scaling-laws",
    "5f420478f6057b0cbb4d13405fb10ca64675bccb",
    "MIT",
    (
        Part(
            "wandb_dfs/wandb_df_for_fitting_cool_end.jsonl",
            "bdf01b6b21bafc414218124a6f9e195cee07f3d69ceacbfae2fcf069d34f4e61",
        ),
    ),
    "gemstones/wandb_df_for_fitting_cool_end.jsonl",
)
HUBER = 1e-3
OBJECTIVE = 0.0019640865
EXPONENTS = {"alpha": 0.3002728205, "beta": 0.580241077}
LOGARITHMS = {"A": 5.4197160371, "B": 12.5138998709, "E": 0.7297863295}
TOLERANCE = 0.002
LOGARITHM_TOLERANCE = 0.01
# Their search with delta 1e-4 did not reach the optimum (parameters_delta-4/…_cool_end.json): said in a note.
FINE_HUBER = 1e-4
FINE_OBJECTIVE = 0.0002059406
FINE_BETA = 0.6903991635


def reproduce(folder: Path, bootstrap: bool = False) -> Reproduction:
    """Exponents, coefficients and objective. Raises BadInput for data that is missing or broken."""
    rows = read_rows(SOURCE, folder)
    names = {"N": "params_active_precise", "D": "tokens", "loss": "final_loss"}
    columns = {name: np.array([row.number(given) for row in rows]) for name, given in names.items()}
    found = fit(CHINCHILLA, columns, Objective(delta=HUBER))
    fine = fit(CHINCHILLA, columns, Objective(delta=FINE_HUBER))
    checks = (
        *(absolute(name, value, found.parameters[name], TOLERANCE, 5) for name, value in EXPONENTS.items()),
        *(
            absolute(f"log {name}", value, math.log(found.parameters[name]), LOGARITHM_TOLERANCE, 5)
            for name, value in LOGARITHMS.items()
        ),
        at_most("objective", f"{OBJECTIVE:.10f}", found.value, OBJECTIVE, 10),
    )
    note = (
        f"With delta = {FINE_HUBER:g} they published beta {FINE_BETA:.4f} at objective {FINE_OBJECTIVE:.10f}; the "
        f"optimum found here is beta {fine.parameters['beta']:.4f} at {fine.value:.10f}."
    )
    return Reproduction("gemstones", CITATION, checks, lambda figure: _draw(figure, found, columns), (note,))


def _draw(figure: "Figure", found: Fit, columns: Mapping[str, Array]) -> None:
    left, right = figure.subplots(1, 2)
    sizes = np.unique(columns["N"])
    for number, size in enumerate(sizes):
        shade = str(0.75 * (1 - number / max(1, len(sizes) - 1)))
        here = columns["N"] == size
        tokens = columns["D"][here]
        line = np.geomspace(tokens.min(), tokens.max(), 50)
        left.plot(6 * size * tokens, columns["loss"][here], ".", color=shade, ms=3)
        left.plot(6 * size * line, found.predict({"N": np.full(50, size), "D": line}), color=shade, lw=0.6)
    left.set(xscale="log", yscale="log", xlabel="compute 6ND (FLOP)", ylabel="loss (nats); darker is larger N")
    right.axhline(0, color="black", lw=0.6)
    right.plot(columns["N"], 100 * found.residuals, "o", color="black", fillstyle="none", ms=3)
    right.set(xscale="log", xlabel="parameters N", ylabel="log loss, observed - fitted (%)")
