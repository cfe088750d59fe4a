"""Processes that a measurement starts: the same environment for all of them, and their last words when they fail."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bmscale.config import shipped_file
from bmscale.errors import BmscaleError

LAST_LINES = 15

GRACE_SECONDS = 20
"""What a process may take to end when it is asked to, before it is killed."""


def environment(threads: int) -> dict[str, str]:
    """This process's environment with so many threads a process."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}


def python(ranks: int, deepspeed: str | None) -> list[str]:
    """The words in front of `-m MODULE` that start so many ranks under a named DeepSpeed file."""
    if ranks == 1 or deepspeed is None:
        return [sys.executable]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(_launch_file())]
    return [*launch, "--deepspeed_config_file", f"ds_configs/{deepspeed}.json", "--num_processes", str(ranks)]


def _launch_file() -> Path:
    import torch

    path = shipped_file("launch", "one_node.yaml" if torch.cuda.is_available() else "cpu_2proc.yaml")
    if path is None:
        raise BmscaleError("launch/: the launch files are missing from this installation")
    return path


def run(command: Sequence[str], threads: int, log: Path, timeout: float | None = None) -> None:
    """Run to the end, its words into `log`. Raises BmscaleError with the last of them."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with started(command, threads, log) as running:
        try:
            code = running.wait(timeout)
        except subprocess.TimeoutExpired:
            raise BmscaleError(f"{' '.join(command)}: did not end within {timeout:.0f} s; see {log}") from None
    if code:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        raise BmscaleError("\n".join([f"{' '.join(command)}: ended with {code}", *last]))


@contextmanager
def started(command: Sequence[str], threads: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process, its words in `log`. It and the ranks that it started are gone behind the block: what went on would
    slow down the cases to come."""
    with log.open("w", encoding="utf-8") as file:
        running = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment(threads), start_new_session=True
        )
    try:
        yield running
    finally:
        running.terminate()  # a launcher ends its ranks, which are in sessions of their own
        with suppress(subprocess.TimeoutExpired):
            running.wait(GRACE_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def ask(
    command: Sequence[str], question: Mapping[str, Any], threads: int, log: Path, timeout: float | None = None
) -> dict[str, Any]:
    """Run `command QUESTION.json ANSWER.json` and return its answer. Raises BmscaleError."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "question.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(question), encoding="utf-8")
        run([*command, str(asked), str(answered)], threads, log, timeout)
        answer: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
        return answer
