"""Scaling laws: run a study, fit it, forecast before training, reproduce published ones."""

import argparse

from bmscale.commands.arguments import EXIT_CODES, Commands


def add_scaling(commands: Commands) -> None:
    """`bmscale scaling`, whose own commands are the functions `_add_…` below."""
    text = "scaling studies: run one, fit a law, forecast before training, reproduce published fits"
    parser = commands.add_parser(
        "scaling", help=text, description=text, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_subparsers(metavar="ACTION", required=True)
