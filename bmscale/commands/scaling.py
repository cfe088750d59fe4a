"""Scaling laws: run a study, fit it, forecast before training, reproduce published ones."""

import argparse
import json
import logging
from pathlib import Path

from bmscale.commands.arguments import EXIT_CODES, Commands, add, check_folder

log = logging.getLogger("bmscale")

PUBLISHED = ("besiroglu", "porian", "gadre", "gemstones", "bansal", "muennighoff")


def add_scaling(commands: Commands) -> None:
    """`bmscale scaling`, whose own commands are the functions `_add_…` below."""
    text = "scaling studies: run one, fit a law, forecast before training, reproduce published fits"
    parser = commands.add_parser(
        "scaling", help=text, description=text, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_reproduce(actions)


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
