"""metrics.jsonl and samples.jsonl, what their lines are summed from, the log lines and the progress bar of a run."""

import json
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bmscale.engine.engine import StepOutcome
from bmscale.planning.hardware import of_device
from bmscale.training.standing import WindowSums
from bmscale.training.step_data import StepData

log = logging.getLogger("bmscale")


def model_flops_utilisation(flops_per_second: float, devices: int, device_name: str) -> float | None:
    """The share of the data-sheet peak that useful model FLOPs reach, or None where no peak is known."""
    card = None if device_name == "cpu" else of_device(device_name)
    return None if card is None else round(flops_per_second / (card.bf16 * devices), 4)


class Metrics:
    """One JSON object a line, each with its step: a logged step, a validation, an event. Only rank 0 writes.

    A disk that is full or away does not end the training: lines wait, and are written with the next one that can be.
    """

    def __init__(self, path: Path, *, enabled: bool) -> None:
        self._path, self._enabled = path, enabled
        self._waiting = ""

    def holds(self, event: str) -> bool:
        """Whether a line of this event was ever written."""
        if not self._path.exists():
            return False
        with self._path.open(encoding="utf-8", errors="replace") as file:
            return any(f'"event": "{event}"' in line for line in file)

    def logged_steps(self) -> int:
        """Lines of steps after the first beginning, whatever they say."""
        if not self._path.exists():
            return 0
        with self._path.open(encoding="utf-8", errors="replace") as file:
            return sum(0 < _step_of(line) < math.inf for line in file)

    def resume(self, step: int, *, validated: bool = True) -> None:
        """Forget lines after `step`: the run died later than its last training state, and will write them again.

        What a validation found at `step` itself goes as well where the state is from before it (not `validated`).
        """
        if not self._enabled or not self._path.exists():
            return
        # Not splitlines: a sentence may hold U+2028 and the like, which JSON does not escape.
        lines = self._path.read_text(encoding="utf-8", errors="replace").split("\n")
        last = [line for line in lines if _step_of(line) <= step]
        kept = [line for line in last if validated or _step_of(line) < step or not _is_of_a_validation(line)]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self._path)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; a number that is not finite becomes null, which JSON can hold."""
        if self._enabled:
            clean = {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in record.items()
            }
            self._waiting += json.dumps(clean, ensure_ascii=False) + "\n"
            self._flush()

    def _flush(self) -> None:
        try:
            size = self._path.stat().st_size if self._path.exists() else 0
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(self._waiting)
            except OSError:
                os.truncate(self._path, size)  # what a full disk took of it would come twice
                raise
            self._waiting = ""
        except OSError as error:
            log.warning("%s: cannot be written (%s); its lines wait", self._path, error.strerror)


def _is_of_a_validation(line: str) -> bool:
    """Scores, or a sample translation."""
    return '"valid_loss": ' in line or '"translation": ' in line


def _step_of(line: str) -> float:
    """The step of a line; a line cut short by a crash counts as after everything."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return math.inf


class Progress:
    """A bar on a terminal, a log line every so many steps elsewhere."""

    def __init__(self, total: int, done: int, *, enabled: bool) -> None:
        self.is_bar = enabled and sys.stderr.isatty()
        self._enabled = enabled
        self._bar = tqdm(total=total, initial=done, unit="step", disable=not self.is_bar, dynamic_ncols=True)

    def step(self, loss: float) -> None:
        """One step more."""
        self._bar.update()
        if self.is_bar:
            self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

    def line(self, text: str) -> None:
        """A log line that leaves the bar whole."""
        if self._enabled:
            with self._bar.external_write_mode():
                log.info(text)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


class Window:
    """Sums over the steps since the last logged line."""

    def __init__(self, sums: WindowSums | None = None) -> None:
        """Goes on from `sums`, those of a training state."""
        self._sums = sums or WindowSums()
        self.start_clock()

    def start_clock(self) -> None:
        """The time up to now does not count."""
        self._last = time.monotonic()

    def lap(self, step: StepData, outcome: StepOutcome) -> float:
        """Add one step; returns its wall time in seconds."""
        elapsed = time.monotonic() - self._last
        self.start_clock()
        was, taken = self._sums, not outcome.skipped
        weight = step.target_tokens if taken else 0
        self._sums = WindowSums(
            seconds=was.seconds + elapsed,
            steps=was.steps + 1,
            skipped=was.skipped + outcome.skipped,
            target_tokens=was.target_tokens + step.target_tokens,
            trained_tokens=was.trained_tokens + weight,
            tokens=was.tokens + step.tokens,
            slots=was.slots + step.slots,
            waited_seconds=was.waited_seconds + step.waited_seconds,
            flops=was.flops + step.flops,
            loss=was.loss + (outcome.loss * weight if taken else 0.0),
            nll=was.nll + (outcome.nll * weight if taken else 0.0),
            grad_norm=was.grad_norm + (outcome.grad_norm if taken else 0.0),
        )
        return elapsed

    @property
    def sums(self) -> WindowSums:
        """What a training state keeps of it."""
        return self._sums

    @property
    def loss(self) -> float:
        """Smoothed loss a target token."""
        return self._sums.loss / self._sums.trained_tokens if self._sums.trained_tokens else math.nan

    @property
    def nll(self) -> float:
        """Negative log-likelihood a target token."""
        return self._sums.nll / self._sums.trained_tokens if self._sums.trained_tokens else math.nan

    @property
    def grad_norm(self) -> float:
        """Mean norm before clipping."""
        taken = self._sums.steps - self._sums.skipped
        return self._sums.grad_norm / taken if taken else math.nan

    @property
    def seconds(self) -> float:
        """Wall time of the steps, never 0."""
        return max(self._sums.seconds, 1e-9)
