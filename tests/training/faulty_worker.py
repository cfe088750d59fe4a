"""`bmscale train` with a fault at step 5: `faulty_worker.py FAULT ARGUMENTS`, on each rank. Its processes are noted."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from bmscale.cli import main
from bmscale.training.step_data import StepReader
from bmscale.training.train import _Loop

STEP = 5


def fail() -> None:
    raise ValueError("the fault of rank 1")


def hang() -> None:
    time.sleep(10_000)


def note(folder: Path, name: str, number: float) -> None:
    (folder / f"{name}.tmp").write_text(str(number))
    (folder / f"{name}.tmp").rename(folder / name)


def strike(fault: str, notes: Path) -> None:
    note(notes, "when", time.time())
    match fault:
        case "raises":
            fail()
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "no data":
            hang()
        case "no launcher":
            os.kill(os.getppid(), signal.SIGKILL)


def run(fault: str, arguments: list[str]) -> int:
    rank, notes = int(os.environ["RANK"]), Path(os.environ["NOTES"])
    note(notes, f"pid-{rank}", os.getpid())
    owner: Any = StepReader if fault == "no data" else _Loop
    name = "_read" if fault == "no data" else "train_step"
    original = getattr(owner, name)

    def faulty(self: Any, *given: Any) -> Any:
        step = given[0] if fault == "no data" else given[1].data_step
        if rank == 1 and step + 1 == STEP:
            strike(fault, notes)
        return original(self, *given)

    setattr(owner, name, faulty)
    return main(["train", *arguments])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
