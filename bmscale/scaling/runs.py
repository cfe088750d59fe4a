"""Running a study: its trunks and branches as ordinary trainings, one process each, one after the other.

Everything is read from the run folders, so the same command goes on wherever it ended: a run that is done is skipped,
one that was begun resumes. A training that fails does not end the study; its branches wait for the next start.
"""

import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from bmscale.data.prepare import prepare
from bmscale.errors import BadInput, BmscaleError, exit_code, message
from bmscale.experiment import Experiment, RunFolder, read_experiment
from bmscale.scaling.outcome import check_counted, final_loss, irreducible, is_done, write_tables
from bmscale.scaling.study import Cell, Study, Trunk
from bmscale.training import checkpoint, lock, record

log = logging.getLogger("bmscale")

PREEMPTED = record.exit_code("preempted")
# What may differ between a run and what the study makes of it now: a trunk grows with the budgets, a folder is moved
# (what is in it is compared when a run begins), another machine has other resources.
_LENGTHS = ("training.max_steps", "training.branch_steps", "evaluation.every_steps")
_PLACES = ("name", "run", "branch_from", "data.directory")
_RESOURCES = (
    *("activation_checkpointing", "deepspeed", "offload_folder", "trackers", "log_every_steps", "save_every_steps"),
    *("keep_states", "save_in_background", "max_failed_saves", "hang_minutes", "max_micro_batch_tokens"),
)
_FREE = (*_PLACES, *(f"training.{key}" for key in _RESOURCES), "evaluation.max_batch_tokens")


class Ended(BmscaleError):
    """The study was asked to end; what is done stays."""


def run_study(study: Study, only: str | None = None, number: int | None = None, *, holdouts: bool = False) -> bool:
    """Prepare the data and train all cells that are asked for. Returns whether all of them are done.

    `only` is a pattern for names of cells, such as `w32*`; `number` takes one trunk, counted from 0; hold-outs are
    trained with `holdouts` alone. Raises BadInput where a run was begun otherwise than the study says now.
    """
    with _signals_passed_on() as child:
        with child.leaving_at_once():
            prepare(study.plain.data)  # budgets are counted from the lengths of its texts
        chosen = choose(study, only, number, holdouts=holdouts)
        check_counted(study)
        _write_config(study)
        progress = Progress(study, chosen)
        try:
            for trunk, cells in chosen:
                _run_trunk(study, trunk, cells, progress, child)
        finally:  # what was done before a study is ended counts
            count = write_tables(study)
    undone = [cell.name for _, cells in chosen for cell in cells if not is_done(study, cell)]
    log.info("%s: %d cells; %d of those asked for are not done", study.table, count, len(undone))
    return not undone


def choose(study: Study, only: str | None, number: int | None, *, holdouts: bool) -> list[tuple[Trunk, list[Cell]]]:
    """The trunks, and of each the cells, that are asked for. Raises BadInput where there is none."""
    trunks = study.trunks
    if number is not None and not 0 <= number < len(trunks):
        raise BadInput(f"--trunk: must be 0 to {len(trunks) - 1}, of which the study has so many; got {number}")
    chosen = [
        (trunk, [cell for cell in trunk.cells if _is_wanted(cell, only, holdouts)])
        for index, trunk in enumerate(trunks)
        if number in (None, index)
    ]
    chosen = [(trunk, cells) for trunk, cells in chosen if cells]
    if not chosen and number is None:
        names = ", ".join(cell.name for trunk in trunks for cell in trunk.cells[:1])
        raise BadInput(f"--only: must be the pattern of a cell's name, such as {names}; got '{only}'")
    return chosen


def _is_wanted(cell: Cell, only: str | None, holdouts: bool) -> bool:
    return (holdouts or cell.kind != "holdout") and (only is None or fnmatch(cell.name, only))


def _run_trunk(study: Study, trunk: Trunk, cells: list[Cell], progress: "Progress", child: "_Child") -> None:
    """The trunk as far as cells need it, then each of them; then the states that nobody needs any more go."""
    left = [cell for cell in cells if not is_done(study, cell)]
    for cell in cells:
        if cell not in left:
            progress.skip(cell.name)
            _check_same(study.cell_experiment(trunk, cell))
            _slim(study, cell)

    run = study.run_folder(trunk.name)

    def has_beginning(cell: Cell) -> bool:
        state = run.states / checkpoint.state_name(cell.branch_step)
        return cell.kind == "from_scratch" or has_begun(cell) or checkpoint.is_whole(state)

    def has_begun(cell: Cell) -> bool:
        """With a state of its own a branch needs the trunk no more."""
        return bool(checkpoint.list_states(study.run_folder(cell.name).states))

    missing = [cell.branch_step for cell in left if not has_beginning(cell)]
    if not missing:
        progress.skip(trunk.name)
    else:
        # Never shorter than it was, and ready for all branches that are passed on the way.
        steps = [cell.branch_step for cell in trunk.branches if cell in left or is_done(study, cell)]
        experiment = study.trunk_experiment(trunk, max([*steps, _go_back(run, min(missing))]))
        progress.run(trunk.name, trunk.flops_per_step, experiment, study, child)
    for cell in left:
        if has_beginning(cell):
            progress.run(cell.name, trunk.flops_per_step, study.cell_experiment(trunk, cell), study, child)
            _slim(study, cell)
            write_tables(study)
        else:
            log.warning(
                "%s: cannot begin: %s did not come to a state of step %d; the same command tries again",
                *(cell.name, trunk.name, cell.branch_step),
            )
    _prune(study, trunk)


def _go_back(run: RunFolder, step: int) -> int:
    """Let a trunk that went past a beginning, which is not there or damaged, come by it again.

    The states from there on are set aside, so that it goes on from the one before; where there is none, the run is, and
    begins anew. Returns the step that it had come to, 0 where nothing is in the way.
    """
    states = checkpoint.list_states(run.states)
    problems = [problem for state in states for problem in checkpoint.verify(state)]
    if any(checkpoint.UNREADABLE in problem for problem in problems) or lock.is_anothers(run):
        return 0  # the training says what is the matter
    past = [state for state in states if state.name >= checkpoint.state_name(step)]
    if any(checkpoint.is_whole(state) for state in states if state not in past):
        for state in past:
            log.warning("%s: set aside: the trunk must come by step %d again", state, step)
            checkpoint.set_aside(state)
    elif states or (run.states / checkpoint.POINTER).exists():
        aside = next(path for n in range(1, 1000) if not (path := run.path.with_name(f"{run.path.name}.{n}")).exists())
        log.warning("%s: has no whole state before step %d: it begins anew, and is kept as %s", run.path, step, aside)
        run.path.rename(aside)
    return int(past[-1].name.partition("-")[2]) if past else 0


def _slim(study: Study, cell: Cell) -> None:
    """Leave one model of a cell that is done: its best and last are the same, and nothing goes on with its states."""
    run = study.run_folder(cell.name)
    if is_done(study, cell) and run.best.is_dir():
        for folder in (run.states, run.last):
            shutil.rmtree(folder, ignore_errors=True)


def _prune(study: Study, trunk: Trunk) -> None:
    """Remove the states that branches began with, but those of branches to come and the newest two."""
    run = study.run_folder(trunk.name)
    if not run.record.is_file():
        return
    waiting = [cell.branch_step for cell in trunk.branches if not is_done(study, cell)]
    checkpoint.prune(run.states, 2, record.fingerprint(record.read(run).identity), waiting)


# -- one training


class _Child:
    """The training that runs now; signals go to it."""

    def __init__(self) -> None:
        self.process: Any = None
        self.ending = self._at_once = False

    @contextmanager
    def leaving_at_once(self) -> Iterator[None]:
        """Around work that nothing is saved of: a signal raises Ended there."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def handle(self, number: int, frame: object) -> None:
        """SIGTERM and SIGUSR1 of a scheduler: the training saves and leaves, then the study ends."""
        self.ending = True
        if self._at_once:
            self._at_once = False  # a second signal must not break into the way out
            raise self._ended()
        if self.process is not None and self.process.pid and self.process.is_alive():
            os.kill(self.process.pid, number)

    def train(self, experiment: Path, output: Path) -> int:
        """Run one experiment to its end. Returns its exit code. Raises Ended, KeyboardInterrupt afterwards."""
        output.parent.mkdir(parents=True, exist_ok=True)
        self.process = _context().Process(target=train_experiment, args=(str(experiment), str(output)))
        if self.ending:  # the signal came while nothing trained
            raise self._ended()
        self.process.start()
        if self.ending and self.process.is_alive():  # it came before there was a process to pass it to
            os.kill(self.process.pid, signal.SIGTERM)
        try:
            self.process.join()
        except KeyboardInterrupt:  # of the terminal, or sent to this process alone: the training saves and leaves
            if self.process.is_alive():
                os.kill(self.process.pid, signal.SIGTERM)
            self.process.join()
            raise
        if self.ending:
            raise self._ended()
        return int(self.process.exitcode)

    @staticmethod
    def _ended() -> Ended:
        return Ended("the study was asked to end; the same command goes on with it", PREEMPTED)


def _context() -> Any:
    """Processes begin as copies of one that has imported everything, which saves seconds each; where there is an
    accelerator, whose drivers such a copy may not share, they begin anew."""
    if any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")) or sys.platform == "darwin":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bmscale.scaling.runs", "bmscale.training.train"])
    return context


def train_experiment(path: str, output: str) -> None:
    """What `bmscale train` does with an experiment, in a process of its own whose output goes to a file."""
    from bmscale.training import ending
    from bmscale.training.train import train

    with open(output, "ab", buffering=0) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        experiment = read_experiment(path, [])
        ended = ending.of(experiment.run_folder, lambda: train(experiment))
    except (BmscaleError, KeyboardInterrupt, MemoryError, OSError) as error:
        print(f"bmscale: error: {message(error)}", file=sys.stderr, flush=True)
        sys.exit(exit_code(error))
    sys.exit(record.exit_code(ended.kind))


def _follow_parent() -> None:
    """Save and leave when the study's process is gone, killed ones included."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _signals_passed_on() -> Iterator[_Child]:
    child = _Child()
    before = {number: signal.signal(number, child.handle) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield child
    finally:
        for number, handler in before.items():
            if handler is not None:  # one that C set, which Python cannot put back
                signal.signal(number, handler)


# -- what is written


def _write_config(study: Study) -> None:
    """study.yaml: the study as it was resolved, for people and for later commands."""
    values = study.config.model_dump() | {"base": None, "experiment": study.resolved_experiment()}
    _write_yaml(study.folder / "study.yaml", values)


def _write_yaml(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{os.getpid()}.tmp")
    temporary.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    temporary.replace(path)


def _check_same(experiment: Experiment) -> None:
    """Raises BadInput where the run was made of another experiment, naming the keys."""
    run = experiment.run_folder
    if not run.record.is_file():
        return
    was = record.read_experiment(run).model_dump()  # with the keys that came after it
    trunk = experiment.training.schedule.type == "constant"
    changed = [
        f"{key}: was {old!r:.80}, now {new!r:.80}"
        for key, old, new in record.differences(was, experiment.model_dump())
        if not (key.startswith(_FREE) or (trunk and key.startswith(_LENGTHS)))
    ]
    if changed:
        raise BadInput(
            f"{run.path}: was made when the study was another: {'; '.join(changed[: record.MOST_SHOWN])}. Choose "
            "another --folder, or give the study its values back"
        )


class Progress:
    """How far a study is, and how long it still takes: by the speed that its runs had so far."""

    def __init__(self, study: Study, chosen: list[tuple[Trunk, list[Cell]]]) -> None:
        self._begun = time.monotonic()
        self._left: dict[str, float] = {}
        """FLOP of each run to come, by name."""
        for trunk, cells in chosen:
            branches = [cell for cell in cells if cell.kind != "from_scratch" and not is_done(study, cell)]
            if branches:
                self._left[trunk.name] = trunk.flops_per_step * max(cell.branch_step for cell in branches)
            for cell in cells:
                own = cell.steps - (0 if cell.kind == "from_scratch" else cell.branch_step)
                self._left[cell.name] = trunk.flops_per_step * own
        self._of, self._done = len(self._left), 0
        self._flops = self._seconds = 0.0

    def skip(self, name: str) -> None:
        """The run was done before."""
        self._done += self._left.pop(name, None) is not None

    def run(self, name: str, flops_per_step: float, experiment: Experiment, study: Study, child: _Child) -> bool:
        """Train one experiment, and say what became of it. Returns whether it is done."""
        _check_same(experiment)
        path = study.folder / "experiments" / f"{name}.yaml"
        _write_yaml(path, experiment.model_dump(exclude_unset=True))
        output = study.folder / "output" / f"{name}.txt"
        log.info("[%d/%d] %s: %s steps", self._done + 1, self._of, name, f"{experiment.training.max_steps:,}")
        begun = time.monotonic()
        code = child.train(path, output)
        seconds = time.monotonic() - begun
        self._done += 1
        self._flops += self._left.pop(name, 0.0)
        self._seconds += seconds
        if code:
            last = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            log.warning("%s: ended with code %d after %.0f s: %s (%s)", name, code, seconds, "".join(last), output)
            return False
        found = final_loss(experiment.run_folder, experiment.training.max_steps or 0) or {}
        log.info("%s: loss %.4f, %.0f s; %s", name, found.get("loss", float("nan")), seconds, self._to_come())
        return True

    def _to_come(self) -> str:
        flops = sum(self._left.values())
        if not flops or not self._flops:
            return f"{self._of - self._done} runs to come"
        minutes = flops / self._flops * self._seconds / 60
        return f"{self._of - self._done} runs to come, about {minutes:.0f} min"


def savings(chosen: list[tuple[Trunk, list[Cell]]]) -> tuple[float, float]:
    """FLOP of the runs as they are made, and of the same cells each from scratch (those of the check left out)."""
    made = scratch = 0.0
    for trunk, cells in chosen:
        branches = [cell for cell in cells if cell.kind != "from_scratch"]
        steps = max((cell.branch_step for cell in branches), default=0)
        steps += sum(cell.steps - cell.branch_step for cell in branches)
        made += trunk.flops_per_step * steps
        scratch += sum(cell.flops for cell in branches)
    return made, scratch


def describe(study: Study, chosen: list[tuple[Trunk, list[Cell]]]) -> Iterator[str]:
    """Lines for people: every trunk with its cells, and what they cost."""
    from bmscale.scaling.outcome import Parameters

    for trunk, cells in chosen:
        count = Parameters.of(study.shape(trunk.size))
        number = study.trunks.index(trunk)
        yield f"{number}  {trunk.name}: {count.all:,} parameters, {trunk.warmup_steps} steps of warm-up"
        for cell in cells:
            tokens = cell.steps * study.tokens_per_step
            yield (
                f"   {cell.name:<28}{cell.kind:<13}{cell.steps:>8,} steps  {tokens:>10.3g} tokens  "
                f"{tokens / count.all:>8.1f} a parameter  {cell.flops:.2e} FLOP"
            )
    made, scratch = savings(chosen)
    if scratch:
        yield f"{made:.3g} FLOP, {1 - made / scratch:.0%} fewer than from scratch ({scratch:.3g})"
    known = irreducible(study) if (Path(study.plain.data.directory) / "manifest.json").is_file() else None
    if known:
        yield f"irreducible loss of the validation set: {known['drawn']:.5f} (expected {known['expected']:.5f})"
