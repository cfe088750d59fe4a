"""From a model to other programs: export."""

import argparse
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from bmscale.commands.arguments import Commands, add, test_corpus
from bmscale.deployment.formats import FORMATS, flag_of
from bmscale.errors import BadInput

if TYPE_CHECKING:
    from bmscale.experiment import Experiment


def add_export(commands: Commands) -> None:
    """`bmscale export`."""
    parser = add(
        commands,
        "export",
        "write a model for other programs, and compare what was written with the model before it is kept",
        _export,
    )
    parser.add_argument("model", metavar="MODEL", help="a model folder, such as runs/toy/model/best")
    formats = "; ".join(f"{name}, {entry.text}" for name, entry in FORMATS.items())
    parser.add_argument("--to", required=True, metavar="FORMAT", help=formats)
    parser.add_argument(
        "--out", metavar="PATH", help="of the artefact (default: RUN/export/MODEL-FORMAT, else beside the model)"
    )
    parser.add_argument(
        "--test",
        metavar="FILE",
        help="what it is compared on, any kind that `prepare` reads (default: the run's test set, else its validation "
        "data)",
    )
    parser.add_argument(
        "--sentences", type=int, default=500, metavar="N", help="texts of it that are read, at most (default: 500)"
    )
    parser.add_argument("--licence", metavar="ID", help="for the model card, such as apache-2.0")
    for option, text in {key: text for entry in FORMATS.values() for key, text in entry.options.items()}.items():
        parser.add_argument(flag_of(option), metavar="VALUE", help=text)


def _export(options: argparse.Namespace) -> None:
    # As Ctrl-C does: what was begun is removed, and what was started ends before this does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from bmscale.deployment import export
    from bmscale.deployment.examples import read_examples
    from bmscale.deployment.formats import make_format
    from bmscale.deployment.place import check_place
    from bmscale.experiment import EXPERIMENTS
    from bmscale.model.folder import open_model_folder

    if options.sentences < 1:
        raise BadInput(f"--sentences: must be at least 1; got {options.sentences}")
    given = {key: getattr(options, key) for entry in FORMATS.values() for key in entry.options}
    given = {key: value for key, value in given.items() if value is not None}
    made = make_format(options.to, given)
    model = open_model_folder(options.model, None)
    made.check(model)
    place = model.path.resolve()  # "." has no name, and no parents
    run = place.parent.parent
    of_run = (run / "run.yaml").is_file()
    name = "-".join([place.name, options.to, *given.values()])
    out = Path(options.out) if options.out else (run / "export" if of_run else place.parent) / name
    if not options.out:
        out = out.with_name(out.name + made.suffix)
    check_place(out, made.suffix, model.path)
    experiment = _experiment(run) if of_run else None
    kind = EXPERIMENTS[model.task.name].corpus
    test = None if options.test is None else test_corpus(options.test, kind, experiment)
    examples = read_examples(model, test, experiment, options.sentences)
    report = export.export(model, options.to, out, examples, options=given, licence=options.licence)
    print(export.summary(report))
    print(out)


def _experiment(run: Path) -> "Experiment":
    from bmscale.experiment import RunFolder
    from bmscale.training import record

    return record.read_experiment(RunFolder(run))
