"""One process of test_large_state.py: make the `1b` model, save its training state, load it again, count memory.

python tests/training/large_state_worker.py FOLDER SIZE DEEPSPEED > found.json
"""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bmscale.data.batch import empty_batch
from bmscale.engine import process_group
from bmscale.engine.engine import Engine
from bmscale.evaluation.loss import batch_loss
from bmscale.experiment import OptimizerConfig, TrainingConfig
from bmscale.model import EncoderDecoderConfig, EncoderDecoderForConditionalGeneration
from bmscale.model.config import PRESETS
from bmscale.model.sizes import SIZES
from bmscale.training import checkpoint
from bmscale.training.optimizer import make_optimizer
from bmscale.training.standing import Standing


def memory(what: str) -> float:
    """Of this process, in GiB: VmRSS now, or VmHWM, the peak since it was last reset."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) / 2**20


def measured(action: Any) -> tuple[dict[str, float], Any]:
    """Do something, and say what it took."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak (proc(5))
    before, begun = memory("VmRSS"), time.monotonic()
    result = action()
    return {
        "seconds": round(time.monotonic() - begun, 1),
        "gib_before": round(before, 2),
        "gib_more_at_peak": round(memory("VmHWM") - before, 2),
    }, result


def main() -> None:
    folder, size, deepspeed = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    optimizer = OptimizerConfig()
    training = TrainingConfig(max_steps=1, precision="bf16", deepspeed=deepspeed, optimizer=optimizer)
    engine = Engine(training)
    config = EncoderDecoderConfig(**{**PRESETS["modern"], **SIZES[size], "vocab_size": 32_000})
    # The values do not matter here, and drawing a billion of them from named generators takes minutes.
    engine.build(
        lambda: EncoderDecoderForConditionalGeneration(config),
        lambda name, shape: torch.full(shape, len(name) / 1000),
        partial(make_optimizer, config=optimizer),
    )

    def empty_step() -> None:
        batches = [empty_batch().to(engine.device)]
        engine.train_step(batches, partial(batch_loss), target_tokens=1, data_step=0, rate_factor=0.0)

    empty_step()
    save = checkpoint.Save(folder, engine, Standing(optimizer_step=1, data_step=1), None)

    def write() -> checkpoint.Saved:
        save.write(background=False)
        return save.commit(2)

    saving, saved = measured(write)

    def load() -> None:
        engine.load_state(checkpoint.StateReader(saved.path), 1, empty_step)

    loading, _ = measured(load)
    found = {
        "parameters": sum(shape.numel() for shape in engine.shapes().values()),
        "engine": engine.describe(),
        "state_gib": round(saved.bytes / 2**30, 2),
        "largest_piece_gib": round(max(len(piece.values) for piece in engine.pieces()) * 4 / 2**30, 2),
        "save": process_group.gather_objects(saving),
        "load": process_group.gather_objects(loading),
    }
    if engine.is_main:
        print(json.dumps(found))
    process_group.stop()


if __name__ == "__main__":
    main()
