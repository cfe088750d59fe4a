"""One process of test_billions.py: make a model as `bmscale train` does; what that took, and how its values are spread.

python -m tests.training.construction_worker CONFIG [key.sub=value …] > found.json
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bmscale.engine import process_group
from bmscale.engine.engine import Engine
from bmscale.experiment import read_experiment
from bmscale.training import train
from tests.engine.spread import deviations


def peak_gib() -> float:
    """VmHWM of this process since it was last asked for."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak (proc(5))
    return round(int(line.split()[1]) / 2**20, 2)


def main() -> None:
    experiment = read_experiment(sys.argv[1], sys.argv[2:])
    _, _, _, inherited, config, _ = train.planned(experiment, new_schedule=False)
    engine = Engine(experiment.training, experiment.run_folder.path)
    found: dict[str, Any] = {"gib_of_the_process": peak_gib()}
    make_optimizer, begun = train.make_optimizer, time.monotonic()

    def measured(model: nn.Module, *options: Any, **more: Any) -> torch.optim.Optimizer:
        found["gib_to_make_the_weights"] = peak_gib()
        found["seconds_to_make_the_weights"] = round(time.monotonic() - begun, 1)
        return make_optimizer(model, *options, **more)

    train.make_optimizer = measured
    train.build_model(engine, experiment, config, inherited)
    found["gib_to_make_the_optimizer"] = peak_gib()
    found["seconds"] = round(time.monotonic() - begun, 1)
    found["parameters"] = sum(shape.numel() for shape in engine.shapes().values())
    far = {name: deviations(values, name, config) for name, values in engine.weights()}
    found["gib_to_read_the_weights"] = peak_gib()
    found |= {"matrices": len(far), "furthest_from_the_promise": round(max(far.values()), 2)}
    engine.close()
    print(json.dumps(found))
    process_group.stop()


if __name__ == "__main__":
    main()
