"""Scaling laws: run a study, fit it, forecast before training, reproduce published ones."""

import argparse

from bmscale.commands.arguments import EXIT_CODES, Commands, add


def add_scaling(commands: Commands) -> None:
    """`bmscale scaling`, whose own commands are the functions `_add_…` below."""
    text = "scaling studies: run one, fit a law, forecast before training, reproduce published fits"
    parser = commands.add_parser(
        "scaling", help=text, description=text, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_run(actions)


def _add_run(actions: Commands) -> None:
    """`bmscale scaling run`."""
    parser = add(actions, "run", "train the cells of a study, one after the other; the same command goes on", _run)
    parser.add_argument("study", metavar="STUDY", help="a YAML file, or the name of a shipped study: ci, quick")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="values over the file's, such as seed=3")
    parser.add_argument("--folder", metavar="FOLDER", help="where it is (default: studies/NAME)")
    parser.add_argument("--only", metavar="PATTERN", help="cells whose names match, such as 'w32*'")
    parser.add_argument("--trunk", type=int, metavar="N", help="one size and seed, from 0: for an array of jobs")
    parser.add_argument("--holdouts", action="store_true", help="train the hold-outs too: forecast them first")
    parser.add_argument("--dry-run", action="store_true", help="print the cells and what they cost, write nothing")


def _run(options: argparse.Namespace) -> int:
    from bmscale.scaling.runs import choose, describe, run_study
    from bmscale.scaling.study import read_study

    study = read_study(options.study, options.overrides, options.folder)
    if options.dry_run:
        chosen = choose(study, options.only, options.trunk, holdouts=options.holdouts)
        print("\n".join(describe(study, chosen)))
        return 0
    done = run_study(study, options.only, options.trunk, holdouts=options.holdouts)
    print(study.table)
    return 0 if done else 1
