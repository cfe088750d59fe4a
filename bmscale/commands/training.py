"""From text to a model: prepare, train, submit, checkpoint, average."""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from bmscale.commands.arguments import Commands, add, add_experiment
from bmscale.errors import BadInput, BmscaleError

log = logging.getLogger("bmscale")


def add_prepare(commands: Commands) -> None:
    """`bmscale prepare`."""
    parser = add(commands, "prepare", "clean text, train a tokenizer, write token shards", _prepare)
    add_experiment(parser)
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


def add_train(commands: Commands) -> None:
    """`bmscale train`."""
    parser = add(
        commands,
        "train",
        "train a model, or go on with the run; under `accelerate launch … -m bmscale train`, torchrun, or alone",
        _train,
    )
    add_experiment(parser)
    add_new_schedule(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="check experiment, data and disk, print the run folder, write nothing"
    )
    parser.add_argument(
        "--unchecked", action="store_true", help="train also what by `bmscale plan` cannot fit in memory or on the disk"
    )


def add_new_schedule(parser: argparse.ArgumentParser) -> None:
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
    from bmscale.cluster import preflight
    from bmscale.evaluation.report import write_report_or_warn
    from bmscale.planning.check import check
    from bmscale.training import ending, record
    from bmscale.training.train import train

    def checked() -> ending.Ending:
        if not options.unchecked:
            preflight.check_room(experiment)
            check(experiment)
        return train(experiment, new_schedule=options.new_schedule)

    run = experiment.run_folder
    ended = ending.of(run, checked)
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


def add_submit(commands: Commands) -> None:
    """`bmscale submit`."""
    parser = add(commands, "submit", "train in a SLURM job: fill in slurm/train.sh and give it to sbatch", _submit)
    parser.set_defaults(passes_on=True)  # other options are those of sbatch
    parser.allow_abbrev = False  # --gpus is one of them, and not short for --gpus-per-node
    add_experiment(parser)
    add_new_schedule(parser)
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


CHECKPOINT_ACTIONS = {
    "list": "print a line of JSON for each state: its steps, its size, what saved it",
    "verify": "read every state and compare its hashes; 1 where one is damaged",
    "export": "write a model folder of one state, and print where",
    "prune": "remove all but the newest whole ones, and what damaged ones left; print what went",
}


def add_checkpoint(commands: Commands) -> None:
    """`bmscale checkpoint`."""
    parser = add(commands, "checkpoint", "look at the training states of a run, or make a model of one", _checkpoint)
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
        staying = experiment.training.branch_steps
        found = [path.name for path in checkpoint.prune(run.states, keep, own, staying)]
    else:
        state = checkpoint.choose(run.states, options.step)
        out = Path(options.to) if options.to else run.models / state.name.replace("step", "state")
        export_state(run, state, out, AVERAGE if options.ema else STATE_KINDS[0])
        found = [str(out)]
    for row in found:
        print(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False))
    return int(damaged)


def add_average(commands: Commands) -> None:
    """`bmscale average`."""
    parser = add(commands, "average", "average the parameters of models, those of a run or any", _average)
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
