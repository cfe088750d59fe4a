"""The training step alone, on batches that lie ready: `python -m bmscale.benchmark.step_loop QUESTION.json ANSWER.json`

Through the engine, under a launcher or without one, or `bare`: a loop of torch on the same weights and batches, with
the same clipping and AdamW, which is what the engine's cost is counted against.
"""

import json
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bmscale.config import Document, validate
from bmscale.data.batch import Batch, CausalBatch, PairBatch
from bmscale.engine.engine import Engine
from bmscale.evaluation.loss import batch_loss
from bmscale.experiment import Experiment, RowTrainingConfig, TrainingConfig, experiment_class
from bmscale.model.config import TransformerConfig
from bmscale.model.flops import training_flops
from bmscale.model.init import initial_value, initialise
from bmscale.model.tasks import TASKS, Task
from bmscale.training.optimizer import make_optimizer
from bmscale.training.pair_data import PairData
from bmscale.training.step_data import StepData


def main(question: dict[str, Any]) -> dict[str, Any] | None:
    """Measure; the answer on rank 0, None elsewhere."""
    if "experiment" in question:
        document = Document(question["experiment"], {})
        experiment: Experiment = validate(experiment_class(document), document)
        training: TrainingConfig = experiment.training
        task = experiment.model.task
    else:
        document = Document(question["training"], {})
        task = TASKS[question.get("task", "language_model")]
        kind: type[TrainingConfig] = RowTrainingConfig if task.name == "language_model" else TrainingConfig
        training = validate(kind, document)
    engine = Engine(training)
    begun = engine.memory_gib()
    count = question["warmup_steps"] + question["steps"]
    if "experiment" in question:
        data = PairData(experiment)
        config = experiment.model.build(data.tokenizer.vocabulary_size)
        plan = data.plan()
        steps = [data.read_step(plan, step, config, engine.rank, engine.world_size) for step in range(count)]
    else:
        options = dict(question["model"])
        preset = task.presets[options.pop("preset")]
        size = task.sizes[options.pop("size")] if "size" in options else {}
        config = task.configure(**{**preset, **size, **options, "vocab_size": question["vocab_size"]})
        lengths = question["lengths"]
        steps = [_random_step(training, config, lengths, engine, step) for step in range(count)]
    train_step = _bare(task, config, engine) if question["bare"] else _engine(task, config, engine)
    losses, timed, clock = [], steps[question["warmup_steps"] :], [time.perf_counter()]
    for number, step in enumerate(steps):
        losses.append(train_step(step, number))
        # Else a GPU is waited for where the time begins and ends only: in between the host may run ahead of it.
        if question.get("each_step") or number + 1 in (question["warmup_steps"], count):
            _wait(engine.device)
        clock.append(time.perf_counter())
    seconds = [end - start for start, end in pairwise(clock)][question["warmup_steps"] :]
    memory = engine.memory_gib()
    if not engine.is_main:
        return None
    return {
        "seconds": sum(seconds),
        "step_seconds": seconds,
        "steps": len(timed),
        "target_tokens": sum(step.target_tokens for step in timed),
        "source_tokens": sum(step.tokens - step.target_tokens for step in timed),
        "slots": sum(step.slots for step in timed),
        "flops": sum(step.flops for step in timed),
        "begun_gib": begun,
        "peak_gib": memory,
        "losses": [float(loss) for loss in losses[question["warmup_steps"] :]],
    }


def _random_step(
    training: TrainingConfig, config: TransformerConfig, lengths: tuple[int, int], engine: Engine, step: int
) -> StepData:
    """Rows of one document each, or pairs, of random tokens and no padding; `lengths` are of source and target."""
    source, target = lengths
    rows = max(1, training.tokens_per_step // target // engine.world_size)
    most = max(1, training.max_micro_batch_tokens // (source + target))
    generator = torch.Generator().manual_seed(step * engine.world_size + engine.rank)
    batches = [
        _random_batch(min(most, rows - start), source, target, config.vocab_size, generator)
        for start in range(0, rows, most)
    ]
    targets = rows * target * engine.world_size
    tokens = targets + rows * source * engine.world_size
    flops = float(np.sum(training_flops(config, *(np.full(rows * engine.world_size, n) for n in lengths if n))))
    return StepData(batches, targets, tokens, tokens, flops)


def _random_batch(rows: int, source: int, target: int, vocabulary: int, generator: torch.Generator) -> Batch:
    tokens = torch.randint(5, vocabulary, (rows, target + 1), generator=generator)
    read, following = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    if not source:
        return CausalBatch(read, torch.ones_like(read), following)
    sources = torch.randint(5, vocabulary, (rows, source), generator=generator)
    return PairBatch(
        sources.flatten()[None],
        torch.ones(1, rows * source, dtype=torch.bool),
        *(read.flatten()[None], following.flatten()[None]),
        source_buckets=((rows, source),),
        target_buckets=((rows, target),),
    )


def _engine(task: Task, config: TransformerConfig, engine: Engine) -> Any:
    training = engine.training

    def make_model() -> torch.nn.Module:
        model = task.model(config)
        if training.activation_checkpointing:
            model.activation_checkpointing_enable()
        return model

    engine.build(
        make_model,
        lambda name, size: initial_value(name, size, training.seed, config),
        partial(make_optimizer, config=training.optimizer),
    )
    loss_function = partial(batch_loss, label_smoothing=training.label_smoothing)

    def train_step(step: StepData, number: int) -> float:
        outcome = engine.train_step(
            [batch.to(engine.device) for batch in step.batches],
            loss_function,
            target_tokens=step.target_tokens,
            data_step=number,
            rate_factor=1.0,
        )
        return outcome.nll

    return train_step


def _bare(task: Task, config: TransformerConfig, engine: Engine) -> Any:
    training, device = engine.training, engine.device
    model = task.model(config)
    initialise(model, training.seed)
    model.to(device).train()
    optimizer = make_optimizer(model, config=training.optimizer)

    def train_step(step: StepData, number: int) -> float:
        nll = 0.0
        for index, batch in enumerate(step.batches):
            engine.seed_micro_batch(number, index)
            with torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16"):
                losses = batch_loss(model, batch.to(device), label_smoothing=training.label_smoothing)
            (losses.loss / step.target_tokens).backward()
            nll += float(losses.nll)
        if training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return nll / step.target_tokens

    return train_step


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    answer = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    if answer is not None:
        Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
