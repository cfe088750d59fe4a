"""`bmscale doctor` on ranks that are not well: `ill_worker.py engine|rank doctor CONFIG …`, for test_doctor.py."""

import os
import sys
from typing import Any

import torch

from bmscale.cli import main
from bmscale.doctor.checks import Checks
from bmscale.doctor.findings import Finding
from bmscale.engine import deepspeed_config
from bmscale.engine.engine import Engine


def break_the_engine() -> None:
    """The last micro-batch is lost, nothing is clipped, and the rate is doubled."""
    backward, step, complete = Engine._backward, Engine.train_step, deepspeed_config.complete

    def lossy(self: Engine, loss: torch.Tensor, *, last: bool) -> None:
        backward(self, 0 * loss if last else loss, last=last)

    def fast(self: Engine, *arguments: Any, rate_factor: float, **options: Any) -> Any:
        return step(self, *arguments, rate_factor=2 * rate_factor, **options)

    Engine._backward = lossy  # type: ignore[method-assign]
    Engine.train_step = fast  # type: ignore[method-assign]
    Engine._check_deepspeed = lambda self: None  # type: ignore[method-assign]
    deepspeed_config.complete = lambda *given: {**complete(*given), "gradient_clipping": 0.0}


def break_one_rank() -> None:
    """Rank 1 has other data than rank 0, and cannot send."""
    if os.environ["RANK"] != "1":
        return
    opened = Checks.open

    def other(self: Checks) -> Finding:
        return Finding("experiment", "ok", opened(self).found, alike="data of another disk")

    def unplugged(self: Checks) -> list[Finding]:
        raise RuntimeError("no route to host")

    Checks.open = other  # type: ignore[method-assign]
    Checks.all_reduce = unplugged  # type: ignore[method-assign]


if __name__ == "__main__":
    {"engine": break_the_engine, "rank": break_one_rank}[sys.argv[1]]()
    raise SystemExit(main(sys.argv[2:]))
