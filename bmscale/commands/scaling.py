"""Scaling laws: run a study, fit it, forecast before training, reproduce published ones."""

import argparse
import json
import logging
from pathlib import Path

from bmscale.commands.arguments import EXIT_CODES, Commands, add, check_file, check_folder
from bmscale.commands.transfer import add_coordinates, add_transfer
from bmscale.errors import BadInput

log = logging.getLogger("bmscale")

LAWS = (
    "chinchilla, tied, frontier, kaplan, kaplan-n, kaplan-d, data-constrained, saturating, encoder-decoder, "
    "encoder-decoder-sizes, bleu"
)
"""Those of bmscale/scaling/laws.py, which imports numpy."""
PUBLISHED = ("besiroglu", "porian", "gadre", "gemstones", "bansal", "muennighoff")
"""Those of bmscale/scaling/reproduce."""


def add_scaling(commands: Commands) -> None:
    """`bmscale scaling`, whose own commands are the functions `_add_…` below."""
    text = "scaling studies: run one, fit a law, forecast before training, reproduce published fits"
    parser = commands.add_parser(
        "scaling", help=text, description=text, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_run(actions)
    _add_fit(actions)
    _add_forecast(actions)
    _add_report(actions)
    _add_reproduce(actions)
    add_coordinates(actions)
    add_transfer(actions)


def _add_run(actions: Commands) -> None:
    """`bmscale scaling run`."""
    parser = add(actions, "run", "train the cells of a study, one after the other; the same command goes on", _run)
    parser.add_argument("study", metavar="STUDY", help="a YAML file, or a shipped study: ci, quick, split, synthetic")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="values over the file's, such as seed=3")
    parser.add_argument("--folder", metavar="FOLDER", help="where it is (default: studies/NAME)")
    parser.add_argument("--only", metavar="PATTERN", help="cells whose names match, such as 'w32*'")
    parser.add_argument("--trunk", type=int, metavar="N", help="one size and seed, from 0: for an array of jobs")
    parser.add_argument("--holdouts", action="store_true", help="train the hold-outs too: forecast them first")
    parser.add_argument("--prepare", action="store_true", help="prepare the data, and train nothing")
    parser.add_argument("--dry-run", action="store_true", help="print the cells and what they cost, write nothing")


def _run(options: argparse.Namespace) -> int:
    from bmscale.data.prepare import prepare
    from bmscale.scaling.runs import choose, describe, run_study
    from bmscale.scaling.study import read_study

    study = read_study(options.study, options.overrides, options.folder)
    if options.prepare:
        prepare(study.plain.data, dry_run=options.dry_run)
        return 0
    if options.dry_run:
        chosen = choose(study, options.only, options.trunk, holdouts=options.holdouts)
        print("\n".join(describe(study, chosen)))
        return 0
    if options.holdouts and study.config.holdouts and not any(study.folder.glob("forecast*.json")):
        log.warning(
            "%s: the hold-outs are not forecast yet, and once they are trained they cannot be; "
            "`bmscale scaling forecast` does it before",
            study.folder,
        )
    done = run_study(study, options.only, options.trunk, holdouts=options.holdouts)
    print(study.table)
    return 0 if done else 1


def _add_fit(actions: Commands) -> None:
    parser = add(actions, "fit", "fit a scaling law to a table of runs, with intervals and a back-test", _fit)
    parser.add_argument(
        "table", metavar="TABLE|STUDY", help="CSV, TSV or JSONL of runs: N, D, loss and what else there is; or a study"
    )
    parser.add_argument(
        "--law", default="auto", metavar="LAW", help=f"{LAWS}; auto takes what a back-test chooses (default: auto)"
    )
    parser.add_argument(
        "--approach",
        type=int,
        choices=(1, 2, 3),
        default=3,
        help="allocation by training curves, by isoFLOP curves, or by the law alone (default: 3)",
    )
    _add_table_options(parser)
    parser.add_argument("--loss", default="huber", choices=("huber", "lad", "ls"), help="of log residuals")
    parser.add_argument("--delta", type=float, default=1e-3, help="where Huber's loss turns straight (default: 1e-3)")
    parser.add_argument("--draws", type=int, default=1000, metavar="N", help="of the bootstrap (default: 1000)")
    parser.add_argument("--restarts", type=int, default=20, metavar="N", help="random starts (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of bootstrap and restarts (default: 0)")
    parser.add_argument("--json", action="store_true", help="everything, for programs")
    parser.add_argument("--plot", metavar="FILE", help="loss, isoFLOP curves and residuals as .png or .svg")


def _add_table_options(parser: argparse.ArgumentParser) -> None:
    """How a table is read."""
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="OURS=THEIRS",
        help="columns that are not recognised, with their unit: N=size D=tokens_b*1e9 loss=val; ours are N, D, C, "
        "loss, N_e, N_d, U (unique tokens), bleu, and N_… for other counts of N",
    )
    parser.add_argument(
        "--drop", nargs="+", default=[], metavar="RULE", help="rows to leave out: rows=1-5,9, loss>5, highest-loss=5"
    )
    parser.add_argument("--folder", metavar="FOLDER", help="where the study is (default: studies/NAME)")


def _fit(options: argparse.Namespace) -> int:
    from bmscale.scaling import analysis, charts
    from bmscale.scaling.fit import Objective
    from bmscale.scaling.records import open_records

    if options.plot is not None:
        charts.check_path(Path(options.plot))
        check_file("--plot", options.plot)
    for name in ("draws", "restarts", "seed"):
        if getattr(options, name) < 0:
            raise BadInput(f"--{name}: must be at least 0; got {getattr(options, name)}")
    found = analysis.analyse(
        open_records(options.table, options.folder, options.columns, options.drop).table(),
        law=options.law,
        approach=options.approach,
        objective=Objective(options.loss, options.delta),
        draws=options.draws,
        restarts=options.restarts,
        seed=options.seed,
    )
    print(json.dumps(found.to_dict(), indent=2) if options.json else analysis.to_text(found))
    if options.plot is not None:
        charts.draw(found, Path(options.plot))
        log.info("written to %s", options.plot)
    return 0


def _add_forecast(actions: Commands) -> None:
    text = "freeze predictions into a dated, hashed file before the cells are trained"
    parser = add(actions, "forecast", text, _forecast)
    parser.add_argument("study", metavar="STUDY|TABLE", help="a study's YAML, name or folder, or a table")
    parser.add_argument(
        "--cells",
        nargs="+",
        default=[],
        metavar="CELL",
        help="cells of the study, or NAME:N=1e8,D=2e9 (default: the study's hold-outs that are not trained yet)",
    )
    parser.add_argument(
        "--budget", action="append", type=float, default=[], metavar="FLOPS", help="compute-optimal N and D for it"
    )
    parser.add_argument(
        "--loss", action="append", type=float, default=[], metavar="L", help="tokens that this loss needs"
    )
    parser.add_argument("--size", type=float, metavar="N", help="parameters of the model of --loss (default: optimal)")
    parser.add_argument("--law", default="auto", metavar="LAW", help="as in fit (default: auto, by the back-test)")
    _add_table_options(parser)
    parser.add_argument("--draws", type=int, default=1000, metavar="N", help="of the bootstrap (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--out", metavar="FILE", help="a new file (default: FOLDER/forecast.json, then -2, -3)")


def _forecast(options: argparse.Namespace) -> int:
    from bmscale.scaling import forecast
    from bmscale.scaling.records import open_records

    if options.out:
        check_file("--out", options.out)
    for name in ("budget", "loss", "size"):
        for value in [getattr(options, name)] if name == "size" else getattr(options, name):
            if value is not None and not 0 < value < float("inf"):
                raise BadInput(f"--{name}: must be above 0; got {value:g}")
    records = open_records(options.study, options.folder, options.columns, options.drop)
    asked = forecast.Asked(tuple(options.cells), tuple(options.budget), tuple(options.loss), options.size)
    out = Path(options.out) if options.out else None
    forecast.check_out(records, out)
    content = forecast.forecast(records, asked, law=options.law, draws=options.draws, seed=options.seed)
    path = forecast.freeze(records, content, out)
    print(forecast.to_text(content))
    print(path)
    return 0


def _add_report(actions: Commands) -> None:
    text = "report.html of a study: law, allocation, forecast against outcome, in pictures that are written as SVG too"
    parser = add(actions, "report", text, _report)
    parser.add_argument("study", metavar="STUDY|TABLE", help="a study's YAML, name or folder, or a table")
    parser.add_argument("--law", default="auto", metavar="LAW", help="as in fit (default: auto, by the back-test)")
    _add_table_options(parser)
    parser.add_argument(
        "--forecast", nargs="+", default=[], metavar="FILE", help="forecasts (default: those in the folder)"
    )
    parser.add_argument("--draws", type=int, default=1000, metavar="N", help="of the bootstrap (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--out", metavar="FILE", help="default: FOLDER/report.html; figures are beside it")


def _report(options: argparse.Namespace) -> int:
    from bmscale.scaling.records import open_records
    from bmscale.scaling.report import write_report

    if options.out:
        check_file("--out", options.out)
    records = open_records(options.study, options.folder, options.columns, options.drop)
    found = write_report(
        records,
        Path(options.out) if options.out else None,
        law=options.law,
        forecasts=[Path(path) for path in options.forecast],
        draws=options.draws,
        seed=options.seed,
    )
    print(found)
    return 0


def _add_reproduce(actions: Commands) -> None:
    text = "published laws fitted again from their public data, theirs against ours; exit code 1 outside tolerance"
    parser = add(actions, "reproduce", text, _reproduce)
    parser.add_argument("paper", metavar="PAPER", choices=(*PUBLISHED, "all"), help=f"{', '.join(PUBLISHED)}, or all")
    parser.add_argument(
        "--data", metavar="DIR", default="scaling-data", help="folder of the papers' data (default: scaling-data)"
    )
    parser.add_argument(
        "--download",
        action="store_true",
        help="fetch into DIR what is not there, and check its hash (3 MB for all)",
    )
    parser.add_argument(
        "--bootstrap",
        action="store_true",
        help="besiroglu: its 4,000 draws as well, for standard errors (half a minute)",
    )
    parser.add_argument("--plot", metavar="DIR", help="write each paper's picture there, PNG and SVG")
    parser.add_argument("--json", action="store_true", help="all figures, for programs")


def _reproduce(options: argparse.Namespace) -> int:
    from bmscale.scaling.reproduce import papers

    if options.plot is not None:
        check_folder("--plot", options.plot)
    names = list(PUBLISHED) if options.paper == "all" else [options.paper]
    folder = Path(options.data)
    papers.prepare(names, folder, options.download)
    found = []
    for name in names:
        for warning in papers.warnings(name, folder):
            log.warning("%s", warning)
        result = papers.PAPERS[name].reproduce(folder, options.bootstrap)
        found.append(result)
        if not options.json:
            print(result.table(), end="\n\n", flush=True)
        if options.plot is not None:
            log.info("wrote %s", ", ".join(map(str, papers.draw(result, Path(options.plot)))))
    passed = all(result.passed for result in found)
    if options.json:
        print(json.dumps({"passed": passed, "papers": [result.to_dict() for result in found]}, indent=2))
    outside = [f"{result.paper}: {check.quantity}" for result in found for check in result.checks if not check.passed]
    if outside:
        log.error("outside their tolerance: %s", "; ".join(outside))
    return 0 if passed else 1
