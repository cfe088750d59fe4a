"""The command line: which commands there are, and how each of them ends."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bmscale import __version__, errors
from bmscale.commands import deployment, evaluation, inference, planning, scaling, serving, training
from bmscale.commands.arguments import EXIT_CODES
from bmscale.errors import BadInput, BmscaleError

if TYPE_CHECKING:
    pass

log = logging.getLogger("bmscale")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if hasattr(options, "overrides"):  # of which argparse takes none behind an option
        options.overrides += [word for word in rest if "=" in word and not word.startswith("-")]
        rest = [word for word in rest if word not in options.overrides]
    if rest and not options.passes_on:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    _start_logging()
    try:
        code = options.command(options)
        return int(code or 0)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error, but the interpreter must not flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (BmscaleError, KeyboardInterrupt, MemoryError, OSError) as error:
        return _fail(errors.message(error), errors.exit_code(error))


def _fail(message: str, code: int) -> int:
    """Say why, once a node: with many ranks the same message many times would hide it."""
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        print(f"bmscale: error: {message}", file=sys.stderr, flush=True)
    elif os.environ.get("LOCAL_RANK") == "0" or code != BadInput.exit_code:
        print(f"bmscale: rank {rank}: error: {message}", file=sys.stderr, flush=True)
    return code


def _start_logging() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers = [handler]
    log.propagate = False
    # Other ranks speak up only when something is wrong with them.
    log.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="bmscale",
        description="Train a Transformer from a laptop to a cluster with the same commands.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bmscale {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    training.add_prepare(commands)
    training.add_train(commands)
    training.add_submit(commands)
    planning.add_benchmark(commands)
    planning.add_plan(commands)
    planning.add_doctor(commands)
    training.add_checkpoint(commands)
    evaluation.add_evaluate(commands)
    evaluation.add_report(commands)
    evaluation.add_compare(commands)
    training.add_average(commands)
    inference.add_translate(commands)
    inference.add_generate(commands)
    inference.add_predict(commands)
    deployment.add_export(commands)
    serving.add_serve(commands)
    scaling.add_scaling(commands)
    return parser
