"""Before a training: plan, doctor, benchmark."""

import argparse
import json
import logging
import math
import signal
from pathlib import Path

from bmscale.commands.arguments import Commands, add, add_experiment, check_file, check_folder
from bmscale.errors import BadInput

log = logging.getLogger("bmscale")


def add_plan(commands: Commands) -> None:
    """`bmscale plan`."""
    parser = add(
        commands,
        "plan",
        "before a run: will it fit, how fast, which ZeRO stage, what will it cost; with the files to run it",
        _plan,
    )
    add_experiment(parser, required=False)
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
    parser.add_argument(
        "--verify",
        nargs="*",
        metavar="NAME",
        help="without CONFIG: predict short real trainings, measure them on this machine and print both; only those "
        "whose names begin so (about a quarter of an hour for all, and 5 GiB of RAM)",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="of --verify: steps that are timed (default: 5)")
    parser.add_argument("--warmup-steps", type=int, metavar="N", help="of --verify: steps before them (default: 2)")


def _verify(options: argparse.Namespace) -> int:
    from bmscale.benchmark import prediction

    if options.config is not None:
        raise BadInput(f"--verify: must stand without CONFIG; got '{options.config}'")
    unused = ("gpu", "gpus", "nodes", "this_machine", "target_tokens", "price", "ram_gib", "nvme_gib", "plot", "write")
    for name in unused:
        if getattr(options, name):
            raise BadInput(f"--{name.replace('_', '-')}: does not go with --verify, which measures this machine")
    steps = {"warmup_steps": 2, "steps": 5}
    for name in steps:
        given = getattr(options, name)
        if given is not None and not given > 0:
            raise BadInput(f"--{name.replace('_', '-')}: must be above 0; got {given}")
        steps[name] = given or steps[name]
    rows = []
    try:
        for row in prediction.verify(prediction.choose(options.verify), steps["warmup_steps"], steps["steps"]):
            log.info("%s: memory %+.1f %%, step %.2f s", row.run.name, 100 * row.memory_error, row.seconds)
            rows.append(row)
    finally:  # minutes of measuring are not lost with a run that fails
        if rows and options.json:
            print(json.dumps({"runs": [row.to_dict() for row in rows], **prediction.summary(rows)}, indent=2))
        elif rows:
            print(prediction.table(rows))
    return 0


def _plan(options: argparse.Namespace) -> int:
    from bmscale.cluster.submit import fill_in
    from bmscale.experiment import read_experiment
    from bmscale.planning import charts, check, disk, files, hardware, plan, table
    from bmscale.planning.workload import Workload

    if options.verify is not None:
        return _verify(options)
    for name in ("steps", "warmup_steps"):
        if getattr(options, name) is not None:
            raise BadInput(f"--{name.replace('_', '-')}: goes with --verify only")
    if options.config is None:
        raise BadInput("CONFIG: must be given, as a YAML file or the name of a preset such as toy")
    experiment = read_experiment(options.config, options.overrides)
    if options.plot is not None:
        charts.check_path(Path(options.plot))
        check_file("--plot", options.plot)
    if options.write is not None:
        check_folder("--write", options.write)
    tokens = plan.parse_tokens(options.target_tokens) if options.target_tokens else None
    if options.price is not None and not 0 <= options.price < math.inf:
        raise BadInput(f"--price: must be a number from 0 on; got {options.price:g}")
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
    found = check.beside(found, experiment)
    if tokens is None and experiment.training.max_steps is not None:
        tokens = experiment.training.max_steps * found.ways[0].step.tokens
    costs = None if tokens is None else plan.cost(found, found.ways[0], tokens, options.price)
    print(json.dumps(plan.to_dict(found, costs), indent=2) if options.json else table.to_text(found, costs))
    if options.plot is not None:
        charts.draw(found, Path(options.plot))
        log.info("written to %s", options.plot)
    if found.chosen is None:
        if options.write:
            log.warning("nothing fits, so nothing is written to %s", options.write)
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
        if costs is not None and options.target_tokens:
            more = f"training.max_steps={costs.steps} training.save_every_steps={costs.checkpoint_steps}"
            log.info("they train as long as %s says; for %s: %s", options.config, options.target_tokens, more)
    return 0


def add_doctor(commands: Commands) -> None:
    """`bmscale doctor`."""
    parser = add(
        commands,
        "doctor",
        "before a job: is the machine well, do ranks reach each other, does the engine do what CONFIG asks; plain, or "
        "under the launcher of the training",
        _doctor,
    )
    add_experiment(parser, required=False)
    parser.add_argument("--json", action="store_true", help="everything, for programs")
    parser.add_argument(
        "--seconds", type=float, default=120, metavar="S", help="for ranks to meet, and for a stage (default: 120)"
    )


def _doctor(options: argparse.Namespace) -> int:
    from bmscale.doctor.doctor import doctor

    return doctor(options.config, options.overrides, seconds=options.seconds, as_json=options.json)


def add_benchmark(commands: Commands) -> None:
    """`bmscale benchmark`."""
    parser = add(
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
        "--micro-batch-tokens",
        type=int,
        metavar="N",
        help="padded slots of a pass (default: four times --tokens-per-step, which takes a step whole)",
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
    # As Ctrl-C does: what was started ends before this does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from bmscale.benchmark import benchmark
    from bmscale.benchmark.peer_case import parse_peers
    from bmscale.benchmark.setting import Setting

    if options.list:
        print(benchmark.listed())
        return 0
    if options.micro_batch_tokens is None:
        options.micro_batch_tokens = 4 * options.tokens_per_step
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
    check_folder("--output", options.output)
    found = benchmark.benchmark(setting, cases, options.repeats)
    lines, reached = benchmark.ratio_lines(found, ratios)
    print("\n".join([benchmark.table(found), *([""] if lines else []), *lines]))
    whole = all(len(measured) == options.repeats for measured in found.values())
    return 0 if reached and whole else 1
