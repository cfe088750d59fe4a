"""One training run for test_equivalence.py, on however many ranks it is launched: losses and norms to a JSON file.

The data is split over ranks and micro-batches in a ragged way on purpose: step by step another number of micro-batches,
and at two ranks the last one often has nothing to do.
"""

import argparse
import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bmscale.data.batch import read_buckets
from bmscale.data.tokenizer import EOS
from bmscale.engine import process_group
from bmscale.engine.engine import AVERAGE, Engine, LossFunction
from bmscale.evaluation.loss import batch_loss
from bmscale.experiment import OptimizerConfig, TrainingConfig
from bmscale.model import EncoderDecoderConfig, EncoderDecoderForConditionalGeneration
from bmscale.model.init import initial_value
from bmscale.model.loss import LossSums
from bmscale.training.optimizer import make_optimizer
from tests.engine.spread import deviations

VOCABULARY = 60
CONFIG = EncoderDecoderConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_attention_heads=4,
    num_encoder_layers=2,
    num_decoder_layers=2,
)

MUP = {"parametrization": "mup", "base_hidden_size": 8, "base_layers": 1, "base_head_dim": 8}


def pairs_of_step(step: int) -> list[tuple[np.ndarray, ...]]:
    generator = np.random.default_rng([7, step])
    rows = []
    for _ in range(5 + step % 4):
        source, target = generator.integers(2, 14, size=2)
        rows.append(tuple(np.append(generator.integers(4, VOCABULARY, size=n), EOS) for n in (source, target)))
    return rows


class Rows:
    """The pairs of a step, by their numbers."""

    def __init__(self, step: int) -> None:
        self.rows = pairs_of_step(step)

    def pair(self, i):
        return self.rows[i]


def micro_batches(step: int, rank: int, world_size: int) -> list:
    """This rank's batches: the same number on every rank, of uneven size and up to two buckets, now and then none of
    its own."""
    source = Rows(step)
    numbers = list(range(len(source.rows)))
    cuts = sorted({0, 1 + step % 3, 4, len(numbers)})
    pieces = [numbers[begin:end] for begin, end in pairwise(cuts)]
    rounds = -(-len(pieces) // world_size)
    if step % 5 == 3:  # the last rank has nothing at all
        pieces = [numbers, *[[]] * (world_size * rounds - 1)]
    pieces += [[]] * (rounds * world_size - len(pieces))
    buckets = [[bucket for bucket in (piece[:1], piece[1:]) if bucket] for piece in pieces[rank::world_size]]
    return [read_buckets(source, of_batch) for of_batch in buckets]


TROUBLE = {2: "gradient", 4: "spike", 6: "loss", 7: "loss, unasked"}
"""The steps of --trouble: a gradient that is not finite, a finite spike of the loss, a loss that is not finite though
its gradient is; the last without asking whether to refuse it."""


def troubled(kind: str, loss_function: LossFunction, model: torch.nn.Module, batch: Any) -> LossSums:
    """A loss with the trouble, in micro-batches that hold anything at all: so not in all of a rank's."""
    sums = loss_function(model, batch)
    loss = sums.loss * (100.0 if kind == "spike" and sums.tokens else 1.0)
    if kind == "gradient" and sums.tokens:
        loss.register_hook(lambda gradient: gradient * float("nan"))
    if kind.startswith("loss") and sums.tokens:
        loss = loss + float("inf")
    return LossSums(loss=loss, nll=sums.nll, tokens=sums.tokens)


def snapshot(engine: Engine) -> dict[Any, Any]:
    """All of this rank that a step changes: masters, moments, running mean, and how many steps Adam counts."""
    counts = {index: float(state["step"]) for index, state in enumerate(engine.adam.state.values())}
    return {(piece.name, piece.kind): piece.values.numpy().tobytes() for piece in engine.pieces()} | counts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--deepspeed", default="none")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--clip-norm", type=float)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--break-it", choices=("accumulation", "world_size"))
    parser.add_argument("--trouble", choices=("refused", "taken", "omitted"))
    parser.add_argument("--ema-decay", type=float)
    parser.add_argument("--mup", action="store_true")
    options = parser.parse_args()

    torch.set_num_threads(1)
    optimizer = OptimizerConfig(learning_rate=2e-3)
    training = TrainingConfig(
        max_steps=options.steps,
        precision=options.precision,
        clip_norm=options.clip_norm,
        deepspeed=options.deepspeed,
        optimizer=optimizer,
        ema_decay=options.ema_decay,
    )
    engine = Engine(training)
    config = EncoderDecoderConfig(**{**CONFIG.to_dict(), "dropout": options.dropout, **(MUP if options.mup else {})})
    engine.build(
        lambda: EncoderDecoderForConditionalGeneration(config),
        lambda name, shape: initial_value(name, shape, 0, config),
        partial(make_optimizer, config=optimizer),
    )
    moments = [state[name] for state in engine.adam.state.values() for name in ("exp_avg", "exp_avg_sq")]
    made = sum(tensor.numel() for tensor in moments if not tensor.count_nonzero())
    if options.break_it:
        right = engine._backward

        def wrong(loss: torch.Tensor, *, last: bool) -> None:
            count = len(micro_batches(step, engine.rank, engine.world_size))
            right(loss / (count if options.break_it == "accumulation" else engine.world_size), last=last)

        engine._backward = wrong  # type: ignore[method-assign]

    first = {name: deviations(value, name, config) for name, value in engine.weights()}
    loss_function = partial(batch_loss, label_smoothing=0.1)
    losses, norms, skipped, refused, changed = [], [], [], [], []
    refuse = None if options.trouble in (None, "omitted") else lambda loss: options.trouble == "refused" and loss > 6
    by_hand: dict[str, torch.Tensor] = {}
    for step in range(options.steps):
        trouble = TROUBLE.get(step, "") if options.trouble else ""
        if trouble and options.trouble == "omitted":
            continue
        target_tokens = sum(len(target) for _, target in pairs_of_step(step))
        mine = trouble and engine.rank == engine.world_size - 1
        function: LossFunction = partial(troubled, trouble, loss_function) if mine else loss_function
        before = snapshot(engine) if trouble else {}
        outcome = engine.train_step(
            micro_batches(step, engine.rank, engine.world_size),
            function,
            target_tokens=target_tokens,
            data_step=step,
            rate_factor=1.0,
            refuse=None if trouble.endswith("unasked") else refuse,
        )
        if trouble and process_group.any_rank([snapshot(engine) != before])[0]:
            changed.append(step)
        if options.ema_decay:
            decay = min(options.ema_decay, (2 + step) / (11 + step))
            for name, tensor in engine.weights():
                wide = tensor.double()
                by_hand[name] = decay * by_hand.get(name, wide) + (1 - decay) * wide
        losses.append(outcome.loss)
        norms.append(outcome.grad_norm)
        skipped.append(outcome.skipped)
        refused.append(outcome.refused)
    weights = {name: tensor.double().sum().item() for name, tensor in engine.weights()}
    average = {}
    if options.ema_decay:
        average = {name: tensor.double().norm().item() for name, tensor in engine.weights(AVERAGE)}
    if engine.is_main:
        result = {"losses": losses, "norms": norms, "skipped": skipped, "weights": weights, "is": engine.describe()}
        result |= {"moments_made": made, "refused": refused, "changed": changed, "first": first}
        result |= {"average": average, "average_by_hand": {name: by_hand[name].norm().item() for name in average}}
        options.out.write_text(json.dumps(result))
    process_group.stop()


if __name__ == "__main__":
    main()
