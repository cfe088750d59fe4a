"""The command line: one command is one call into the package.

Imports stand inside the commands, so that `bmscale --help` answers at once and a command loads only what it needs.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from bmscale import __version__, errors
from bmscale.errors import BadInput, BmscaleError

if TYPE_CHECKING:
    from bmscale.inference.translator import SearchOptions

log = logging.getLogger("bmscale")

EXIT_CODES = """
exit codes: 0 done, 1 failed, 2 bad input, 3 diverged, 4 out of memory, 5 lost rank or hang, 75 preempted,
130 interrupted.
Under a launcher, which returns 1 whatever its ranks returned, read RUN/exit.json."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if hasattr(options, "overrides"):  # of which argparse takes none behind an option
        options.overrides += [word for word in rest if "=" in word and not word.startswith("-")]
        rest = [word for word in rest if word not in options.overrides]
    if rest and options.command is not _submit:  # whose other options are those of sbatch
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
    _add_prepare(commands)
    _add_train(commands)
    _add_submit(commands)
    _add_benchmark(commands)
    _add_plan(commands)
    _add_checkpoint(commands)
    _add_evaluate(commands)
    _add_report(commands)
    _add_compare(commands)
    _add_average(commands)
    _add_translate(commands)
    _add_generate(commands)
    _add_predict(commands)
    return parser


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _add(
    commands: Commands, name: str, text: str, command: Callable[[argparse.Namespace], int | None]
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=text, description=text, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(command=command)
    return parser


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a preset such as toy")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.sub=value", help="values over the file's, such as training.seed=3"
    )


def _add_prepare(commands: Commands) -> None:
    parser = _add(commands, "prepare", "clean text, train a tokenizer, write token shards", _prepare)
    _add_experiment(parser)
    parser.add_argument("--dry-run", action="store_true", help="read and clean only, report, write nothing")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    parser.add_argument("--force", action="store_true", help="replace a folder prepared from something else")


def _prepare(options: argparse.Namespace) -> None:
    from bmscale.data.manifest import format_report
    from bmscale.data.prepare import prepare
    from bmscale.experiment import read_experiment

    experiment = read_experiment(options.config, options.overrides)
    manifest = prepare(experiment.data, dry_run=options.dry_run, workers=options.workers, force=options.force)
    print(format_report(manifest))


def _add_train(commands: Commands) -> None:
    parser = _add(
        commands,
        "train",
        "train a model, or go on with the run; under `accelerate launch … -m bmscale train`, torchrun, or alone",
        _train,
    )
    _add_experiment(parser)
    _add_new_schedule(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="check experiment, data and disk, print the run folder, write nothing"
    )


def _add_new_schedule(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--new-schedule",
        action="store_true",
        help="go on although max_steps or the schedule changed, and with it the learning rate of steps to come",
    )


def _train(options: argparse.Namespace) -> int:
    from bmscale.experiment import read_experiment

    experiment = read_experiment(options.config, options.overrides)
    if options.dry_run:
        from bmscale.cluster import preflight

        preflight.check(experiment, new_schedule=options.new_schedule)
        print(experiment.run_folder.path)
        return 0
    from bmscale.evaluation.report import write_report_or_warn
    from bmscale.training import ending, record
    from bmscale.training.train import train

    run = experiment.run_folder
    ended = ending.of(run, lambda: train(experiment, new_schedule=options.new_schedule))
    if os.environ.get("RANK", "0") == "0":
        write_report_or_warn(run)
        if ended.kind == "done":
            test = "" if experiment.evaluation.test else " --test FILE"
            print(f"evaluate:  bmscale evaluate {run.path}{test}", file=sys.stderr)
            command = experiment.model.task.command
            if command is not None:
                print(f"{f'{command}:':<10} echo 'A sentence.' | bmscale {command} {run.best}", file=sys.stderr)
    return record.exit_code(ended.kind)


SBATCH_OPTIONS = {
    "nodes": "N",
    "gpus-per-node": "N",
    "cpus-per-task": "N",
    "time": "HH:MM:SS",
    "partition": "NAME",
    "account": "NAME",
    "array": "1-N%1",
}


def _add_submit(commands: Commands) -> None:
    parser = _add(commands, "submit", "train in a SLURM job: fill in slurm/train.sh and give it to sbatch", _submit)
    parser.allow_abbrev = False  # --gpus is an option of sbatch, and not short for --gpus-per-node
    _add_experiment(parser)
    _add_new_schedule(parser)
    for name, unit in SBATCH_OPTIONS.items():
        parser.add_argument(f"--{name}", metavar=unit, help="of sbatch, as any other one in the form --name=value")
    parser.add_argument("--dry-run", action="store_true", help="print the script, submit and write nothing")


def _submit(options: argparse.Namespace) -> None:
    from bmscale.cluster import preflight
    from bmscale.cluster.submit import fill_in, submit
    from bmscale.experiment import read_experiment

    given = {name: getattr(options, name.replace("-", "_")) for name in SBATCH_OPTIONS}
    words = [word for word in [*options.overrides, *options.rest] if word != "--"]
    overrides = [word for word in words if not word.startswith("-")]
    sbatch = [f"--{name}={value}" for name, value in given.items() if value is not None]
    sbatch += [word for word in words if word.startswith("-")]
    train = ["--new-schedule"] if options.new_schedule else []
    experiment = read_experiment(options.config, overrides)
    if options.dry_run:
        print(fill_in([options.config, *overrides, *train], sbatch), end="")
        return
    if not any(option.startswith("--dependency") for option in sbatch):  # the data may be prepared by an earlier job
        preflight.check(experiment, new_schedule=options.new_schedule)
    job = submit(experiment, train, sbatch)
    log.info("job %s trains %s", job, experiment.run_folder.path)
    print(job)


def _add_benchmark(commands: Commands) -> None:
    parser = _add(
        commands, "benchmark", "measure speed: our own, and rivals' on the same data in the same run", _benchmark
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="see --list (default: the usual ones)")
    parser.add_argument("--list", action="store_true", help="print what there is to measure, and the usual cases")
    parser.add_argument("--corpus", metavar="FILE", help="sentence pairs, as `prepare` reads (default: the toy corpus)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="turns over all cases (default: 3)")
    parser.add_argument("--steps", type=int, default=40, metavar="N", help="steps that are timed (default: 40)")
    parser.add_argument("--warmup-steps", type=int, default=5, metavar="N", help="steps before them (default: 5)")
    parser.add_argument("--tokens-per-step", type=int, default=2048, metavar="N", help="target tokens (default: 2048)")
    parser.add_argument(
        "--micro-batch-tokens", type=int, metavar="N", help="padded slots of a pass (default: as --tokens-per-step)"
    )
    parser.add_argument("--max-seconds", type=float, default=900, metavar="S", help="of one case (default: 900)")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PYTHON",
        help="the interpreter that measures a rival: joeynmt, eole, ctranslate2, hf, torch",
    )
    parser.add_argument(
        "--at-least",
        action="append",
        nargs=3,
        default=[],
        metavar=("CASE", "CASE", "RATIO"),
        help="fail unless the first case is so many times as fast as the second",
    )
    parser.add_argument(
        "--output", metavar="FOLDER", default="benchmark", help="prepared data, logs, results.json (default: benchmark)"
    )


def _benchmark(options: argparse.Namespace) -> int:
    from bmscale.benchmark import benchmark
    from bmscale.benchmark.peer_case import parse_peers
    from bmscale.benchmark.setting import Setting

    if options.list:
        print("\n".join([*benchmark.KINDS.values(), "", "usual:", *benchmark.USUAL]))
        return 0
    if options.micro_batch_tokens is None:
        options.micro_batch_tokens = options.tokens_per_step
    for name in ("repeats", "steps", "warmup_steps", "tokens_per_step", "micro_batch_tokens", "max_seconds"):
        if not getattr(options, name) > 0:
            raise BadInput(f"--{name.replace('_', '-')}: must be above 0; got {getattr(options, name)}")
    cases = benchmark.matching(options.cases)
    ratios = benchmark.parse_ratios(options.at_least)
    setting = Setting(
        Path(options.output),
        options.corpus,
        options.warmup_steps,
        options.steps,
        options.tokens_per_step,
        options.micro_batch_tokens,
        options.max_seconds,
        parse_peers(options.peer),
    )
    benchmark.check(setting, cases, ratios)
    found = benchmark.benchmark(setting, cases, options.repeats)
    lines, reached = benchmark.ratio_lines(found, ratios)
    print("\n".join([benchmark.table(found), *([""] if lines else []), *lines]))
    whole = all(len(measured) == options.repeats for measured in found.values())
    return 0 if reached and whole else 1


def _add_plan(commands: Commands) -> None:
    parser = _add(
        commands,
        "plan",
        "before a run: will it fit, how fast, which ZeRO stage, what will it cost; with the files to run it",
        _plan,
    )
    _add_experiment(parser)
    parser.add_argument("--gpu", metavar="NAME", help="h100, h200, b200, a100-80, v100, …, cpu (default: h100)")
    parser.add_argument("--gpus", type=int, metavar="N", help="accelerators of a node (default: of the usual node)")
    parser.add_argument("--nodes", type=int, metavar="N", help="default: 1")
    parser.add_argument("--ram-gib", type=float, metavar="GIB", help="RAM of a node (default: of the usual node)")
    parser.add_argument("--nvme-gib", type=float, metavar="GIB", help="local disk of a node; 0 is none")
    parser.add_argument(
        "--this-machine",
        action="store_true",
        help="measure this machine, which is done where no other is described; --gpus, --ram-gib and --nvme-gib take "
        "less of it",
    )
    parser.add_argument("--target-tokens", metavar="10Gt", help="what it costs (default: training.max_steps)")
    parser.add_argument("--price", type=float, metavar="X", help="of an accelerator hour, in any unit")
    parser.add_argument("--json", action="store_true", help="everything, for programs")
    parser.add_argument("--plot", metavar="FILE", help="memory and scaling as a picture, .png or .svg")
    parser.add_argument("--write", metavar="FOLDER", help="overrides, DeepSpeed JSON, Accelerate YAML, sbatch script")


def _plan(options: argparse.Namespace) -> int:
    from bmscale.cluster.submit import fill_in
    from bmscale.experiment import read_experiment
    from bmscale.planning import charts, disk, files, hardware, plan, table
    from bmscale.planning.workload import Workload

    experiment = read_experiment(options.config, options.overrides)
    if options.plot:
        charts.check_path(Path(options.plot))
    tokens = plan.parse_tokens(options.target_tokens) if options.target_tokens else None
    gpu, gpus, nodes, ram, nvme = (getattr(options, name) for name in ("gpu", "gpus", "nodes", "ram_gib", "nvme_gib"))
    if options.this_machine and not (gpu is None and nodes is None):
        raise BadInput("--this-machine: must stand without --gpu and --nodes; got both")
    if options.this_machine or all(value is None for value in (gpu, gpus, nodes, ram, nvme)):
        place = disk.place(experiment.training.offload_folder, experiment.run_folder.path)
        machine = hardware.measure(ranks=gpus, folder=place).with_sizes(ram, nvme)
    else:
        card = hardware.find_accelerator(gpu or "h100")
        machine = hardware.Machine.of(card, gpus, 1 if nodes is None else nodes, ram_gib=ram, nvme_gib=nvme)
    found = plan.make(Workload.of(experiment, on_cpu=machine.accelerator.is_cpu), machine)
    if tokens is None and experiment.training.max_steps is not None:
        tokens = experiment.training.max_steps * found.ways[0].step.tokens
    costs = None if tokens is None else plan.cost(found, found.ways[0], tokens, options.price)
    print(json.dumps(plan.to_dict(found, costs), indent=2) if options.json else table.to_text(found, costs))
    if options.plot:
        charts.draw(found, Path(options.plot))
    if found.chosen is None:
        return 1
    if options.write:
        folder = Path(options.write)
        texts = files.contents(found, found.chosen, folder)
        words = [options.config, *options.overrides, *texts[files.OVERRIDES].split()]
        texts[files.SCRIPT] = fill_in(words, files.sbatch_options(found), found.machine.gpus)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        log.info("written to %s: %s", folder, ", ".join(texts))
    return 0


CHECKPOINT_ACTIONS = {
    "list": "print a line of JSON for each state: its steps, its size, what saved it",
    "verify": "read every state and compare its hashes; 1 where one is damaged",
    "export": "write a model folder of one state, and print where",
    "prune": "remove all but the newest whole ones, and what damaged ones left; print what went",
}


def _add_checkpoint(commands: Commands) -> None:
    parser = _add(commands, "checkpoint", "look at the training states of a run, or make a model of one", _checkpoint)
    actions = "".join(f"\n  {action:<8}{text}" for action, text in CHECKPOINT_ACTIONS.items())
    parser.description = f"{parser.description}\n\nactions:{actions}"
    parser.add_argument("action", choices=CHECKPOINT_ACTIONS, metavar="ACTION", help="one of those above")
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/toy")
    parser.add_argument("--step", type=int, metavar="N", help="export: the state of this step (default: the newest)")
    parser.add_argument("--to", metavar="OUT", help="export: the folder to write (default: RUN/model/state-NNNNNNNN)")
    parser.add_argument("--ema", action="store_true", help="export: the running mean of the weights")
    parser.add_argument("--keep", type=int, metavar="N", help="prune: how many stay (default: training.keep_states)")


def _checkpoint(options: argparse.Namespace) -> int:
    from bmscale.engine.engine import AVERAGE, STATE_KINDS
    from bmscale.experiment import RunFolder
    from bmscale.training import checkpoint, record
    from bmscale.training.models import export_state

    for name, action in {"step": "export", "to": "export", "ema": "export", "keep": "prune"}.items():
        if getattr(options, name) not in (None, False) and options.action != action:
            raise BadInput(f"--{name}: is an option of {action}; leave it out of {options.action}")
    run = RunFolder(Path(options.run))
    experiment = record.read_experiment(run)
    states, damaged = checkpoint.list_states(run.states), False
    own = record.fingerprint(record.read(run).identity)
    if not states and options.action in ("list", "verify"):
        raise BmscaleError(f"{run.states}: holds no training state")
    if options.action == "list":
        found: list[object] = [checkpoint.summary(state) for state in states]
    elif options.action == "verify":
        problems = {state.name: checkpoint.verify(state) for state in states}
        damaged = any(problems.values())
        found = [{"state": name, "whole": not wrong, "problems": wrong} for name, wrong in problems.items()]
    elif options.action == "prune":
        keep = experiment.training.keep_states if options.keep is None else options.keep
        found = [path.name for path in checkpoint.prune(run.states, keep, own)]
    else:
        state = checkpoint.choose(run.states, options.step)
        out = Path(options.to) if options.to else run.models / state.name.replace("step", "state")
        export_state(run, state, out, AVERAGE if options.ema else STATE_KINDS[0])
        found = [str(out)]
    for row in found:
        print(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False))
    return int(damaged)


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--beam-size", type=int, help="hypotheses kept; 1 is greedy")
    parser.add_argument("--length-penalty", type=float, help="exponent of the length; above 1 favours long ones")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")


def _with_given(search: "SearchOptions", options: argparse.Namespace) -> "SearchOptions":
    """The options of the search with what the command line gave."""
    given = {"beam_size": options.beam_size, "length_penalty": options.length_penalty}
    return replace(search, **{name: value for name, value in given.items() if value is not None})


def _add_evaluate(commands: Commands) -> None:
    parser = _add(
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
    _add_which(parser)
    _add_search(parser)


def _add_which(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="NAME",
        default="best",
        help="which folder of RUN/model: best, last, average, step-00000500 (default: best)",
    )


def _evaluate(options: argparse.Namespace) -> None:
    from bmscale.config import Document, validate
    from bmscale.evaluation.evaluate import evaluate
    from bmscale.evaluation.report import write_report_or_warn
    from bmscale.experiment import RunFolder, TranslationEvaluationConfig
    from bmscale.inference.translator import SearchOptions
    from bmscale.training import record

    run = RunFolder(Path(options.run))
    experiment = record.read_experiment(run).model_copy(update={"run": str(run.path)})
    config = experiment.evaluation
    # A test file is read as the validation data is: the same columns and keys.
    origin = {"name", "path", "source_path", "target_path", "dataset", "subset", "revision", "toy", "format", "split"}
    reading = experiment.data.valid[0].model_dump(exclude=origin, exclude_unset=True)
    tests = [
        validate(experiment.corpus, Document({**reading, "path": file}, {(): "--test"})) for file in options.test or []
    ]
    search = None
    if isinstance(config, TranslationEvaluationConfig):
        search = SearchOptions(config.beam_size, config.length_penalty, config.max_batch_tokens)
        search = _with_given(search, options)
    elif options.beam_size is not None or options.length_penalty is not None:
        raise BadInput(f"--beam-size, --length-penalty: are of translation; {run.path} is of {experiment.task}")
    results = evaluate(experiment, tests or config.test, which=options.model, options=search, device=options.device)
    print(json.dumps(results, indent=2, ensure_ascii=False))
    write_report_or_warn(run)


def _add_report(commands: Commands) -> None:
    parser = _add(commands, "report", "write RUN/report.html: curves, scores, samples, data and model cards", _report)
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/toy; the run may be under way")


def _report(options: argparse.Namespace) -> None:
    from bmscale.evaluation.report import write_report
    from bmscale.experiment import RunFolder

    print(write_report(RunFolder(Path(options.run))))


def _add_compare(commands: Commands) -> None:
    parser = _add(commands, "compare", "test whether translations differ by more than chance", _compare)
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
    _add_which(parser)
    _add_search(parser)


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
            with_given=lambda search: _with_given(search, options),
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


def _add_average(commands: Commands) -> None:
    parser = _add(commands, "average", "average the parameters of models, those of a run or any", _average)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="one run folder, or the model folders")
    parser.add_argument("--last", type=int, metavar="N", help="of a run: the newest N of evaluation.keep_models")
    parser.add_argument("--best", type=int, metavar="N", help="of a run: the best N by evaluation.select")
    parser.add_argument("--to", metavar="OUT", help="the model folder to write (default for a run: RUN/model/average)")


def _average(options: argparse.Namespace) -> None:
    from bmscale.experiment import RunFolder
    from bmscale.model.average import average_models
    from bmscale.training import kept_models

    folders, out = [Path(folder) for folder in options.folders], options.to
    run = RunFolder(folders[0])
    if options.last is not None or options.best is not None or (len(folders) == 1 and run.record.is_file()):
        if len(folders) > 1:
            raise BadInput(f"--last, --best: must go with one run folder; got {len(folders)} folders")
        folders = kept_models.choose(run, last=options.last, best_by=options.best)
        out = out or run.average
    if out is None:
        raise BadInput("--to: must name the folder to write when model folders are averaged; it was not given")
    averaged = average_models(folders, out)
    print(json.dumps({"model": str(out), "averaged": averaged}, indent=2, ensure_ascii=False))


def _add_translate(commands: Commands) -> None:
    parser = _add(commands, "translate", "translate standard input to standard output, one sentence a line", _translate)
    parser.add_argument("model", metavar="MODEL", help="a model folder, such as runs/toy/model/best")
    parser.add_argument("--to", metavar="CODE", help="language to translate into, for a model of several")
    parser.add_argument(
        "--n-best", type=int, metavar="N", help="N translations a line as `index ||| translation ||| score`, best first"
    )
    parser.add_argument(
        "--prefixes", metavar="FILE", help="beginnings that the translations must have, one a line, empty for none"
    )
    parser.add_argument(
        "--score",
        action="store_true",
        help="translate nothing: read `source TAB target`, write `log-probability TAB tokens` (nats, </s> counted)",
    )
    _add_search(parser)


def _translate(options: argparse.Namespace) -> None:
    from bmscale.data.corpus import read_lines
    from bmscale.inference.lines import n_best_lines, scored_lines
    from bmscale.inference.translator import SearchOptions, Translator

    searched = ("n_best", "prefixes", "beam_size", "length_penalty")
    given = [f"--{name.replace('_', '-')}" for name in searched if getattr(options, name) is not None]
    if options.score and given:
        raise BadInput(f"--score: scores the targets that it is given and searches for none; leave {given[0]} out")
    search = vars(_with_given(SearchOptions(), options))
    translator = Translator.from_pretrained(options.model, device=options.device).into(options.to)
    # Bytes that are not UTF-8 must not end a pipe of millions of lines: they become U+FFFD.
    lines = (line.decode("utf-8", errors="replace").rstrip("\r\n") for line in sys.stdin.buffer)
    chunk = 1 if sys.stdin.isatty() else 512
    prefixes = None if options.prefixes is None else read_lines(Path(options.prefixes))
    if options.score:
        output = scored_lines(translator, lines, chunk_lines=chunk)
    elif options.n_best is not None:
        output = n_best_lines(translator, lines, options.n_best, prefixes=prefixes, chunk_lines=chunk, **search)
    else:
        output = translator.translate_stream(lines, prefixes=prefixes, chunk_lines=chunk, **search)
    for line in output:
        sys.stdout.buffer.write(line.encode("utf-8", errors="replace") + b"\n")
        sys.stdout.buffer.flush()


def _add_generate(commands: Commands) -> None:
    parser = _add(
        commands,
        "generate",
        "write on from prompts with a language model: standard input, one prompt a line, or --prompt. "
        "One prompt's text is shown as it is written, those of several as a JSON object a line",
        _generate,
    )
    parser.add_argument("model", metavar="MODEL", help="a model folder, such as runs/toy/model/best")
    parser.add_argument("--prompt", metavar="TEXT", help="the one prompt; may be empty")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="most tokens of a text (default: 100)")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 takes the most probable token (default: 1)")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K most probable tokens (default: all)")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the most probable tokens of this share (default: 0.95)"
    )
    parser.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="above 1 avoids what was said before (default: 1)"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="a prompt and a seed give one text, in any company (default: 0)"
    )
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="texts a prompt (default: 1)")
    parser.add_argument("--json", action="store_true", help='{"prompt": …, "text": …} a line, for one prompt too')
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")


def _generate(options: argparse.Namespace) -> None:
    from itertools import chain, islice

    from bmscale.inference.generator import Generator, check_samples
    from bmscale.inference.sampling import SamplingOptions

    names = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    sampling = SamplingOptions(**given)
    check_samples(options.samples, sampling)
    generator = Generator.from_pretrained(options.model, device=options.device)
    prompts = _stdin_lines() if options.prompt is None else iter([options.prompt])
    at_terminal = options.prompt is None and sys.stdin.isatty()
    first = [] if at_terminal else list(islice(prompts, 2))
    prompts = chain(first, prompts)
    if options.json or len(first) > 1:
        chunk = 1 if at_terminal else 64
        for prompt, texts in generator.stream_lines(prompts, sampling, samples=options.samples, chunk_prompts=chunk):
            for found in texts:
                _write(json.dumps({"prompt": prompt, "text": found.text}, ensure_ascii=False) + "\n")
        return
    for prompt in prompts:
        for sample in range(options.samples):
            _write("---\n" if sample else "")
            generator.stream(prompt, sampling, out=_write, sample=sample)
            _write("\n")


def _add_predict(commands: Commands) -> None:
    parser = _add(
        commands, "predict", "label standard input, one text a line, as `label TAB probability` a line", _predict
    )
    parser.add_argument("model", metavar="MODEL", help="the model folder of a classifier")
    parser.add_argument("--top", type=int, default=1, metavar="N", help="the N most probable labels, all in one line")
    parser.add_argument("--json", action="store_true", help='{"text": …, "labels": [{"label": …, "probability": …}]}')
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")


def _predict(options: argparse.Namespace) -> None:
    from bmscale.inference.classifier import Classifier

    classifier = Classifier.from_pretrained(options.model, device=options.device)
    cut = 0
    chunk = 1 if sys.stdin.isatty() else 512
    for text, found in classifier.predict_stream(_stdin_lines(), options.top, chunk_texts=chunk):
        cut += found.was_cut
        ranked = [(label, round(p, 6)) for label, p in zip(found.labels, found.probabilities, strict=True)]
        if options.json:
            labels = [{"label": label, "probability": probability} for label, probability in ranked]
            _write(json.dumps({"text": text, "labels": labels}, ensure_ascii=False) + "\n")
        else:
            _write("\t".join(f"{label}\t{probability:.6f}" for label, probability in ranked) + "\n")
    if cut:
        longest = classifier.max_tokens
        log.warning("texts that were cut: %d; the model reads %d tokens of a text, <s> and </s> counted", cut, longest)


def _stdin_lines() -> Iterator[str]:
    """Lines of standard input; bytes that are not UTF-8 must not end a long pipe, they become U+FFFD."""
    return (line.decode("utf-8", errors="replace").rstrip("\r\n") for line in sys.stdin.buffer)


def _write(text: str) -> None:
    sys.stdout.buffer.write(text.encode("utf-8", errors="replace"))
    sys.stdout.buffer.flush()
