"""`bmscale` with a death inside it: kill_worker.py PHASE OCCURRENCE RANK ARGUMENTS… (run by test_kill.py).

The process of that rank is killed with SIGKILL, which nothing can catch, when a save reaches the phase for the so
manieth time. Besides the phases that `checkpoint.reached` names there are `half a file`, in the middle of a write, and
`after the rename`, before the folder's new name is flushed.
"""

import os
import signal
import sys
from pathlib import Path

from bmscale.cli import main
from bmscale.training import checkpoint


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(wanted: str, occurrence: int) -> None:
    """Have this process die there."""
    seen = 0

    def count(phase: str) -> None:
        nonlocal seen
        if phase == wanted:
            seen += 1
            if seen == occurrence:
                die()

    write_durably, flush = checkpoint.write_durably, checkpoint._flush

    def write_half(path: Path, content: bytes) -> None:
        if wanted == "half a file" and path.suffix == ".safetensors":
            path.write_bytes(content[: len(content) // 2])
            count(wanted)
        write_durably(path, content)

    def flush_or_die(folder: Path) -> None:
        if folder.name == "state":  # the run's own folder, once after the rename and once after the pointer
            count("after the rename")
        flush(folder)

    checkpoint.reached = count
    checkpoint.write_durably = write_half
    checkpoint._flush = flush_or_die


if __name__ == "__main__":
    wanted, number, rank, *arguments = sys.argv[1:]
    if os.environ.get("RANK", "0") == rank:
        arm(wanted, int(number))
    sys.exit(main(arguments))
