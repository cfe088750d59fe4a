"""What asks a run to stop or to save while it trains: signals to any rank, and switch files in the run folder.

Launchers pass signals on in no useful way: torchrun and accelerate die of SIGUSR1, and answer SIGTERM by killing their
ranks 30 s later (pytorch #119856, #154849; accelerate #1918). So a signal may go to any rank, by the process numbers in
RUN/ranks; it only sets a flag, and the ranks agree on it at the next boundary: between steps, and between the batches
of a validation.
"""

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from bmscale.engine import process_group
from bmscale.experiment import RunFolder

PREEMPTED, INTERRUPTED, STOPPED = "preempted", "interrupted", "stopped"
SECONDS_BETWEEN_LOOKS = 1.0
"""The switch files may lie on a busy shared file system."""


class Interrupted(Exception):
    """Something asked the run to stop while it was between two steps; raised on every rank at the same place."""


class Signals:
    """SIGTERM, SIGUSR1 and SIGHUP preempt, Ctrl-C interrupts; RUN/STOP stops and RUN/SAVE saves."""

    def __init__(self, run: RunFolder, rank: int) -> None:
        self._files = {STOPPED: run.path / "STOP", "save": run.path / "SAVE"} if rank == 0 else {}
        self._caught: dict[str, float] = {}
        self._before: dict[int, Any] = {}
        self._looked = 0.0
        self.ending: str | None = None
        """PREEMPTED, INTERRUPTED or STOPPED once the ranks agreed to end; the first of these where several came."""
        self.save_wanted = False
        """Somebody asked for a state now; whoever saves it sets this back."""
        self.since: float | None = None
        """When the first signal came to any rank (seconds since 1970), None where none did."""

    def __enter__(self) -> "Signals":
        """Catch the signals from now on. Only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number, what in (
                (signal.SIGTERM, PREEMPTED),
                (signal.SIGUSR1, PREEMPTED),
                (signal.SIGHUP, PREEMPTED),  # a session that was lost: launchers pass it on
                (signal.SIGINT, INTERRUPTED),
            ):
                self._before[number] = signal.signal(number, self._handler(what))
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handler(self, what: str) -> Any:
        def handle(number: int, frame: FrameType | None) -> None:
            self._caught.setdefault(what, time.time())
            if number == signal.SIGINT:  # the second Ctrl-C does not wait for a boundary
                signal.signal(number, signal.default_int_handler)

        return handle

    def poll(self) -> str | None:
        """What the ranks agree on: why the run is to end, or None. Collective, and cheap."""
        self._look_at_files()
        wanted = [what in self._caught for what in (PREEMPTED, INTERRUPTED, STOPPED, "save")]
        preempted, interrupted, stopped, save = process_group.any_rank(wanted)
        self.save_wanted = self.save_wanted or save
        self._caught.pop("save", None)
        if self.ending is None and (preempted or interrupted or stopped):
            self.ending = PREEMPTED if preempted else INTERRUPTED if interrupted else STOPPED
            times = process_group.gather_objects(min(self._caught.values(), default=None))
            self.since = min((found for found in times if found is not None), default=None)
        return self.ending

    def check(self) -> None:
        """For long work between two steps: raises Interrupted on every rank once the run is to end. Collective."""
        if self.poll():
            raise Interrupted

    def _look_at_files(self) -> None:
        now = time.monotonic()
        if now - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        self._looked = now
        for what, path in self._files.items():
            if path.exists():
                self._caught.setdefault(what, time.time())
                if what == "save":
                    _remove(path)


def _remove(path: Path) -> None:
    """A switch that cannot be taken away would be seen again and again; it is the user's to remove then."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
