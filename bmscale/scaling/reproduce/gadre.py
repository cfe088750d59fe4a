"""Gadre et al. 2024: five small RedPajama runs predict the C4 loss of runs with up to 300 times their compute.

The law is L = E + A/N^η + B/D^η with D = M N, fitted to the losses by least squares (`fit_ds` in scaling/shared.py and
`powlaw_ours` in scaling/laws.py of the source, whose b is -η). The five: four sizes at M = 20 tokens a parameter, the
smallest also at M = 320.
"""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bmscale.errors import BadInput
from bmscale.scaling.fit import Fit, Objective, fit
from bmscale.scaling.law import Array
from bmscale.scaling.laws import TIED
from bmscale.scaling.reproduce.check import Reproduction, absolute
from bmscale.scaling.reproduce.source import Part, Source, read_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CITATION = "Gadre et al. 2024, arXiv 2403.08540, scaling_explorer.ipynb of the source (figure 1)"
TOKENS_PER_PARAMETER = 20  # of the multiplier 1
TOLERANCE = 0.05  # percentage points

FITTED = (
    "rpj-d=96_l=8_h=4-1.0",
    "rpj-d=512_l=8_h=4-1.0",
    "rpj-d=576_l=24_h=8-1.0",
    "rpj-d=1024_l=24_h=8-1.0",
    "rpj-d=96_l=8_h=4-16.0",
)
# What is predicted, its name here, and the published relative error in percent.
PREDICTED = (
    ("rpj-open_lm_1b-32.0", "error %, 1.4B, M = 640", 0.7103),
    ("rpj-open_lm_7b-1.0", "error %, 6.9B, M = 20", 0.7320),
)
COLUMNS = ("name", "N", "D", "mult", "loss_c4_val")


def to_csv(contents: Mapping[str, bytes]) -> bytes:
    """Name, size, tokens, multiplier and C4 loss of each run, of the source's JSON files."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for content in contents.values():
        run = json.loads(content)
        given = run["hyperparameters"]
        (loss,) = (result["loss"] for result in run["results"] if "/c4_val/" in result["val_data"][0])
        writer.writerow([run["name"], given["params"], given["tokens"], given["chinchilla_multiplier"], loss])
    return text.getvalue().encode()


SOURCE = Source(
    "Gadre et al. 2024",
    "mlfoundations/scaling",
    "a003c4913793ac2ae7ef87b28ecb562955d026d5",
    "MIT",
    tuple(
        Part(f"exp_data/models/{name}.json", sha256)
        for name, sha256 in zip(
            (*FITTED, *(name for name, _, _ in PREDICTED)),
            (
                "26a57687eeca30c6282a8b9e1d51b6e0e6558011c08a8b84e695aa33a74567ab",
                "ce2d8bb874a2bea92eb307fe360a6f3ccda6de51ef14659a0ea6346408579481",
                "ae44bcbd76ff41b9b25670577efd7f9548009bab45353f327d93e1b9ff6812b5",
                "36fd4755d70b7bc892dab97bbd90cd908b13aab15c1e1a78d8d6b07bb8f8e840",
                "8b10ab3caf7bafef95b972fd3551a26807ac9d7824ab73eb5dcb8fdc60030a2b",
                "fe055b9c29dd3ad5d491f05a594a846c8c4692e1eb82cec81aacb371701168b4",
                "62f938a0be52065726bcd6af80446626204a2f3d1101f3ccc12271a8ae1a8a7c",
            ),
            strict=True,
        )
    ),
    "over_training/models_flat.csv",
    to_csv,
)


def reproduce(folder: Path, bootstrap: bool = False) -> Reproduction:
    """The two errors. Raises BadInput for data that is missing or broken."""
    runs = {row.text("name"): row for row in read_rows(SOURCE, folder)}
    missing = [name for name in (*FITTED, *(name for name, _, _ in PREDICTED)) if name not in runs]
    if missing:
        raise BadInput(f"{folder / SOURCE.file}: must have the runs of the paper; lacks {', '.join(missing)}")

    def columns(names: tuple[str, ...]) -> dict[str, Array]:
        sizes = np.array([runs[name].number("N") for name in names])
        ratios = TOKENS_PER_PARAMETER * np.array([runs[name].number("mult") for name in names])
        losses = np.array([runs[name].number("loss_c4_val") for name in names])
        return {"N": sizes, "D": ratios * sizes, "loss": losses}

    fitted, held_out = columns(FITTED), columns(tuple(name for name, _, _ in PREDICTED))
    found = fit(TIED, fitted, Objective("ls", log=False))
    errors = 100 * np.abs(found.predict(held_out) / held_out["loss"] - 1)
    checks = tuple(
        absolute(name, published, float(error), TOLERANCE)
        for (_, name, published), error in zip(PREDICTED, errors, strict=True)
    )
    return Reproduction("gadre", CITATION, checks, lambda figure: _draw(figure, found, fitted, held_out))


def _draw(figure: "Figure", found: Fit, fitted: Mapping[str, Array], held_out: Mapping[str, Array]) -> None:
    axes = figure.subplots()
    irreducible = found.parameters["E"]
    budgets = np.geomspace(1e16, 5e22, 100)
    for ratio, style in ((20, "-"), (320, "-."), (640, "--")):
        sizes = np.sqrt(budgets / (6 * ratio))
        reducible = found.predict({"N": sizes, "D": ratio * sizes}) - irreducible
        axes.plot(budgets, reducible, style, color="black", lw=0.9, label=f"fit at M = {ratio} tokens a parameter")
    for columns, marker, fill, label in (
        (fitted, "o", "full", "runs fitted"),
        (held_out, "s", "none", "runs predicted"),
    ):
        compute = 6 * columns["N"] * columns["D"]
        axes.plot(compute, columns["loss"] - irreducible, marker, color="black", fillstyle=fill, label=label)
    axes.set(xscale="log", yscale="log", xlabel="compute 6ND (FLOP)", ylabel="reducible C4 loss (nats)")
    axes.legend(frameon=False)
