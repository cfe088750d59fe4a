"""Train an experiment: `accelerate launch --config_file launch/cpu_2proc.yaml -m bmscale train CONFIG`.

1. read the prepared data and plan the global steps;
2. check the run folder: a new run, or the same one to go on with;
3. start the ranks, build the model, load the newest whole training state;
4. step by step: train, log, validate, save; go back after divergence, leave when asked to;
5. leave model/best, model/last and the last state.
"""

import logging
import math
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bmscale.data.steps import Plan
from bmscale.engine import process_group
from bmscale.engine.engine import AVERAGE, Engine
from bmscale.engine.trackers import Trackers, choose_trackers
from bmscale.errors import BadInput, BmscaleError, Diverged
from bmscale.evaluation.loss import batch_loss
from bmscale.evaluation.validation import Validation
from bmscale.experiment import Experiment, RunFolder
from bmscale.model.config import MUP_BASE, TransformerConfig
from bmscale.model.init import initial_value
from bmscale.training import branch, checkpoint, kept_models, lock, ranks, record
from bmscale.training.ending import Ending
from bmscale.training.inheritance import Inheritance
from bmscale.training.label_data import LabelData
from bmscale.training.metrics import Metrics, Progress, Window, model_flops_utilisation
from bmscale.training.models import Models
from bmscale.training.optimizer import check_frozen, is_frozen, make_optimizer
from bmscale.training.pair_data import PairData
from bmscale.training.row_data import MaskedRowData, RowData
from bmscale.training.schedule import rate_factor
from bmscale.training.signals import Interrupted, Signals
from bmscale.training.spikes import SpikeDetector
from bmscale.training.standing import Standing
from bmscale.training.states import States
from bmscale.training.step_data import StepData, StepReader, TrainingData
from bmscale.training.watchdog import BUILDING, LOADING, Watchdog

log = logging.getLogger("bmscale")

DATA: dict[str, type[TrainingData]] = {
    "translation": PairData,
    "language_model": RowData,
    "masked_lm": MaskedRowData,
    "classification": LabelData,
}
"""What each task trains on."""

MOST_EPOCHS = 1_000_000
"""The steps before an epoch are counted epoch by epoch."""


def train(experiment: Experiment, *, new_schedule: bool = False) -> Ending:
    """Train, or go on with, the run of an experiment. Collective: every rank of the launcher calls it.

    Raises BadInput for a mistake in what was given, Diverged when the loss left the finite numbers for good.
    """
    training, run = experiment.training, experiment.run_folder
    data, plan, total_steps, inherited, config, identity = planned(experiment, new_schedule=new_schedule)
    trackers = choose_trackers(training.trackers)
    engine = Engine(training, run.path)
    with Signals(run, engine.rank) as signals, closing(engine):
        lock.take(run)
        # Again, now that nobody else can change the folder: another start may have made the run in between.
        resumes = record.check(run, identity, experiment, total_steps, new_schedule=new_schedule)
        own = record.fingerprint(record.read(run).identity if resumes else identity)
        _check_that_ranks_agree(run, identity)
        state = _newest_state(run, own, experiment.branch_from) if resumes else None
        if state is None:
            branch.check(experiment, identity)  # again: the other run may be at its states
        standing = checkpoint.read_manifest(state).standing if state else Standing()
        if standing.finished and (standing.data_step >= total_steps or _out_of_patience(experiment, standing)):
            log.info("%s: trained to its end already; nothing to do", run.path)
            return Ending("done", "trained")
        if engine.is_main:
            lock.sign(run)
            run.exit.unlink(missing_ok=True)
            ranks.clear(run)
            _log_to(run.log)
            begun = {"resumed_from": state.name if state else None}
            resources = {"world_size": engine.world_size, "engine": engine.describe(), "device": engine.device_name}
            record.write(run, experiment, identity, total_steps, resources | begun, data.provenance())
        process_group.barrier()  # from here on what is in the folder is of this start
        limit = None if training.hang_minutes is None else 60 * training.hang_minutes
        with Watchdog(run, engine.rank, engine.world_size, limit) as watchdog:
            process_group.barrier()  # every rank has its file, so one that goes missing is missed
            watchdog.at(BUILDING, 0)
            engine.moved = watchdog.moved
            build_model(engine, experiment, config, inherited)
            values, known = experiment.model_dump(), standing.trackers
            opened = Trackers(
                engine.accelerator, trackers, experiment.name, run.path, values, standing.data_step, known
            )
            loop = _Loop(experiment, engine, data, plan, config, total_steps, opened, signals, watchdog, own)
            loop.announce()
            return loop.run_steps(loop.resume(state) if state else loop.begin())


def planned(
    experiment: Experiment, *, new_schedule: bool
) -> tuple[TrainingData, Plan, int, Inheritance, TransformerConfig, dict[str, Any]]:
    """Data, plan, number of steps, what is inherited, shape and identity of a run. Reads only.

    Raises BadInput for all that one process can know to be wrong before the ranks start.
    """
    training, run = experiment.training, experiment.run_folder
    taken = {path.name for path in vars(run).values() if path.parent == run.path} | {"lock", "STOP", "SAVE"}
    if experiment.name in taken:  # trackers make a folder of the name
        raise BadInput(f"name: must not be one that the run folder uses itself; got '{experiment.name}'")
    data = DATA[experiment.task](experiment)
    plan = data.plan()
    if (training.max_epochs or 0) > MOST_EPOCHS:
        raise BadInput(f"training.max_epochs: must be at most {MOST_EPOCHS:,}; got {training.max_epochs:,}")
    total_steps = training.max_steps or plan.first_step_of_epoch(training.max_epochs or 0)
    inherited = Inheritance.of(experiment)
    config = inherited.shape(experiment, data.tokenizer, **data.model_options())
    data.check(config)
    with torch.device("meta"):  # names and shapes, and no memory
        model = experiment.model.task.model(config)
    inherited.check(model)
    check_frozen(model, training.freeze)
    identity = record.identity(experiment, data.manifest["data_hash"], _shape(config), branch.origin(experiment))
    record.check(run, identity, experiment, total_steps, new_schedule=new_schedule)
    branch.check(experiment, identity, total_steps)
    return data, plan, total_steps, inherited, config, identity


def _check_that_ranks_agree(run: RunFolder, identity: dict[str, Any]) -> None:
    """Raises BadInput on every rank when one of them sees another run or other data: nodes with disks of their own."""
    seen = process_group.gather_objects((identity, [state.name for state in checkpoint.list_states(run.states)]))
    other = next((rank for rank, found in enumerate(seen) if found != seen[0]), None)
    if other is not None:
        states = [", ".join(found[1]) or "no state" for found in (seen[other], seen[0])]
        raise BadInput(
            f"{run.path}: every rank must see the same run folder and the same prepared data; rank {other} sees "
            f"{states[0]}, rank 0 {states[1]}. Put both on a file system that all nodes share"
        )


def _newest_state(run: RunFolder, own: str, beginning: str | None = None) -> Path | None:
    """The state to go on from. Raises BadInput where the run had saved one and none is left: it never starts anew in
    silence. A branch begins anew at its `beginning`."""
    state = checkpoint.find_usable(run.states, run=own)
    if state is not None:
        return state
    metrics = Metrics(run.metrics, enabled=False)
    # Where the last save failed, model/last may be there without a state.
    ended = run.last.exists() and not metrics.holds("save_failed")
    if ended or metrics.holds("saved") or any(start.get("resumed_from") for start in record.read(run).starts):
        raise BadInput(
            f"{run.states}: holds no training state, and the run had saved one. Put it back, or choose another "
            "run=FOLDER to start anew"
        )
    if metrics.logged_steps():
        log.warning(
            "%s: no training state was ever saved: the run begins at %s, and forgets %d lines of metrics",
            *(run.path, beginning or "step 0", metrics.logged_steps()),
        )
    return None


def _out_of_patience(experiment: Experiment, standing: Standing) -> bool:
    """Whether early stopping has seen enough validations without a better one."""
    patience = experiment.training.early_stopping_patience
    return patience is not None and standing.stale_validations >= patience


def _log_to(path: Path) -> None:
    """Everything that the log shows goes into the run folder as well."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk must not end the training
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)


def build_model(engine: Engine, experiment: Experiment, config: TransformerConfig, inherited: Inheritance) -> None:
    """Make the model of an experiment on the engine's ranks."""
    training = experiment.training

    def make_model() -> nn.Module:
        model = experiment.model.task.model(config)
        if training.activation_checkpointing:
            model.activation_checkpointing_enable()
        return model

    def first_value(name: str, shape: torch.Size) -> torch.Tensor:
        kept = inherited.value(name)
        return initial_value(name, shape, training.seed, config) if kept is None else kept

    engine.build(make_model, first_value, partial(make_optimizer, config=training.optimizer, frozen=training.freeze))


def _shape(config: TransformerConfig) -> dict[str, Any]:
    """The model's options without what libraries add of their own."""
    noise = ["transformers_version", "architectures", "dtype", "_name_or_path"]
    if config.parametrization == "standard":  # so runs from before there was another one go on
        noise += ["parametrization", *MUP_BASE]
    return {key: value for key, value in config.to_diff_dict().items() if key not in noise}


def warn_of_the_end(experiment: Experiment, total_steps: int) -> None:
    """Say what comes at the end only, because it is wanted less often than there are steps."""
    for key, every, what in (
        ("training.save_every_steps", experiment.training.save_every_steps, "a training state is saved"),
        ("evaluation.every_steps", experiment.evaluation.every_steps, "the model is validated"),
    ):
        if every > total_steps:
            log.warning("%s at the end only: %s is %d, and there are %d steps", what, key, every, total_steps)


class _Loop:
    """The run in progress: everything the steps need; what a training state must hold of it is in the Standing."""

    def __init__(
        self,
        experiment: Experiment,
        engine: Engine,
        data: TrainingData,
        plan: Plan,
        config: TransformerConfig,
        total_steps: int,
        trackers: Trackers,
        signals: Signals,
        watchdog: Watchdog,
        own: str,
    ) -> None:
        self.trackers, self.signals, self.at = trackers, signals, watchdog.at
        self.experiment, self.engine, self.data, self.plan = experiment, engine, data, plan
        self.reader = StepReader(data, plan, config, engine.rank, engine.world_size, self.at)
        self.total_steps = total_steps
        self.run: RunFolder = experiment.run_folder
        self.metrics = Metrics(self.run.metrics, enabled=engine.is_main)
        self.samples = Metrics(self.run.samples, enabled=engine.is_main)
        self.validator, self.probe_batch = data.validator(engine), data.probe()
        self.loss_function = partial(batch_loss, label_smoothing=experiment.training.label_smoothing)
        self.states = States(
            self.run.states, engine, experiment.training, self.probe, self.empty_step, self.record, own
        )
        self.models = Models(experiment, engine, data, config, self.record)
        self.spikes = SpikeDetector(experiment.training.spikes) if experiment.training.spikes else None
        self.last_validation: Validation | None = None
        self.rate_factor = 0.0

    # -- the steps ---------------------------------------------------------------------------------------------------

    def run_steps(self, standing: Standing) -> Ending:
        """From `standing` to the end, to an early stop, or to where somebody asked the run to leave."""
        training = self.experiment.training
        self.progress = Progress(self.total_steps, standing.data_step, enabled=self.engine.is_main)
        self.window = Window(standing.window)
        self.judge_by(standing)
        try:
            standing = self.validate_if_due(standing)  # a run that was asked to leave while it validated
            self.signals.check()
            first = self.total_steps if _out_of_patience(self.experiment, standing) else standing.data_step
            for step_data in self.reader.steps(first, self.total_steps):
                standing = self.train_step(step_data, standing)
                if standing.skipped_in_a_row >= training.max_skipped_steps:
                    standing = self.roll_back(standing, f"{standing.skipped_in_a_row} steps in a row were skipped")
                standing = self.log_if_due(standing)
                standing = self.validate_if_due(standing)
                self.signals.poll()
                self.save_if_due(standing)
                self.window.start_clock()  # validating and saving are not the steps' time
                if self.signals.ending:
                    return self.leave(standing)
                if _out_of_patience(self.experiment, standing):
                    self.say_early_stop(standing)
                    break
            if standing.validated_step != standing.data_step:
                standing = self.validate(standing)
        except Interrupted:
            return self.leave(standing)
        finally:
            self.progress.close()
        return self.finish(standing)

    def train_step(self, step_data: StepData, standing: Standing) -> Standing:
        """One optimizer step."""
        schedule = self.experiment.training.schedule
        self.rate_factor = rate_factor(standing.optimizer_step, schedule, self.total_steps)
        step = standing.data_step + 1
        self.at("forward and backward", step)
        outcome = self.engine.train_step(
            [batch.to(self.engine.device) for batch in step_data.batches],
            self.loss_function,
            target_tokens=step_data.target_tokens,
            data_step=standing.data_step,
            rate_factor=self.rate_factor,
            before_step=lambda: self.at("optimizer step", step),
            refuse=self.spikes.is_spike if self.spikes else None,
        )
        self.at("between steps", step)
        seconds = standing.seconds + self.window.lap(step_data, outcome)
        self.progress.step(outcome.nll)
        standing = standing.after_step(step_data.target_tokens, skipped=outcome.skipped)
        if outcome.skipped:
            why = "loss" if outcome.refused else "gradient"
            self.record({"step": standing.data_step, "event": "skipped", "for_its": why, "loss_seen": outcome.loss})
        elif self.spikes:
            self.spikes.accept(outcome.loss)
            standing = standing.with_(recent_losses=self.spikes.values)
        return standing.with_(seconds=seconds, window=self.window.sums)

    def judge_by(self, standing: Standing) -> None:
        """Judge the losses to come by those of a training state."""
        if self.spikes:
            self.spikes.values = list(standing.recent_losses)

    # -- around the steps --------------------------------------------------------------------------------------------

    def record(self, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and of every tracker."""
        self.metrics.write(values)
        self.trackers.log(values)

    def announce(self) -> None:
        """The first log lines: what trains on what."""
        if not self.engine.is_main:
            return
        parameters = sum(shape.numel() for shape in self.engine.shapes().values())
        log.info("%s: %.2fM parameters, %s", self.experiment.name, parameters / 1e6, self.engine.describe())
        log.info(
            "%s, %d steps planned (%.2f epochs)",
            self.data.describe(),
            self.total_steps,
            self.total_steps / max(1, self.plan.steps_in_epoch(0)),
        )
        training = self.experiment.training
        still = [name for name in self.engine.shapes() if is_frozen(name, training.freeze)]
        if still:
            log.info("%d of %d parameters are frozen: %s", len(still), len(self.engine.shapes()), ", ".join(still))
        if training.schedule.warmup_steps >= self.total_steps:
            log.warning(
                "the learning rate never reaches %g: training.schedule.warmup_steps is %d of %d steps; lower it",
                *(training.optimizer.learning_rate, training.schedule.warmup_steps, self.total_steps),
            )
        warn_of_the_end(self.experiment, self.total_steps)

    def empty_step(self) -> None:
        """An optimizer step on nothing, at rate 0."""
        batches = [self.probe_batch.empty().to(self.engine.device)]
        self.engine.train_step(batches, self.loss_function, target_tokens=1, data_step=0, rate_factor=0.0)

    def probe(self) -> float:
        """The loss of the present weights on a little validation data (nats a prediction)."""
        batch = self.probe_batch.to(self.engine.device)
        with self.engine.evaluation() as model:
            return float(batch_loss(model, batch).nll) / max(1, batch.target_tokens)

    def begin(self) -> Standing:
        """Where a new run stands: at step 0, or where it branches off from another one."""
        if self.experiment.branch_from is None:
            return self._forget_after(Standing())
        state = Path(self.experiment.branch_from)
        standing = branch.standing(self.states.load(state))
        self.states.saved_step = -1  # it is the other run's
        log.info("branched from %s: step %d of %d", state, standing.data_step, self.total_steps)
        return self._forget_after(standing)

    def resume(self, state: Path) -> Standing:
        """Go on from a training state of this run."""
        standing = self.states.load(state)
        log.info("resumed from %s: step %d of %d", state, standing.data_step, self.total_steps)
        return self._forget_after(standing)

    def _forget_after(self, standing: Standing) -> Standing:
        """Forget what was logged after the point that the run goes on from."""
        standing = standing.with_(trackers=self.trackers.identifiers(), finished=False)
        validated = standing.validated_step == standing.data_step
        self.metrics.resume(standing.data_step, validated=validated)
        self.samples.resume(standing.data_step, validated=validated)
        if self.engine.is_main:
            kept_models.forget_after(self.run, standing.data_step)
        return standing

    def log_if_due(self, standing: Standing) -> Standing:
        """One line of metrics over the steps since the last one."""
        step, training, window = standing.data_step, self.experiment.training, self.window
        if step % training.log_every_steps and step != self.total_steps:
            return standing
        memory = self.engine.memory_gib()
        rate = training.optimizer.learning_rate * self.rate_factor
        sums, seconds = window.sums, window.seconds
        speed = sums.target_tokens / seconds
        flops = sums.flops / seconds
        self.record(
            {
                "step": step,
                "tokens": standing.target_tokens,
                "loss": round(window.loss, 5),
                "nll": round(window.nll, 5),
                "lr": rate,
                "grad_norm": round(window.grad_norm, 5),
                "tokens_per_second": round(speed, 1),
                "read_tokens_per_second": round(sums.tokens / seconds, 1),
                "flops_per_second": round(flops),
                "mfu": model_flops_utilisation(flops, self.engine.world_size, self.engine.device_name),
                "memory_gib": memory,
                "padding": round(1 - sums.tokens / sums.slots, 4) if sums.slots >= sums.tokens else None,
                "waiting_for_data": round(sums.waited_seconds / seconds, 4),
                "skipped": sums.skipped,
                "seconds": round(standing.seconds, 2),
            }
        )
        self.progress.line(
            f"step {step}/{self.total_steps}  loss {window.loss:.4f}  nll {window.nll:.4f}  "
            f"lr {rate:.2e}  grad norm {window.grad_norm:.2f}  {speed:,.0f} {self.experiment.model.task.predicts}s/s"
            + (f"  {sums.skipped} skipped" if sums.skipped else "")
        )
        self.window = Window()
        return standing.with_(window=self.window.sums)

    def validate_if_due(self, standing: Standing) -> Standing:
        """Validate every so many steps; only the run's last validation comes at another step."""
        step = standing.data_step
        due = step > 0 and step % self.experiment.evaluation.every_steps == 0
        return self.validate(standing) if due and standing.validated_step != step else standing

    def validate(self, standing: Standing) -> Standing:
        """Score the model on the validation set; keep it when it is the best so far."""
        self.at("validating", standing.data_step)
        result = self.validator.run(between=self.signals.check)
        if not math.isfinite(result.loss.nll):
            return self.roll_back(standing, f"the validation loss is {result.loss.nll}")
        self.record({"step": standing.data_step, "tokens": standing.target_tokens, **result.all_metrics()})
        for row in result.sample_rows(standing.data_step):
            self.samples.write(row)
        for line in result.lines(standing.data_step):
            self.progress.line(line)
        self.at("writing the model", standing.data_step)
        select = self.experiment.evaluation.select
        if standing.best_by != select:  # figures of another kind cannot be compared: choose anew
            standing = standing.with_(best_by=select, best_value=None, stale_validations=0)
        standing = standing.with_(validated_step=standing.data_step)
        if not result.better_than(standing.best_value, select):
            standing = standing.with_(stale_validations=standing.stale_validations + 1)
        elif self.models.write(self.run.best, standing, result):
            standing = standing.with_(
                best_value=result.value(select), best_step=standing.data_step, stale_validations=0
            )
        self.models.keep(standing, result)
        self.last_validation = result
        return standing

    def say_early_stop(self, standing: Standing) -> None:
        """Why the run ends before its last step."""
        self.progress.line(
            f"stopped early at step {standing.data_step}: no better {self.experiment.evaluation.select} than "
            f"{standing.best_value:.4f} (step {standing.best_step}) in {standing.stale_validations} validations"
        )

    # -- states ------------------------------------------------------------------------------------------------------

    def save_if_due(self, standing: Standing) -> None:
        """Save the training state, unless steps are being skipped: that is no place to come back to. A branch begins
        there all the same, for the run from scratch would skip them too."""
        self.states.poll()
        wanted = self.states.is_due(standing.data_step) or self.signals.save_wanted
        if not wanted or standing.data_step == self.total_steps:
            return
        self.signals.save_wanted = False
        if standing.skipped_in_a_row and standing.data_step not in self.experiment.training.branch_steps:
            self.states.postpone(standing.data_step + 1)
        else:
            self.at("saving", standing.data_step)
            self.states.save(standing)

    def roll_back(self, standing: Standing, why: str) -> Standing:
        """Go back to the last good weights and on with the data after the bad steps.

        Raises Diverged where that was done as often as allowed, or nothing good was saved yet.
        """
        step, most = standing.data_step, self.experiment.training.max_rollbacks
        advice = "lower training.optimizer.learning_rate or lengthen training.schedule.warmup_steps"
        if self.spikes:
            advice += ", or raise training.spikes.threshold"
        if standing.rollbacks >= most:
            raise Diverged(f"step {step}: {why}, after {standing.rollbacks} rollbacks of at most {most}; {advice}")
        self.at(LOADING, step)
        beginning = self.experiment.branch_from
        earlier = self.states.roll_back(standing, Path(beginning) if beginning else None)
        if earlier is None:
            raise Diverged(f"step {step}: {why}, and no earlier state was saved to go back to; {advice}")
        self.judge_by(earlier)
        event = {"step": step, "event": "rolled_back", "why": why, "to_optimizer_step": earlier.optimizer_step}
        self.record({**event, "rollbacks": earlier.rollbacks})
        log.warning(
            "step %d: %s: rolled back to the weights after %d optimizer steps (rollback %d of at most %d)",
            *(step, why, earlier.optimizer_step, earlier.rollbacks, most),
        )
        self.at("saving", step)
        self.states.save(earlier, wait=True)  # a death from here on must not bring the bad steps back
        return earlier

    def leave(self, standing: Standing) -> Ending:
        """Save the state at a boundary between two steps, because somebody asked the run to end."""
        kind, step, since = str(self.signals.ending), standing.data_step, self.signals.since
        self.at("saving", step)
        anything = standing.optimizer_step > 0
        saved = self.states.save(standing, wait=True) and anything
        seconds = None if since is None else round(time.time() - since, 3)
        self.record({"step": step, "event": kind, "saved": saved, "seconds_from_signal_to_saved": seconds})
        self.trackers.finish()
        process_group.barrier()  # launchers kill those that are late once the first rank has left
        what = "the training state is saved" if saved else "the training state could NOT be saved, older ones are whole"
        if not anything:
            what = "nothing to save"
        switch = self.run.path / "STOP"
        then = f"remove {switch}, then " if switch.exists() else ""
        message = f"{kind} at step {step} of {self.total_steps}: {what}; {then}the same command goes on with the run"
        log.info("%s (%s s after the signal)", message, seconds)
        return Ending(kind, message)

    def finish(self, standing: Standing) -> Ending:
        """Write model/last, then the last state: a run whose state stands at the end is finished."""
        result = self.last_validation or self.validator.run()
        self.at("writing the model", standing.data_step)
        written = self.models.write(self.run.last, standing, result)
        if self.experiment.training.ema_decay is not None and standing.optimizer_step:
            written = self.models.write(self.run.running_mean, standing, result, kind=AVERAGE) and written
        self.at("saving", standing.data_step)
        if not (written and self.states.save(standing.with_(finished=True), wait=True)):
            raise BmscaleError(
                f"{self.run.path}: trained to its end, but the result could not be written; make room, or mend "
                "what is said above, and the same command writes it"
            )
        self.trackers.finish()
        process_group.barrier()  # launchers kill those that are late once the first rank has left
        log.info(
            "trained %d steps, %s %ss in %.0f s; best %s %.4f at step %d: %s",
            standing.data_step,
            f"{standing.target_tokens:,}",
            self.experiment.model.task.predicts,
            standing.seconds,
            self.experiment.evaluation.select,
            math.nan if standing.best_value is None else standing.best_value,
            standing.best_step,
            self.run.best,
        )
        return Ending("done", "trained")
