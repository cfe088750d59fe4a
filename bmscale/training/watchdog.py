"""Each rank's watchdog: a thread that shows others how far the rank is, and ends it when going on has no sense.

That is: when nobody has come forward for long (a hang), when another rank is gone, or the launcher. The main thread
may then sit in a collective for ever, where neither an exception nor a signal reaches it.
"""

import contextlib
import dataclasses
import math
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from bmscale.errors import LostRank
from bmscale.experiment import RunFolder
from bmscale.training import ranks, record
from bmscale.training.ranks import RankState

TICK_SECONDS = 1.0
BEAT_SECONDS = 5.0
"""Between two writings of a rank's file."""
OBSERVED_SECONDS = 2.5 * BEAT_SECONDS
"""A rank whose file stays as it is for so long does not answer. No clock is compared with one of another machine."""
GRACE_SECONDS = 10.0
"""The main thread's own time to end when another rank is gone: it mostly gets an error from its collective."""
ORPHAN_SECONDS = 30.0
"""The same when the launcher is gone, of which SIGTERM told it (see `ending.follow_launcher`)."""

STARTING, BUILDING, LOADING = "starting", "building the model", "rolling back"
UNLIMITED = (STARTING, BUILDING, LOADING)
"""Phases without a time limit: DeepSpeed may compile, or a state of terabytes be verified, for many minutes."""
WRITING = ("saving", "writing the model")
"""Phases that are worth finishing without a launcher."""

Item = TypeVar("Item")


class _Place(NamedTuple):
    phase: str
    step: int
    turn: int
    since: float


class Watchdog:
    """Watches over one rank of a run; a context manager around its steps.

    Phases and steps go with `at`, the same ones in the same order on every rank; `moved` and `along` tell that a long
    phase gets on. `limit_seconds` without either, on all ranks, are a hang: then one message names the rank that holds
    the others up, exit.json says lost_rank, and the process ends with code 5. None never ends a run for that.
    """

    def __init__(self, run: RunFolder, rank: int, world_size: int, limit_seconds: float | None) -> None:
        self._run, self._rank, self._world_size, self._limit = run, rank, world_size, limit_seconds
        self._host, self._pid = socket.gethostname(), os.getpid()
        self._started = ranks.start_of(self._pid) or 0
        self._place = _Place(STARTING, 0, 0, time.time())
        self._moved = time.monotonic()
        self._main = threading.main_thread()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._orphaned: float | None = None
        self._neighbours: dict[int, RankState] | None = None
        self._over: tuple[float, RankState | None] | None = None
        self._before: tuple[float, dict[int, RankState]] | None = None

    # -- what the main thread says: attributes only ------------------------------------------------------------------

    def at(self, phase: str, step: int) -> None:
        """The rank begins a phase of a step (1 for the run's first), or comes forward in it."""
        place = self._place
        if (phase, step) != (place.phase, place.step):
            self._place = _Place(phase, step, place.turn + 1, time.time())
        self._moved = time.monotonic()

    def moved(self, *_: Any) -> None:
        """The rank comes forward; takes any arguments, so that it can be a hook."""
        self._moved = time.monotonic()

    def along(self, phase: str, step: int, items: Iterable[Item]) -> Iterator[Item]:
        """The items of a phase, with each of which the rank comes forward."""
        self.at(phase, step)
        for item in items:
            yield item
            self.moved()

    # -- its life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Write this rank's file, and again every few seconds."""
        ranks.write(self._run, self.state())
        self._thread.start()

    def stop(self, error: BaseException | None = None) -> None:
        """Stop watching. After a clean end the rank's file goes; else it stays, with the traceback of the error."""
        self._stopped.set()
        self._thread.join(timeout=2 * TICK_SECONDS)
        with contextlib.suppress(OSError):  # a full disk must not hide the error
            if error is None:
                ranks.remove(self._run, self._rank)
            else:
                ranks.write(self._run, self.state(error="".join(traceback.format_exception(error))))

    def __enter__(self) -> "Watchdog":
        self.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.stop(error)

    def state(self, error: str | None = None) -> RankState:
        """This rank as it is now."""
        place, idle, now = self._place, time.monotonic() - self._moved, time.time()
        return RankState(
            rank=self._rank,
            world_size=self._world_size,
            host=self._host,
            pid=self._pid,
            started=self._started,
            step=place.step,
            phase=place.phase,
            turn=place.turn,
            since=round(place.since, 3),
            moved=round(now - idle, 3),
            beat=round(now, 3),
            stack=self._stack() if idle > (self._limit or math.inf) / 2 else None,
            error=error,
        )

    # -- the thread --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        beaten = time.monotonic()
        while not self._stopped.wait(TICK_SECONDS):
            now = time.monotonic()
            is_beat = now - beaten >= BEAT_SECONDS
            if is_beat:
                beaten = now
                with contextlib.suppress(OSError):  # the disk may come back, and training needs it less often
                    ranks.write(self._run, self.state())
            self._watch_launcher(now)
            self._watch_neighbours(now, read_exit=is_beat)
            self._watch_limit(now)

    def _watch_launcher(self, now: float) -> None:
        """End a rank that its launcher left behind and that does not end by itself."""
        if self._launcher is None or os.getppid() == self._launcher:
            return
        self._orphaned = self._orphaned or now
        # Also a rank that has written its own waits for the others' writing.
        busy = self._place.phase in WRITING and now - self._moved < (self._limit or math.inf)
        if now - self._orphaned > ORPHAN_SECONDS and not busy:
            state = self.state()
            self._end(f"the launcher of {state.name} is gone (process {self._launcher}); at {state.place}", state)

    def _watch_neighbours(self, now: float, *, read_exit: bool) -> None:
        """End when a rank of this machine is gone or any rank has said why the job ends, and the main thread stays."""
        if self._neighbours is None:
            if self._place.phase == STARTING:  # another may not have begun yet
                return
            others = [rank for rank in ranks.on_this_node(self._rank) if rank != self._rank]
            # Containers may share a host's name without seeing each other's processes: only who is seen can be missed.
            alive = ranks.read(self._run, others)
            self._neighbours = {rank: state for rank, state in alive.items() if not ranks.is_gone(state)}
        if self._over is None:
            for rank, state in list(self._neighbours.items()):
                if ranks.is_gone(state):
                    del self._neighbours[rank]
                    if ranks.read(self._run, [rank]):  # else it came to a clean end
                        self._over = now, state
            if read_exit and record.read_exit(self._run) is not None:
                self._over = self._over or (now, None)
        elif now - self._over[0] > GRACE_SECONDS:
            lost = self._over[1]
            self._end("" if lost is None else lost_message(lost, self.state()), lost or self.state())

    def _watch_limit(self, now: float) -> None:
        """End when nobody comes forward: rank 0 says so, another one only if rank 0 does not."""
        patience = OBSERVED_SECONDS * 1.5 * min(self._rank, 3)
        stalled = self._limit is not None and now - self._moved > self._limit + patience
        if self._limit is None or not stalled or self._place.phase in UNLIMITED:
            self._before = None
            return
        if self._before is None:
            self._before = now, ranks.read(self._run, range(self._world_size))
        elif now - self._before[0] > OBSERVED_SECONDS:
            after = ranks.read(self._run, range(self._world_size)) | {self._rank: self.state()}
            hang = find_hang(self._before[1], after, self._rank, self._limit)
            self._before = None
            if hang is not None and now - self._moved > self._limit:
                culprit, message = hang
                self._end(message, culprit, stack=culprit.stack)

    def _end(self, message: str, culprit: RankState, stack: str | None = None) -> None:
        """End this process, with the message unless another rank has said why."""
        if self._stopped.is_set():  # the main thread got out: it knows more
            return
        facts: dict[str, Any] = {"rank": culprit.rank, "step": self._place.step}
        try:
            if message and record.write_exit(self._run, LostRank.exit_code, message, **facts):
                record.say(self._run, (stack or "") + f"bmscale: error: {message}")
        finally:
            os._exit((record.read_exit(self._run) or {}).get("code", LostRank.exit_code))

    def _stack(self) -> str:
        """Where the main thread and the data reader stand."""
        frames = sys._current_frames()
        shown = [thread for thread in threading.enumerate() if thread is self._main or "reader" in thread.name]
        return "".join(
            f"{thread.name} of rank {self._rank}, most recent call last:\n"
            + "".join(traceback.format_stack(frames[thread.ident]))
            for thread in shown
            if thread.ident in frames
        )


def lost_message(lost: RankState, witness: RankState) -> str:
    """What to say of a rank whose process is gone."""
    return (
        f"{lost.name} is gone without a word: killed (the system does that when memory runs out) or crashed; rank "
        f"{witness.rank} was at {witness.place}. The log of the launcher may have its signal"
    )


def find_hang(
    before: dict[int, RankState], after: dict[int, RankState], witness: int, limit_seconds: float
) -> tuple[RankState, str] | None:
    """Which rank holds the others up, and what to say; None while some rank comes forward.

    `before` and `after` are what the ranks wrote, OBSERVED_SECONDS apart: a rank that wrote nothing in between is not
    running. Of those that run, the least far is the one that the others wait for.
    """
    silent = [state for rank, state in after.items() if rank in before and before[rank].beat == state.beat]
    running = [state for state in after.values() if state not in silent]
    if any(state.idle < limit_seconds for state in running):
        return None
    turn = min((state.turn for state in running), default=0)
    last = [state for state in running if state.turn == turn]
    if silent:
        culprit, waiting = dataclasses.replace(silent[0], stack=None), running  # which it wrote while it still ran
        what = (
            f"{culprit.name} has not answered for {time.time() - culprit.beat:.0f} s: its process is stopped, or its "
            f"machine is; last seen at {culprit.place}"
        )
    else:
        culprit = max(last, key=lambda state: state.idle)
        waiting = [state for state in running if state not in last]
        what = f"{culprit.name} has been at {culprit.place} for {culprit.idle:.0f} s"
        if len(running) > 1 and not waiting:
            what += f", and so have all {len(running)} ranks: a collective does not end"
    waiting.sort(key=lambda state: state.rank != witness)
    if waiting:
        others = f" and {len(waiting) - 1} more wait" if len(waiting) > 1 else " waits"
        what += f"; rank {waiting[0].rank}{others} for it at {waiting[0].place}"
    return culprit, what + ". What each rank was doing stands in ranks/ of the run folder"
