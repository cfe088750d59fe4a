"""What the options of several commands have in common, and how text comes in and goes out."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from bmscale.errors import BadInput

if TYPE_CHECKING:
    from bmscale.data.corpus import OriginConfig
    from bmscale.experiment import Experiment
    from bmscale.inference.search import SearchOptions

EXIT_CODES = """
exit codes: 0 done, 1 failed, 2 bad input, 3 diverged, 4 out of memory, 5 lost rank or hang, 75 preempted,
130 interrupted.
Under a launcher, which returns 1 whatever its ranks returned, read RUN/exit.json."""

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add(
    commands: Commands, name: str, text: str, command: Callable[[argparse.Namespace], int | None]
) -> argparse.ArgumentParser:
    """A command whose parsed options `command` is called with; what it returns is the exit code, None is 0."""
    parser = commands.add_parser(
        name, help=text, description=text, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(command=command, passes_on=False)
    return parser


def add_experiment(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """CONFIG and key.sub=value, for `read_experiment`."""
    text = "a YAML file, or the name of a preset such as toy"
    parser.add_argument("config", nargs=None if required else "?", metavar="CONFIG", help=text)
    parser.add_argument(
        "overrides", nargs="*", metavar="key.sub=value", help="values over the file's, such as training.seed=3"
    )


def check_folder(option: str, given: str) -> None:
    """Before any work: raises BadInput where `given` is no folder and none can be made there."""
    _check_place(option, given, Path(given).absolute())


def check_file(option: str, given: str) -> None:
    """Before any work: raises BadInput where `given` can be no file."""
    if Path(given).is_dir():
        raise BadInput(f"{option}: must be a file; got '{given}', which is a folder")
    _check_place(option, given, Path(given).absolute().parent)


def _check_place(option: str, given: str, folder: Path) -> None:
    """Whether the folder, or the nearest one above it that is there, can be written."""
    there = next(place for place in [folder, *folder.parents] if place.exists() or place.is_symlink())
    if not given:
        raise BadInput(f"{option}: must name where to write; got an empty name")
    if not there.is_dir():
        raise BadInput(f"{option}: must be a free path or a folder; got '{given}', and {there} is no folder")
    try:  # permissions do not say it of /proc, or to root of a file system that is mounted read-only
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise BadInput(
            f"{option}: must be where you may write; got '{given}', and {there} cannot be written: {error.strerror}"
        ) from None


def add_search(parser: argparse.ArgumentParser) -> None:
    """How translations are looked for; `with_given` reads it."""
    parser.add_argument("--beam-size", type=int, help="hypotheses kept; 1 is greedy")
    parser.add_argument("--length-penalty", type=float, help="exponent of the length; above 1 favours long ones")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")


def with_given(search: "SearchOptions", options: argparse.Namespace) -> "SearchOptions":
    """The options of the search with what the command line gave."""
    given = {"beam_size": options.beam_size, "length_penalty": options.length_penalty}
    return replace(search, **{name: value for name, value in given.items() if value is not None})


def add_which(parser: argparse.ArgumentParser) -> None:
    """Which model of a run."""
    parser.add_argument(
        "--model",
        metavar="NAME",
        default="best",
        help="which folder of RUN/model: best, last, average, step-00000500 (default: best)",
    )


def test_corpus(file: str, kind: "type[OriginConfig]", experiment: "Experiment | None") -> "OriginConfig":
    """A test file, which is read as the experiment's validation data is: the same columns and keys."""
    from bmscale.config import Document, validate

    reading = {}
    if experiment is not None:
        origin = {"name", "path", "source_path", "target_path", "dataset", "subset", "revision", "toy"}
        reading = experiment.data.valid[0].model_dump(exclude={*origin, "format", "split"}, exclude_unset=True)
    return validate(kind, Document({**reading, "path": file}, {(): "--test"}))


def stdin_lines() -> Iterator[str]:
    """Lines of standard input; bytes that are not UTF-8 must not end a long pipe, they become U+FFFD."""
    return (line.decode("utf-8", errors="replace").rstrip("\r\n") for line in sys.stdin.buffer)


def write(text: str) -> None:
    """To standard output, at once; lone surrogates become question marks."""
    sys.stdout.buffer.write(text.encode("utf-8", errors="replace"))
    sys.stdout.buffer.flush()
