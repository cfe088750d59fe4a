"""Train an experiment: `accelerate launch --config_file launch/cpu_2proc.yaml -m bmscale train CONFIG`.

1. read the prepared data and plan the global steps;
2. check the run folder: a new run, or the same one to go on with;
3. start the ranks, build the model, load the newest training state;
4. step by step: train, log, validate, save;
5. leave model/best, model/last and the last state.
"""

import logging
import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bmscale.data.batch import empty_batch
from bmscale.data.manifest import VALID_TEXTS
from bmscale.data.steps import StepPlan
from bmscale.engine import process_group
from bmscale.engine.engine import AVERAGE, Engine, StepOutcome
from bmscale.engine.trackers import Trackers, choose_trackers
from bmscale.errors import BadInput, Diverged
from bmscale.evaluation.loss import batch_loss
from bmscale.evaluation.validation import Validation, Validator
from bmscale.experiment import Experiment, RunFolder
from bmscale.model import EncoderDecoderConfig, EncoderDecoderForConditionalGeneration
from bmscale.model.folder import write_model_folder
from bmscale.model.init import initial_value
from bmscale.training import checkpoint, kept_models, record
from bmscale.training.checkpoint import Standing
from bmscale.training.metrics import Metrics, Progress, model_flops_utilisation
from bmscale.training.optimizer import make_optimizer
from bmscale.training.schedule import rate_factor
from bmscale.training.step_data import PreparedData, StepData, StepReader

log = logging.getLogger("bmscale")

# Skipped steps in a row after which going on would only burn time: the weights themselves are then out of range.
MOST_SKIPPED_STEPS = 20


def train(experiment: Experiment, *, new_schedule: bool = False) -> None:
    """Train, or go on with, the run of an experiment. Collective: every rank of the launcher calls it.

    Raises BadInput for a mistake in what was given, Diverged when the loss left the finite numbers for good.
    """
    training, run = experiment.training, experiment.run_folder
    data = PreparedData.open(experiment.data)
    plan = data.plan(training)
    total_steps = training.max_steps or plan.first_step_of_epoch(training.max_epochs or 0)
    config = experiment.model.build(data.tokenizer.vocabulary_size)
    _check_lengths(experiment, data, config)
    identity = record.identity(experiment, data.manifest["data_hash"], _shape(config))
    resumes = record.check(run, identity, experiment, total_steps, new_schedule=new_schedule)

    states = checkpoint.list_states(run.states) if resumes else []
    standing = checkpoint.read_standing(states[-1]) if states else Standing()

    trackers = choose_trackers(training.trackers)
    engine = Engine(training)
    _check_that_ranks_agree(run, identity, standing)
    if standing.finished and (standing.data_step >= total_steps or _out_of_patience(experiment, standing)):
        log.info("%s: trained to its end already; nothing to do", run.path)
        return
    if engine.is_main:
        run.path.mkdir(parents=True, exist_ok=True)
        run.exit.unlink(missing_ok=True)
        _log_to(run.log)
        resources = {"world_size": engine.world_size, "engine": engine.describe(), "device": _device_name(engine)}
        record.write(run, experiment, identity, total_steps, resources)
    build_model(engine, experiment, config)
    opened = Trackers(
        engine.accelerator, trackers, experiment.name, run.path, experiment.model_dump(), standing.data_step
    )
    loop = _Loop(experiment, engine, data, plan, config, total_steps, opened)
    loop.announce()
    loop.resume(states[-1] if states else None)
    loop.run_steps(standing)


def _check_that_ranks_agree(run: RunFolder, identity: dict[str, Any], standing: Standing) -> None:
    """Raises BadInput on every rank when one of them sees another run or other data: nodes with disks of their own."""
    seen = process_group.gather_objects((identity, standing))
    other = next((rank for rank, found in enumerate(seen) if found != seen[0]), None)
    if other is not None:
        raise BadInput(
            f"{run.path}: every rank must see the same run folder and the same prepared data; rank {other} sees step "
            f"{seen[other][1].data_step}, rank 0 step {seen[0][1].data_step}. Put both on a file system that all nodes "
            "share"
        )


def _out_of_patience(experiment: Experiment, standing: Standing) -> bool:
    """Whether early stopping has seen enough validations without a better one."""
    patience = experiment.training.early_stopping_patience
    return patience is not None and standing.stale_validations >= patience


def _log_to(path: Path) -> None:
    """Everything that the log shows goes into the run folder as well."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)


def build_model(engine: Engine, experiment: Experiment, config: EncoderDecoderConfig) -> None:
    """Make the model of an experiment on the engine's ranks."""
    training = experiment.training

    def make_model() -> EncoderDecoderForConditionalGeneration:
        model = EncoderDecoderForConditionalGeneration(config)
        if training.activation_checkpointing:
            model.activation_checkpointing_enable()
        return model

    engine.build(
        make_model,
        lambda name, shape: initial_value(name, shape, training.seed, config),
        partial(make_optimizer, config=training.optimizer),
    )


def _shape(config: EncoderDecoderConfig) -> dict[str, Any]:
    """The model's options without what libraries add of their own."""
    noise = ("transformers_version", "architectures", "dtype", "_name_or_path")
    return {key: value for key, value in config.to_diff_dict().items() if key not in noise}


def _check_lengths(experiment: Experiment, data: PreparedData, config: EncoderDecoderConfig) -> None:
    """Refuse before training what would fail in the middle of it."""
    for name, shards in (("training", data.train), ("validation", data.valid)):
        longest = int(max(shards.source_lengths.max(), shards.target_lengths.max()))
        if longest > config.max_position_embeddings:
            raise BadInput(
                f"model.max_position_embeddings: must hold the longest {name} sentence, {longest} tokens; got "
                f"{config.max_position_embeddings}. Raise it, or prepare the data without such sentences"
            )
    slots = int((data.train.source_lengths + data.train.target_lengths).max())
    if slots > experiment.training.max_micro_batch_tokens:
        raise BadInput(
            f"training.max_micro_batch_tokens: must hold the longest pair, {slots} tokens of source and target; got "
            f"{experiment.training.max_micro_batch_tokens}. Raise it, or prepare with smaller data.max_source_tokens "
            "and data.max_target_tokens"
        )


def _device_name(engine: Engine) -> str:
    return torch.cuda.get_device_name() if engine.device.type == "cuda" else engine.device.type


class _Loop:
    """The run in progress: everything the steps need, nothing that a training state would have to hold."""

    def __init__(
        self,
        experiment: Experiment,
        engine: Engine,
        data: PreparedData,
        plan: StepPlan,
        config: EncoderDecoderConfig,
        total_steps: int,
        trackers: Trackers,
    ) -> None:
        self.trackers = trackers
        self.experiment, self.engine, self.data, self.plan = experiment, engine, data, plan
        self.reader = StepReader(experiment, data, plan, config, engine.rank, engine.world_size)
        self.config, self.total_steps = config, total_steps
        self.run: RunFolder = experiment.run_folder
        self.metrics = Metrics(self.run.metrics, enabled=engine.is_main)
        self.samples = Metrics(self.run.samples, enabled=engine.is_main)
        sources = data.manifest["splits"]["valid"]["sources"]
        self.validator = Validator(engine, data.valid, sources, data.folder / VALID_TEXTS, data.tokenizer, experiment)
        self.loss_function = partial(batch_loss, label_smoothing=experiment.training.label_smoothing)
        self.last_validation: Validation | None = None

    # -- the steps ---------------------------------------------------------------------------------------------------

    def run_steps(self, standing: Standing) -> None:
        """From `standing` to the end, or to an early stop."""
        training, evaluation = self.experiment.training, self.experiment.evaluation
        progress = Progress(self.total_steps, standing.data_step, enabled=self.engine.is_main)
        window = _Window()
        skipped_in_a_row = 0
        for step_data in self.reader.steps(standing.data_step, self.total_steps):
            outcome = self.train_step(step_data, standing)
            seconds = standing.seconds + window.lap(step_data, outcome)
            standing = standing.after_step(step_data.target_tokens, skipped=outcome.skipped).with_(seconds=seconds)
            step = standing.data_step
            skipped_in_a_row = skipped_in_a_row + 1 if outcome.skipped else 0
            if skipped_in_a_row > MOST_SKIPPED_STEPS:
                raise Diverged(
                    f"step {step}: the gradient was not finite in {skipped_in_a_row} steps in a row; lower "
                    "training.optimizer.learning_rate or lengthen training.schedule.warmup_steps"
                )
            progress.step(outcome.nll)
            if step % training.log_every_steps == 0 or step == self.total_steps:
                self.log_steps(window, standing, progress)
                window = _Window()
            if step % evaluation.every_steps == 0:
                standing = self.validate(standing, progress)
            if step % training.save_every_steps == 0 and step < self.total_steps:
                self.save(standing)
            window.start_clock()  # validating and saving are not the steps' time
            if _out_of_patience(self.experiment, standing):
                progress.line(
                    f"stopped early at step {step}: no better {evaluation.select} than {standing.best_value:.4f} "
                    f"(step {standing.best_step}) in {standing.stale_validations} validations"
                )
                break
        progress.close()
        if standing.validated_step != standing.data_step:
            standing = self.validate(standing, progress)
        self.finish(standing)

    def train_step(self, step_data: StepData, standing: Standing) -> StepOutcome:
        """One optimizer step."""
        schedule = self.experiment.training.schedule
        self.rate_factor = rate_factor(standing.optimizer_step, schedule, self.total_steps)
        return self.engine.train_step(
            [batch.to(self.engine.device) for batch in step_data.batches],
            self.loss_function,
            target_tokens=step_data.target_tokens,
            data_step=standing.data_step,
            rate_factor=self.rate_factor,
        )

    # -- around the steps --------------------------------------------------------------------------------------------

    def record(self, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and of every tracker."""
        self.metrics.write(values)
        self.trackers.log(values)

    def announce(self) -> None:
        """The first log lines: what trains on what."""
        if not self.engine.is_main:
            return
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in self.engine.module.parameters())
        log.info("%s: %.2fM parameters, %s", self.experiment.name, parameters / 1e6, self.engine.describe())
        log.info(
            "%s pairs, %s target tokens an epoch, %d steps planned (%.2f epochs)",
            f"{len(self.data.train):,}",
            f"{int(self.data.train.target_lengths.sum()):,}",
            self.total_steps,
            self.total_steps / max(1, self.plan.steps_in_epoch(0)),
        )

    def resume(self, state: Path | None) -> None:
        """Load the newest training state, if the run has one, and forget what was logged after it."""
        if state is None:
            self.metrics.resume(0)
            self.samples.resume(0)
            self.forget_models(0)
            return

        def empty_step() -> None:
            empty = [empty_batch().to(self.engine.device)]
            self.engine.train_step(empty, self.loss_function, target_tokens=1, data_step=0, rate_factor=0.0)

        standing = checkpoint.load_state(state, self.engine, empty_step)
        self.metrics.resume(standing.data_step)
        self.samples.resume(standing.data_step)
        self.forget_models(standing.data_step)
        if self.engine.is_main:
            log.info("resumed from %s: step %d of %d", state, standing.data_step, self.total_steps)

    def log_steps(self, window: "_Window", standing: Standing, progress: Progress) -> None:
        """One line of metrics over the steps since the last one."""
        memory = self.engine.memory_gib()
        rate = self.experiment.training.optimizer.learning_rate * self.rate_factor
        speed = window.target_tokens / window.seconds
        self.record(
            {
                "step": standing.data_step,
                "tokens": standing.target_tokens,
                "loss": round(window.loss, 5),
                "nll": round(window.nll, 5),
                "lr": rate,
                "grad_norm": round(window.grad_norm, 5),
                "tokens_per_second": round(speed, 1),
                "source_and_target_tokens_per_second": round(window.tokens / window.seconds, 1),
                "flops_per_second": round(window.flops / window.seconds),
                "mfu": model_flops_utilisation(
                    window.flops / window.seconds, self.engine.world_size, _device_name(self.engine)
                ),
                "memory_gib": memory,
                "skipped": window.skipped,
                "seconds": round(standing.seconds, 2),
            }
        )
        progress.line(
            f"step {standing.data_step}/{self.total_steps}  loss {window.loss:.4f}  nll {window.nll:.4f}  "
            f"lr {rate:.2e}  grad norm {window.grad_norm:.2f}  {speed:,.0f} target tokens/s"
            + (f"  {window.skipped} skipped" if window.skipped else "")
        )

    def validate(self, standing: Standing, progress: Progress) -> Standing:
        """Score the model on the validation set; keep it when it is the best so far."""
        result = self.validator.run()
        if not math.isfinite(result.loss.nll):
            raise Diverged(
                f"step {standing.data_step}: the validation loss is {result.loss.nll}; lower "
                "training.optimizer.learning_rate or lengthen training.schedule.warmup_steps"
            )
        self.record({"step": standing.data_step, "tokens": standing.target_tokens, **result.all_metrics()})
        for row in result.sample_rows(standing.data_step):
            self.samples.write(row)
        for line in result.lines(standing.data_step):
            progress.line(line)
        select = self.experiment.evaluation.select
        if standing.best_by != select:  # figures of another kind cannot be compared: choose anew
            standing = standing.with_(best_by=select, best_value=None, stale_validations=0)
        standing = standing.with_(validated_step=standing.data_step)
        if result.better_than(standing.best_value, select):
            standing = standing.with_(
                best_value=result.value(select), best_step=standing.data_step, stale_validations=0
            )
            self.write_model(self.run.best, standing, result)
        else:
            standing = standing.with_(stale_validations=standing.stale_validations + 1)
        self.keep_model(standing, result)
        self.last_validation = result
        return standing

    def save(self, standing: Standing) -> None:
        """Write the training state. Before the first step that was taken there is none: Adam has no moments yet."""
        if standing.optimizer_step:
            checkpoint.save_state(self.run.states, self.engine, standing, keep=self.experiment.training.keep_states)

    def keep_model(self, standing: Standing, result: Validation) -> None:
        """Keep the model of a validation under its step, with those that `evaluation.keep_models` asks for."""
        config = self.experiment.evaluation
        main = self.engine.is_main
        step = standing.data_step
        wanted = config.keep_models > 0 and main and kept_models.may_write(self.run, step)
        if process_group.gather_objects(wanted)[0]:
            mark = kept_models.mark(self.run) if main else {}
            self.write_model(kept_models.folder_of(self.run, step), standing, result, mark)
            if main:
                kept_models.retain(self.run, config.keep_models, config.select)

    def forget_models(self, step: int) -> None:
        """Remove kept models of steps that are still to come."""
        if self.engine.is_main:
            kept_models.forget_after(self.run, step)

    def write_model(
        self,
        folder: Path,
        standing: Standing,
        result: Validation,
        mark: Mapping[str, Any] | None = None,
        kind: str = "master",
    ) -> None:
        """Write a model folder, `mark` in its provenance. Collective: rank 0 writes while every rank gathers."""
        weights = self.engine.weights(kind)
        if self.engine.is_main:
            write_model_folder(
                folder,
                self.config,
                weights,
                self.data.folder / "spiece.model",
                {**self.provenance(standing, result), **(mark or {})},
                beam_size=self.experiment.evaluation.beam_size,
                length_penalty=self.experiment.evaluation.length_penalty,
            )
        for _ in weights:  # the other ranks, and what rank 0 may have left
            pass
        process_group.barrier()

    def provenance(self, standing: Standing, result: Validation) -> dict[str, Any]:
        """Where a model comes from: all that is needed to make it again."""
        data = self.experiment.data
        return {
            "experiment": self.experiment.name,
            "task": self.experiment.task,
            "source_language": data.source_language,
            "target_language": data.target_language,
            "language_tags": data.targets(data.train) if data.language_tags else None,
            "step": standing.data_step,
            "optimizer_step": standing.optimizer_step,
            "target_tokens": standing.target_tokens,
            "max_source_tokens": data.max_source_tokens,
            "seed": self.experiment.training.seed,
            "data_hash": self.data.manifest["data_hash"],
            "validation": {"loss": result.loss.nll, **result.scores, "pairs": len(self.data.valid)},
            "scores": {f"validation {name} (greedy)": score for name, score in result.scores.items()},
            **record.versions(),
        }

    def finish(self, standing: Standing) -> None:
        """Write model/last, then the last state: a run whose state stands at the end is finished."""
        result = self.last_validation or self.validator.run()
        self.write_model(self.run.last, standing, result)
        if self.experiment.training.ema_decay is not None and standing.optimizer_step:
            self.write_model(self.run.running_mean, standing, result, kind=AVERAGE)
        self.save(standing.with_(finished=True))
        self.trackers.finish()
        if self.engine.is_main:
            log.info(
                "trained %d steps, %s target tokens in %.0f s; best %s %.4f at step %d: %s",
                standing.data_step,
                f"{standing.target_tokens:,}",
                standing.seconds,
                self.experiment.evaluation.select,
                math.nan if standing.best_value is None else standing.best_value,
                standing.best_step,
                self.run.best,
            )


class _Window:
    """Sums over the steps since the last log line."""

    def __init__(self) -> None:
        self.seconds = 1e-9
        self.target_tokens = self.trained_tokens = self.tokens = self.steps = self.skipped = 0
        self.flops = self._loss = self._nll = self._norm = 0.0
        self.start_clock()

    def start_clock(self) -> None:
        """The time up to now does not count."""
        self._last = time.monotonic()

    def lap(self, step_data: StepData, outcome: StepOutcome) -> float:
        """Add one step; returns its wall time in seconds."""
        elapsed = time.monotonic() - self._last
        self.start_clock()
        self.seconds += elapsed
        self.target_tokens += step_data.target_tokens
        self.tokens += step_data.tokens
        self.flops += step_data.flops
        self.steps += 1
        self.skipped += outcome.skipped
        if not outcome.skipped:
            self.trained_tokens += step_data.target_tokens
            self._loss += outcome.loss * step_data.target_tokens
            self._nll += outcome.nll * step_data.target_tokens
            self._norm += outcome.grad_norm
        return elapsed

    @property
    def loss(self) -> float:
        """Smoothed loss a target token."""
        return self._loss / self.trained_tokens if self.trained_tokens else math.nan

    @property
    def nll(self) -> float:
        """Negative log-likelihood a target token."""
        return self._nll / self.trained_tokens if self.trained_tokens else math.nan

    @property
    def grad_norm(self) -> float:
        """Mean norm before clipping."""
        return self._norm / (self.steps - self.skipped) if self.steps > self.skipped else math.nan
