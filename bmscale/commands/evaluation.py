"""How good a model is: evaluate, report, compare."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from bmscale.commands.arguments import Commands, add, add_search, add_which, test_corpus, with_given
from bmscale.errors import BadInput

if TYPE_CHECKING:
    pass


def add_evaluate(commands: Commands) -> None:
    """`bmscale evaluate`."""
    parser = add(
        commands,
        "evaluate",
        "score a run on test sets: BLEU, chrF2++, TER; bits per byte; accuracy; with intervals",
        _evaluate,
    )
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/toy")
    parser.add_argument(
        "--test",
        action="append",
        metavar="FILE",
        help="a test file of any kind that `prepare` reads; may be given more than once (default: evaluation.test)",
    )
    add_which(parser)
    add_search(parser)


def _evaluate(options: argparse.Namespace) -> None:
    from bmscale.evaluation.evaluate import evaluate
    from bmscale.evaluation.report import write_report_or_warn
    from bmscale.experiment import RunFolder, TranslationEvaluationConfig
    from bmscale.inference.search import SearchOptions
    from bmscale.training import record

    run = RunFolder(Path(options.run))
    experiment = record.read_experiment(run).model_copy(update={"run": str(run.path)})
    config = experiment.evaluation
    tests = [test_corpus(file, experiment.corpus, experiment) for file in options.test or []]
    search = None
    if isinstance(config, TranslationEvaluationConfig):
        search = SearchOptions(config.beam_size, config.length_penalty, config.max_batch_tokens)
        search = with_given(search, options)
    elif options.beam_size is not None or options.length_penalty is not None:
        raise BadInput(f"--beam-size, --length-penalty: are of translation; {run.path} is of {experiment.task}")
    results = evaluate(experiment, tests or config.test, which=options.model, options=search, device=options.device)
    print(json.dumps(results, indent=2, ensure_ascii=False))
    write_report_or_warn(run)


def add_report(commands: Commands) -> None:
    """`bmscale report`."""
    parser = add(commands, "report", "write RUN/report.html: curves, scores, samples, data and model cards", _report)
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/toy; the run may be under way")


def _report(options: argparse.Namespace) -> None:
    from bmscale.evaluation.report import write_report
    from bmscale.experiment import RunFolder

    print(write_report(RunFolder(Path(options.run))))


def add_compare(commands: Commands) -> None:
    """`bmscale compare`."""
    parser = add(commands, "compare", "test whether translations differ by more than chance", _compare)
    parser.add_argument(
        "systems",
        nargs="+",
        metavar="SYSTEM",
        help="the baseline, then what to compare with it: run folders, model folders, files of translations",
    )
    parser.add_argument(
        "--test", required=True, metavar="FILE", help="TSV, JSONL, or the prefix of parallel files: sources, references"
    )
    parser.add_argument("--ter", action="store_true", help="TER besides BLEU and chrF2++")
    parser.add_argument("--source-language", metavar="CODE", help="default: that of the models")
    parser.add_argument(
        "--target-language", metavar="CODE", help="chooses the tokenizer of BLEU (default: that of the models)"
    )
    add_which(parser)
    add_search(parser)


def _compare(options: argparse.Namespace) -> None:
    from bmscale.config import Document, validate
    from bmscale.data.corpus import CorpusConfig
    from bmscale.evaluation.compare import compare, open_system
    from bmscale.training import record

    test = validate(CorpusConfig, Document({"path": options.test}, {(): "--test"}))
    systems = [
        open_system(
            name,
            read_experiment=record.read_experiment,
            which=options.model,
            with_given=lambda search: with_given(search, options),
        )
        for name in options.systems
    ]
    results = compare(
        systems,
        test,
        source_language=options.source_language,
        target_language=options.target_language,
        metrics=("bleu", "chrf", *(("ter",) if options.ter else ())),
        device=options.device,
    )
    print(json.dumps(results, indent=2, ensure_ascii=False))
