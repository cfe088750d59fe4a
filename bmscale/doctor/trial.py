"""Three steps of a tiny model through the real engine: does it end up with what was asked for?

Configurations are rewritten on their way through launchers, Accelerate and DeepSpeed, so nothing is believed here but
what the steps do: the gradients that reach Adam's moments, the weights that move, the types that the layers compute
in. What is compared with is plain torch, in fp32, on the same weights and texts. Every check is one that has failed
somewhere: accumulation (accelerate issues 1970, 3369, 3552; DeepSpeed PR 7967), clipping (DeepSpeed PR 8068 made 1.0
the default), the learning rate (accelerate issue 1382: stepped once for each rank), independent copies for ranks
(accelerate with DeepSpeed on machines without a GPU).
"""

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from bmscale.data.batch import IGNORED, Batch, causal_batch, make_batch, masked_batch, text_batch
from bmscale.data.rows import Row
from bmscale.data.tokenizer import EOS
from bmscale.doctor.findings import Finding, Status
from bmscale.engine import process_group
from bmscale.engine.engine import Engine, LossFunction
from bmscale.evaluation.loss import batch_loss
from bmscale.experiment import Experiment, OptimizerConfig, ScheduleConfig
from bmscale.model.config import TransformerConfig
from bmscale.model.init import initial_value, initialise
from bmscale.model.loss import LossSums
from bmscale.training.optimizer import make_optimizer
from bmscale.training.schedule import rate_factor

VOCABULARY, FIRST_PIECE = 512, 5
TOKENS = 12
"""Of a row, and one more or less."""
ROWS = (3, 2, 1)
"""Of each micro-batch; of the last one the last of several ranks has none."""
OVER = 10.0
"""The first step's gradient is so many times the norm from which it is clipped."""
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}
"""Of the gradient against plain torch in fp32, as a share of its norm. (bf16 was measured at 0.01, and 0.25 with the
smallest micro-batch left out.)"""
CLOSE = 0.02
"""Of what must be met but for rounding: clipped norms and learning rates, as a share."""


@dataclass(frozen=True)
class Trial:
    """What the steps did, the same on every rank."""

    norm: float
    """Of the first step's gradient before clipping, as the engine reports it, over that of plain torch."""
    deviation: float
    """Between that gradient's direction and that of plain torch: the norm of the difference of the two."""
    clipped: float
    """Norm of the gradient that Adam got in the first step."""
    steps_counted: list[int]
    """Adam's own count after each step."""
    rates: list[tuple[int, float, float]]
    """(step, rate that was asked for, rate by which the embedding moved) of each step."""
    computed_in: list[str]
    """Types of what the linear layers computed."""
    stepped_in: list[str]
    """Types of the weights that Adam steps."""
    accumulated_in: str | None
    """Type in which DeepSpeed sums gradients up; None where it has no say."""


def examine(engine: Engine, experiment: Experiment, total_steps: int | None) -> list[Finding]:
    """The findings of a trial. Collective. `total_steps` is None where the data does not tell them."""
    training, launched = experiment.training, process_group.launched_world_size(os.environ)
    trial = run(engine, experiment, total_steps)
    return [
        check_world(engine, launched),
        check_accumulation(trial, training.precision),
        check_clipping(trial, training.clip_norm),
        check_precision(trial, training.precision),
        check_schedule(trial, training.schedule, total_steps),
    ]


# -- the steps -------------------------------------------------------------------------------------------------------


def run(engine: Engine, experiment: Experiment, total_steps: int | None) -> Trial:
    """Take the steps. Collective."""
    training = experiment.training
    section = type(experiment.model)
    config = section(preset=experiment.model.preset, size="tiny").build(VOCABULARY, **_options(experiment.task))
    engine.build(
        lambda: experiment.model.task.model(config),
        lambda name, shape: initial_value(name, shape, training.seed, config),
        partial(make_optimizer, config=training.optimizer),
    )
    batches = [batch.to(engine.device) for batch in _batches(experiment.task, engine.rank, engine.world_size)]
    target_tokens = int(process_group.sum_over_ranks(torch.tensor([sum(b.target_tokens for b in batches)])))
    loss = partial(batch_loss, label_smoothing=training.label_smoothing)
    wanted = _plain_gradient(engine, experiment, config, batches, loss, target_tokens)
    scale = OVER * (training.clip_norm or 1.0) / _norm(wanted)
    types: set[str] = set()
    rates: list[tuple[int, float, float]] = []
    counts: list[int] = []
    with _watched(engine.module, types):
        for step in _steps(experiment, total_steps):
            before = _embedding(engine, "master")
            factor = rate_factor(step - 1, training.schedule, total_steps or step)
            outcome = engine.train_step(
                batches,
                partial(_scaled, loss, scale if not rates else 1.0),
                target_tokens=target_tokens,
                data_step=step - 1,
                rate_factor=factor,
            )
            counts.append(max(int(state["step"]) for state in engine.adam.state.values()))
            moved = _embedding(engine, "master") - before
            asked = training.optimizer.learning_rate * factor
            rates.append((step, asked, _rate(engine, training.optimizer, moved, counts[-1])))
            if len(rates) == 1:
                norm, got = outcome.grad_norm, _gradient(engine, training.optimizer.betas[0])
    units = (got[name] / _norm(got) - wanted[name] / _norm(wanted) for name in wanted)
    return Trial(
        norm=norm / (scale * _norm(wanted)),
        deviation=math.sqrt(sum(float((unit**2).sum()) for unit in units)),
        clipped=_norm(got),
        steps_counted=counts,
        rates=rates,
        computed_in=sorted(types),
        stepped_in=sorted({str(tensor.dtype) for tensor in engine.adam.state}),
        accumulated_in=None if engine.stage == 0 else str(engine.wrapped.optimizer.gradient_accumulation_dtype),
    )


def _steps(experiment: Experiment, total_steps: int | None) -> list[int]:
    """The first step, the one at the peak of the rate, and the last one, where they are known."""
    peak = max(1, experiment.training.schedule.warmup_steps)
    return sorted({1, peak} if total_steps is None else {1, min(peak, total_steps), total_steps})


def _options(task: str) -> dict[str, Any]:
    """What the data would decide of the model."""
    if task == "masked_lm":
        return {"mask_token_id": FIRST_PIECE - 1}
    labels = ("a", "b", "c")
    of_labels = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    return of_labels if task == "classification" else {}


def _batches(task: str, rank: int, world_size: int) -> Iterator[Batch]:
    """This rank's micro-batches, of random pieces: ragged, and the last one empty on the last of several ranks."""
    for index, rows in enumerate(ROWS):
        generator = np.random.default_rng([rank, index])
        batch = _batch(task, generator, rows)
        last = index == len(ROWS) - 1 and 0 < rank == world_size - 1
        yield batch.empty() if last else batch


def _batch(task: str, generator: np.random.Generator, rows: int) -> Batch:
    lengths = generator.integers(TOKENS - 4, TOKENS + 4, size=rows)
    texts = [np.append(generator.integers(FIRST_PIECE, VOCABULARY, size=length), EOS) for length in lengths]
    if task == "translation":
        return make_batch(texts, [text[::-1].copy() for text in texts])
    if task == "classification":
        labels = [np.array([label]) for label in generator.integers(0, 3, size=rows)]
        return text_batch(_Pairs(texts, labels), range(rows))
    packed = [Row(text, np.append(text[1:], -1), np.ones_like(text)) for text in texts]
    if task == "language_model":
        return causal_batch(packed)
    hidden = [np.arange(len(text)) % 3 == 0 for text in texts]
    masked = [(np.where(h, FIRST_PIECE - 1, t), np.where(h, t, IGNORED)) for h, t in zip(hidden, texts, strict=True)]
    return masked_batch(packed, masked)


@dataclass(frozen=True)
class _Pairs:
    texts: list[np.ndarray]
    labels: list[np.ndarray]

    def pair(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self.texts[i], self.labels[i]


def _scaled(loss: LossFunction, scale: float, model: nn.Module, batch: Batch) -> LossSums:
    """The loss with another scale, so that its gradient has the norm that is wanted."""
    sums = loss(model, batch)
    return LossSums(loss=sums.loss * scale, nll=sums.nll, tokens=sums.tokens)


def _plain_gradient(
    engine: Engine,
    experiment: Experiment,
    config: TransformerConfig,
    batches: list[Batch],
    loss: LossFunction,
    target_tokens: int,
) -> dict[str, torch.Tensor]:
    """The gradient of the whole step by torch alone, in fp32: each rank's own batches, then their sum. Collective."""
    module = experiment.model.task.model(config)
    initialise(module, experiment.training.seed)
    module.to(engine.device).train()
    for batch in batches:
        (loss(module, batch).loss / target_tokens).backward()
    gradients = {}
    for name, parameter in module.named_parameters():
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradients[name] = process_group.sum_over_ranks(own.detach()).cpu()
    return gradients


def _gradient(engine: Engine, decay: float) -> dict[str, torch.Tensor]:
    """What Adam got in its first step, read off its running mean (1 - decay) g. Collective."""
    return {name: mean / (1 - decay) for name, mean in engine.weights("exp_avg")}


def _norm(tensors: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float((tensor.double() ** 2).sum()) for tensor in tensors.values()))


def _embedding(engine: Engine, kind: str) -> torch.Tensor:
    """The token table, which no decay moves: fp64. Collective."""
    table = engine.module.get_input_embeddings().weight  # type: ignore[operator]
    own = next(name for name, parameter in engine.module.named_parameters() if parameter is table)
    return dict(engine.weights(kind))[own].double()


def _rate(engine: Engine, config: OptimizerConfig, moved: torch.Tensor, step: int) -> float:
    """The learning rate by which the token table moved in Adam's step `step` (Kingma and Ba 2015, algorithm 1)."""
    first, second = config.betas
    mean = _embedding(engine, "exp_avg") / (1 - first**step)
    square = _embedding(engine, "exp_avg_sq") / (1 - second**step)
    direction = mean / (square.sqrt() + config.epsilon)
    return float((moved * -direction).sum() / (direction**2).sum()) + 0.0  # no -0


@contextlib.contextmanager
def _watched(module: nn.Module, types: set[str]) -> Iterator[None]:
    """Note the types of what linear layers compute."""

    def note(layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):  # the head gives a loss
            types.add(str(output.dtype))

    hooks = [layer.register_forward_hook(note) for layer in module.modules() if isinstance(layer, nn.Linear)]
    yield
    for hook in hooks:
        hook.remove()


# -- what they say ---------------------------------------------------------------------------------------------------

_PINNED = "take the pinned versions (pip install -c launch/constraints.txt -e .) and one of launch/*.yaml"


def check_world(engine: Engine, launched: int) -> Finding:
    """Whether all ranks that were launched train together."""
    found = {"the process group": engine.world_size}
    if engine.file:
        found["DeepSpeed"] = engine.wrapped.dp_world_size
    wrong = [f"{where} has {count}" for where, count in found.items() if count != launched]
    if wrong:
        return Finding("world size", "fail", f"{launched} ranks were launched, and {', '.join(wrong)}", _PINNED)
    ranks = "1 rank" if launched == 1 else f"{launched} ranks"
    return Finding("world size", "ok", f"{ranks} launched, as many in {' and '.join(found)}")


def check_accumulation(trial: Trial, precision: str) -> Finding:
    """Whether the micro-batches of all ranks are one gradient, and one step."""
    most, wanted = TOLERANCE[precision], list(range(1, len(trial.steps_counted) + 1))
    if trial.steps_counted != wanted:
        found = f"after global steps {wanted} of {len(ROWS)} micro-batches Adam counts {trial.steps_counted}"
        return Finding("accumulation", "fail", found, _PINNED)
    found = f"{trial.deviation:.1e} of its norm away from that of plain torch in fp32, the norm {trial.norm:.4f} of it"
    if not (trial.deviation <= most and abs(trial.norm - 1) <= most):
        return Finding("accumulation", "fail", f"the gradient of {len(ROWS)} micro-batches a rank is {found}", _PINNED)
    return Finding("accumulation", "ok", f"{len(ROWS)} micro-batches a rank are 1 optimizer step; gradient {found}")


def check_clipping(trial: Trial, clip_norm: float | None) -> Finding:
    """Whether a gradient OVER times too large reaches Adam with the norm that was asked for."""
    before = OVER * (clip_norm or 1.0) * trial.norm
    wanted, asked = (before, "none was asked for") if clip_norm is None else (clip_norm, f"clip_norm {clip_norm:g}")
    found = f"a gradient of norm {before:.4g} reaches Adam with {trial.clipped:.4g}; {asked}"
    status: Status = "ok" if abs(trial.clipped / wanted - 1) <= CLOSE else "fail"
    return Finding("clipping", status, found, _PINNED if status == "fail" else "")


def check_precision(trial: Trial, precision: str) -> Finding:
    """The types in which layers compute, gradients are summed up and Adam steps."""
    compute = {"bf16": "torch.bfloat16", "fp32": "torch.float32"}[precision]
    summed = [] if trial.accumulated_in is None else [trial.accumulated_in]
    found = f"{precision} was asked for: computes in {_types(trial.computed_in)}, steps {_types(trial.stepped_in)}"
    found += f", sums gradients up in {_types(summed)}" if summed else ""
    fits = trial.computed_in == [compute] and trial.stepped_in == ["torch.float32"] and set(summed) <= {"torch.float32"}
    return Finding("precision", "ok" if fits else "fail", found, "" if fits else _PINNED)


def _types(names: list[str]) -> str:
    return " and ".join(name.removeprefix("torch.") for name in names)


def check_schedule(trial: Trial, schedule: ScheduleConfig, total_steps: int | None) -> Finding:
    """Whether weights moved by the rate of the schedule in its first step, at its peak and in its last one."""
    wrong = [(step, asked, seen) for step, asked, seen in trial.rates if abs(seen - asked) > _rate_error(asked)]
    if wrong:
        said = "; ".join(
            f"step {step:,}: {asked:.3g} was asked for, moved by {seen:.3g}" for step, asked, seen in wrong
        )
        return Finding("schedule", "fail", said, _PINNED)
    found = ", ".join(f"{seen:.3g} in step {step:,}" for step, _, seen in trial.rates)
    found = f"{schedule.type}: the rate is {found}"
    if total_steps is None:
        return Finding("schedule", "ok", f"{found}; the last step is known once the data is prepared")
    if schedule.warmup_steps >= total_steps:
        found = f"training.schedule.warmup_steps is {schedule.warmup_steps:,} of {total_steps:,} steps: {found}"
        return Finding("schedule", "warn", found, "lower it: the rate never reaches its peak")
    return Finding("schedule", "ok", found)


def _rate_error(asked: float) -> float:
    """What fp32 weights of 0.1 can hide of a step: half a unit in the last place is 4e-9."""
    return CLOSE * asked + 4e-9
