"""One rank of test_elastic.py: train and save a state, or load states of others one after another and go on.

python -m tests.engine.elastic_worker --deepspeed zero2 --out found.json --save FOLDER
python -m tests.engine.elastic_worker --deepspeed zero2 --out found.json --load FOLDER FOLDER …
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch

from bmscale.data.batch import empty_batch
from bmscale.engine import process_group
from bmscale.engine.engine import AVERAGE, Engine
from bmscale.evaluation.loss import batch_loss
from bmscale.experiment import OptimizerConfig, TrainingConfig
from bmscale.model import EncoderDecoderForConditionalGeneration
from bmscale.model.init import initial_value
from bmscale.training import checkpoint
from bmscale.training.optimizer import make_optimizer
from bmscale.training.standing import Standing
from bmscale.training.states import States
from tests.engine.equivalence_worker import CONFIG, micro_batches, pairs_of_step

SAVED_AT, UNTIL = 8, 12


class Trainer:
    """A model on this rank, and the steps of equivalence_worker."""

    def __init__(self, deepspeed: str, precision: str) -> None:
        optimizer = OptimizerConfig(learning_rate=2e-3)
        training = TrainingConfig(
            max_steps=UNTIL,
            precision="bf16" if precision == "bf16" else "fp32",
            clip_norm=None,
            deepspeed=deepspeed,
            optimizer=optimizer,
            ema_decay=0.8,
        )
        self.training, self.engine = training, Engine(training)
        self.engine.build(
            lambda: EncoderDecoderForConditionalGeneration(CONFIG),
            lambda name, shape: initial_value(name, shape, 0, CONFIG),
            partial(make_optimizer, config=optimizer),
        )
        self.loss_function = partial(batch_loss, label_smoothing=0.1)

    def states(self, folder: Path) -> States:
        return States(folder, self.engine, self.training, self.probe, self.empty_step, lambda event: None)

    def probe(self) -> float:
        (batch,) = micro_batches(0, 0, 1)[:1]
        with self.engine.evaluation() as model:
            return float(batch_loss(model, batch).nll) / batch.target_tokens

    def empty_step(self) -> None:
        self.engine.train_step([empty_batch()], self.loss_function, target_tokens=1, data_step=0, rate_factor=0.0)

    def train(self, standing: Standing, until: int) -> tuple[Standing, list[float], list[float]]:
        losses, norms = [], []
        for step in range(standing.data_step, until):
            tokens = sum(len(target) for _, target in pairs_of_step(step))
            batches = micro_batches(step, self.engine.rank, self.engine.world_size)
            outcome = self.engine.train_step(
                batches, self.loss_function, target_tokens=tokens, data_step=step, rate_factor=1.0
            )
            losses.append(outcome.loss)
            norms.append(outcome.grad_norm)
            standing = standing.after_step(tokens, skipped=outcome.skipped)
        return standing, losses, norms

    def fingerprint(self) -> dict[str, list[float]]:
        """Sums of the weights and norms of the running mean, by parameter."""
        weights = {name: [tensor.double().sum().item()] for name, tensor in self.engine.weights()}
        for name, tensor in self.engine.weights(AVERAGE):
            weights[name].append(tensor.double().norm().item())
        return weights


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--deepspeed", required=True)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--load", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    trainer = Trainer(options.deepspeed, options.precision)
    found: dict[str, object] = {"is": trainer.engine.describe()}
    if options.save:
        standing, *before = trainer.train(Standing(), SAVED_AT)
        assert trainer.states(options.save).save(standing)
        _, *after = trainer.train(standing, UNTIL)
        losses, norms = (one + other for one, other in zip(before, after, strict=True))
        found |= {"losses": losses, "norms": norms, "weights": trainer.fingerprint()}
    for folder in options.load:
        state = checkpoint.find_usable(folder)
        assert state is not None
        standing = trainer.states(folder).load(state)
        wanted = checkpoint.read_manifest(state).probe
        assert wanted is not None
        probe = abs(trainer.probe() - wanted) / wanted
        _, losses, norms = trainer.train(standing, UNTIL)
        weights = trainer.fingerprint()
        found[folder.name] = {"losses": losses, "norms": norms, "weights": weights, "probe": probe}
    if trainer.engine.is_main:
        options.out.write_text(json.dumps(found))
    process_group.stop()


if __name__ == "__main__":
    main()
