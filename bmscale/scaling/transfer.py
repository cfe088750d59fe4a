"""Does the best learning rate of a narrow model hold for wide ones: short trainings over widths and rates.

Every point is an ordinary training of the experiment in a folder of its own. What is there and trained to its end is
read, so the same command goes on where it was interrupted.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bmscale.errors import BadInput, Diverged
from bmscale.experiment import Experiment, read_experiment
from bmscale.scaling.coordinates import wider

log = logging.getLogger("bmscale")

MOST_MOVED = 2.0
"""The factor that the best rate may move by over all widths for the parametrization to count as one that transfers."""


@dataclass(frozen=True)
class Transfer:
    """What was measured of one parametrization."""

    parametrization: str
    widths: list[int]
    rates: list[float]
    """In ascending order."""
    losses: list[list[float]]
    """The last validation loss, nats a prediction, of each width at each rate; inf where the training diverged."""

    def best(self, width: int) -> float:
        """The rate of the grid with the lowest loss."""
        return self.rates[int(np.argmin(self.losses[self.widths.index(width)]))]

    def optimum(self, width: int) -> float:
        """Where a parabola through the best point and its neighbours, over log rate, is lowest; the best rate of the
        grid where it is at the edge or a neighbour diverged."""
        losses, at = np.array(self.losses[self.widths.index(width)]), self.rates.index(self.best(width))
        around = slice(max(0, at - 1), at + 2)
        points, values = np.log(self.rates[around]), losses[around]
        if len(points) < 3 or not np.isfinite(values).all():
            return self.best(width)
        second, first, _ = np.polyfit(points, values, 2)
        return float(np.exp(-first / (2 * second))) if second > 0 else self.best(width)

    def moved(self) -> float:
        """The largest best rate of the grid over the smallest."""
        best = [self.best(width) for width in self.widths]
        return max(best) / min(best)

    def at_the_edge(self) -> list[int]:
        """The widths whose best rate is the smallest or the largest of the grid: it may lie beyond."""
        return [width for width in self.widths if self.best(width) in (self.rates[0], self.rates[-1])]

    @property
    def holds(self) -> bool:
        """Whether the best rate moves by MOST_MOVED at most, and none lies at the edge of the grid."""
        return self.moved() <= MOST_MOVED * 1.001 and not self.at_the_edge()

    def to_dict(self) -> dict[str, Any]:
        """For programs; a loss that is not finite is null."""
        losses = [[loss if math.isfinite(loss) else None for loss in row] for row in self.losses]
        return {
            "parametrization": self.parametrization,
            "widths": self.widths,
            "rates": self.rates,
            "losses": losses,
            "best": [self.best(width) for width in self.widths],
            "optimum": [self.optimum(width) for width in self.widths],
            "moved": self.moved(),
            "at_the_edge": self.at_the_edge(),
        }


def run_transfer(
    config: str,
    overrides: Sequence[str],
    parametrization: str,
    widths: Sequence[int],
    rates: Sequence[float],
    folder: Path,
) -> Transfer:
    """Train every width at every rate. Raises BadInput, before anything is trained, for a width that the model cannot
    have."""
    rates = sorted(rates)
    shapes = shapes_of(read_experiment(config, list(overrides)), parametrization, widths)
    experiments = {
        (width, rate): proxy(config, overrides, shape, rate, folder / f"{parametrization}-w{width}-r{rate:g}")
        for width, shape in zip(widths, shapes, strict=True)
        for rate in rates
    }
    losses: dict[tuple[int, float], float] = {}
    for (width, rate), experiment in experiments.items():
        losses[width, rate] = last_loss(experiment)
        log.info(
            "%s, width %d, rate %g: loss %.4f (%d of %d)",
            *(parametrization, width, rate, losses[width, rate], len(losses), len(experiments)),
        )
    return Transfer(
        parametrization, list(widths), list(rates), [[losses[width, rate] for rate in rates] for width in widths]
    )


def shapes_of(experiment: Experiment, parametrization: str, widths: Sequence[int]) -> list[dict[str, Any]]:
    """Options of the model at each width; the narrowest is the base of μP."""
    model = experiment.model
    config = model.build(experiment.data.tokenizer.vocabulary_size)
    names = ["hidden_size", "head_dim", "num_attention_heads", "num_key_value_heads", "intermediate_size"]
    names += ["parametrization", "base_hidden_size", "base_layers", "base_head_dim"]
    return [
        {name: getattr(shape, name) for name in names} for shape in wider(model.task, config, parametrization, widths)
    ]


def proxy(config: str, overrides: Sequence[str], shape: Mapping[str, Any], rate: float, run: Path) -> Experiment:
    """The experiment of one point: it saves and validates at its end only."""
    known = read_experiment(config, list(overrides))
    steps = known.training.max_steps
    if steps is None:
        raise BadInput("training.max_steps: must be given: short trainings are compared after as many steps")
    given = [f"model.{name}={value}" for name, value in shape.items()]
    given += [f"name={run.name}", f"run={run}", f"training.optimizer.learning_rate={rate!r}", "training.trackers=[]"]
    given += [f"training.save_every_steps={steps}", f"evaluation.every_steps={steps}"]
    if known.task == "translation":
        given += ["evaluation.pairs=0", "evaluation.samples=0"]
    return read_experiment(config, [*overrides, *given])


def last_loss(experiment: Experiment) -> float:
    """The validation loss at the end of the training, which is done first where it was not; inf for one that
    diverged."""
    from bmscale.training.train import train

    found = _read_loss(experiment)
    if found is not None:
        return found
    logs = list(log.handlers)
    try:
        train(experiment)
    except Diverged as error:
        log.warning("%s: %s", experiment.run_folder.path, error)
        return math.inf
    finally:  # else the log of this training would go on in the folder of the next
        for handler in [handler for handler in log.handlers if handler not in logs]:
            log.removeHandler(handler)
            handler.close()
    found = _read_loss(experiment)
    if found is None:
        raise BadInput(f"{experiment.run_folder.path}: must have been trained to its end; start the command again")
    return found


def _read_loss(experiment: Experiment) -> float | None:
    metrics = experiment.run_folder.metrics
    if not metrics.is_file():
        return None
    for line in reversed(metrics.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        if "valid_loss" in row and row["step"] == experiment.training.max_steps:
            loss = row["valid_loss"]
            return math.inf if loss is None else float(loss)
    return None


def table(found: Transfer) -> str:
    """Losses by width and rate, and by how much the best rate moves."""
    lines = [
        f"{found.parametrization}: validation loss by width and learning rate; * is the best",
        f"{'rate':>9} " + " ".join(f"{width:>9}" for width in found.widths),
    ]
    for rate, row in zip(found.rates, zip(*found.losses, strict=True), strict=True):
        marks = ["*" if rate == found.best(width) else " " for width in found.widths]
        lines.append(f"{rate:9.3g} " + " ".join(f"{loss:8.4f}{mark}" for loss, mark in zip(row, marks, strict=True)))
    lines.append("parabola  " + " ".join(f"{found.optimum(width):8.2g} " for width in found.widths))
    edge = found.at_the_edge()
    if edge:
        lines.append(f"at the edge of the grid at width {', '.join(map(str, edge))}: give --rates beyond it")
    verdict = "at most" if found.moved() <= MOST_MOVED * 1.001 else "more than"
    return "\n".join([*lines, f"the best rate moves by a factor of {found.moved():.3g}: {verdict} {MOST_MOVED:g}"])


def draw(found: Sequence[Transfer], path: Path) -> None:
    """Loss against rate, a line a width, a panel a parametrization; the best of each line is filled."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": path.name}):
        figure = Figure(figsize=(4.2 * len(found), 3.6), layout="constrained")
        panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
        for axes, one in zip(panels, found, strict=True):
            for number, (width, losses) in enumerate(zip(one.widths, one.losses, strict=True)):
                shade = str(0.7 - 0.7 * number / max(1, len(one.widths) - 1))
                style = ("-", "--", "-.", ":")[number % 4]
                axes.plot(one.rates, losses, style, color=shade, label=f"width {width}", marker="o", markersize=3)
                axes.plot(one.best(width), min(losses), "D", color=shade, markersize=7)
            axes.set_xscale("log")
            axes.set_xlabel("learning rate")
            axes.set_title(one.parametrization)
            axes.spines[["top", "right"]].set_visible(False)
        lows = [min(row) for one in found for row in one.losses]
        highs = [loss for one in found for row in one.losses for loss in row if math.isfinite(loss)]
        if highs:
            panels[0].set_ylim(min(lows) - 0.02, min(max(highs), max(lows) + 1.5) + 0.02)
        panels[0].set_ylabel("validation loss, nats")
        panels[-1].legend(frameon=False, fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
