"""Hyper-parameters that hold at every size: the coordinate check, and the best learning rate by width."""

import argparse
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bmscale.commands.arguments import Commands, add, add_experiment, check_file, check_folder
from bmscale.errors import BadInput

log = logging.getLogger("bmscale")

Number = TypeVar("Number", int, float)


def add_coordinates(actions: Commands) -> None:
    """`bmscale scaling coordinates`."""
    text = "does any activation grow or shrink with width (or depth) over the first steps: a check of parametrizations"
    parser = add(actions, "coordinates", text, _coordinates)
    add_experiment(parser)
    parser.add_argument("--widths", metavar="N,N,…", help="default: 32,64,128,256,512")
    parser.add_argument("--depths", metavar="N,N,…", help="depths at the width of CONFIG, in place of widths")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="steps of training (default: 5)")
    parser.add_argument("--seeds", type=int, default=4, metavar="N", help="over which is averaged (default: 4)")
    parser.add_argument("--rate", type=float, metavar="X", help="learning rate (default: 0.064 / smallest width)")
    _add_parametrization(parser)


def _add_parametrization(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--parametrization",
        choices=("mup", "standard", "both"),
        default="both",
        help="both (default) shows standard beside mup; the exit code is 1 where mup, or standard alone, does not hold",
    )
    parser.add_argument("--json", action="store_true", help="everything, for programs")
    parser.add_argument("--plot", metavar="FILE", help="a picture, .png or .svg")


def _numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    """Numbers above 0 with commas between them, at least two, none twice."""
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(set(numbers)) < 2 or len(set(numbers)) < len(numbers) or not all(0 < one < math.inf for one in numbers):
        raise BadInput(f"{option}: must be two or more different numbers above 0, such as 32,64,128; got '{text}'")
    return sorted(numbers)


def _parametrizations(options: argparse.Namespace) -> list[str]:
    return ["mup", "standard"] if options.parametrization == "both" else [options.parametrization]


def _check_plot(options: argparse.Namespace) -> None:
    from bmscale.planning.charts import check_path

    if options.plot is not None:
        check_path(Path(options.plot))
        check_file("--plot", options.plot)


def _coordinates(options: argparse.Namespace) -> int:
    from bmscale.experiment import read_experiment
    from bmscale.scaling import coordinates

    if options.widths and options.depths:
        raise BadInput("--widths and --depths: one of them must be given; got both")
    for name in ("steps", "seeds"):
        if getattr(options, name) < 1:
            raise BadInput(f"--{name}: must be above 0; got {getattr(options, name)}")
    if options.rate is not None and not 0 < options.rate < math.inf:
        raise BadInput(f"--rate: must be above 0 and finite; got {options.rate:g}")
    _check_plot(options)
    axis = "depth" if options.depths else "width"
    values = _numbers(f"--{axis}s", options.depths or options.widths or "32,64,128,256,512", int)
    setting = coordinates.Setting(options.steps, options.seeds, options.rate)
    experiment = read_experiment(options.config, options.overrides)
    found = [
        coordinates.check_coordinates(experiment, one, axis, values, setting) for one in _parametrizations(options)
    ]
    texts = "\n\n".join(map(coordinates.table, found))
    print(json.dumps([one.to_dict() for one in found], indent=2) if options.json else texts)
    if options.plot is not None:
        coordinates.draw(found, Path(options.plot))
        log.info("written to %s", options.plot)
    return 1 if found[0].failures() else 0


def add_transfer(actions: Commands) -> None:
    """`bmscale scaling transfer`."""
    text = "does the best learning rate of a narrow model hold for wide ones: short trainings over widths and rates"
    parser = add(actions, "transfer", text, _transfer)
    add_experiment(parser)
    parser.add_argument("--widths", metavar="N,N,…", default="32,64,128,256", help="default: 32,64,128,256")
    parser.add_argument(
        "--rates", metavar="X,X,…", help="learning rates (default: that of CONFIG times 1/8, 1/4, 1/2, 1, 2, 4, 8)"
    )
    parser.add_argument("--output", metavar="FOLDER", default="transfer", help="the runs (default: transfer)")
    _add_parametrization(parser)


def _transfer(options: argparse.Namespace) -> int:
    from bmscale.experiment import read_experiment
    from bmscale.scaling import transfer

    _check_plot(options)
    check_folder("--output", options.output)
    widths = _numbers("--widths", options.widths, int)
    rate = read_experiment(options.config, options.overrides).training.optimizer.learning_rate
    usual = ",".join(repr(rate * 2.0**power) for power in range(-3, 4))
    rates = _numbers("--rates", options.rates or usual, float)
    found = [
        transfer.run_transfer(options.config, options.overrides, one, widths, rates, Path(options.output))
        for one in _parametrizations(options)
    ]
    print(
        json.dumps([one.to_dict() for one in found], indent=2)
        if options.json
        else "\n\n".join(map(transfer.table, found))
    )
    if options.plot is not None:
        transfer.draw(found, Path(options.plot))
        log.info("written to %s", options.plot)
    return 0 if found[0].holds else 1
