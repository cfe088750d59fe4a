"""One queue for a model: small pieces of work of many requests, run together in batches, fairly.

A request is a list of units, each one short call of the model. A batch takes one unit of each waiting request in turn,
then a second of each, so that a long text gives way to short ones after every batch. What waits is bounded: a request
that does not fit is refused at once, with the time after which it might.
"""

import contextlib
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from bmscale.errors import BadInput

log = logging.getLogger("bmscale")

# A batch runs as long as its longest unit: those of one batch differ in size by this factor at most …
_SPREAD = 4
# … but for those below so many slots, which are all quick.
_SMALL_SLOTS = 256
# A speed that was measured counts for so long: a request that was taken to be too long may be tried again.
_SPEED_SECONDS = 60.0


class Overloaded(Exception):
    """The queue is full: try again in `retry_after` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class TooLong(Exception):
    """A request that would take longer than the time it has, were it alone: `seconds`, by the speed of late."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"it would take about {seconds:.0f} s")
        self.seconds = seconds


class Unwanted(Exception):
    """Raised by a call of the model once nobody waits for any of its units."""


class Closed(Exception):
    """The server is shutting down and takes no more."""


@dataclass(frozen=True)
class Unit:
    """One short call of the model."""

    payload: Any
    slots: int
    """What it takes of a batch: tokens, those included that may be written, times beams."""
    key: Hashable = None
    """Units of one key can share a batch."""


@dataclass(frozen=True)
class BatchLimits:
    """How units are gathered."""

    max_batch_slots: int = 32_768
    """Padded slots of a batch. A larger unit is a batch of its own; 1 switches batching off."""
    max_wait_seconds: float = 0.005
    """The first unit of a batch waits so long for company."""
    max_queue_slots: int = 800_000
    """Slots that wait at most; a request is refused that would exceed them, unless nothing waits."""

    def __post_init__(self) -> None:
        """Raises BadInput for a bound that leaves no room."""
        for name in ("max_batch_slots", "max_queue_slots"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}: must be at least 1; got {getattr(self, name)}")
        if not 0 <= self.max_wait_seconds <= 10:
            raise BadInput(f"max_wait_seconds: must be 0 to 10 s (10,000 ms); got {self.max_wait_seconds:g} s")


class Observer(Protocol):
    """Who is told of each batch."""

    def ran(self, units: int, slots: int, seconds: float) -> None:
        """A batch of so many units has run."""


class _Work:
    """One request: units that wait, and results that are there."""

    def __init__(self, units: Sequence[Unit], seconds: float) -> None:
        self.waiting = deque(enumerate(units))
        self.slots = sum(unit.slots for unit in units)
        """Of those that wait."""
        self.widest = max((unit.slots for unit in units), default=0)
        self.results: list[Any] = [None] * len(units)
        self.left = len(units)
        self.arrived = time.monotonic()
        self.until = self.arrived + seconds
        self.future: Future[list[Any]] = Future()


@dataclass
class _Speed:
    """Of some batches: how many they were, the slots of the largest, and the slots a second of the fastest."""

    batches: int = 0
    slots: int = 0
    speed: float = 0.0

    def add(self, batches: int, slots: int, speed: float) -> None:
        self.batches += batches
        self.slots, self.speed = max(self.slots, slots), max(self.speed, speed)


class _FullBatches:
    """The speed of the batches of the last minute, kept for each second of it."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, _Speed]] = deque()

    def add(self, now: float, slots: int, speed: float) -> None:
        """One batch that ended now."""
        if not self._seconds or self._seconds[-1][0] != int(now):
            self._seconds.append((int(now), _Speed()))
        self._seconds[-1][1].add(1, slots, speed)
        self._forget(now)

    def of_late(self, now: float) -> _Speed:
        """All of them together."""
        self._forget(now)
        together = _Speed()
        for _, one in self._seconds:
            together.add(one.batches, one.slots, one.speed)
        return together

    def _forget(self, now: float) -> None:
        while self._seconds and now - self._seconds[0][0] > _SPEED_SECONDS:
            self._seconds.popleft()


_Taken = list[tuple[_Work, int, Unit]]


class Batcher:
    """A thread that calls `run(key, payloads)`, which returns a result for each payload."""

    def __init__(
        self,
        name: str,
        run: Callable[[Any, list[Any]], Sequence[Any]],
        limits: BatchLimits | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.name, self._run, self._observer = name, run, observer
        self.limits = limits or BatchLimits()
        self._ring: deque[_Work] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._slots_per_second = 0.0
        self._full_batches = _FullBatches()
        self._running: _Taken = []
        self.waiting_slots = self.waiting_units = self.running_slots = self.beside_slots = 0
        self._thread = threading.Thread(target=self._loop, name=f"batches of {name}", daemon=True)
        self._thread.start()

    def submit(self, units: Sequence[Unit], seconds: float = float("inf")) -> Future[list[Any]]:
        """Results of the units in order, as a future; cancelling it takes what still waits out of the queue.

        Raises Overloaded where the queue has no room, TooLong where the work cannot be done in so many seconds, Closed
        after `close`. Where it shows only later that the seconds are too few, the future has TooLong.
        """
        work = _Work(units, seconds)
        with self._change:
            if late := self._takes_too_long(work):
                raise late
            self._check_room(work.slots)
            if units:
                self._ring.append(work)
                self.waiting_slots += work.slots
                self.waiting_units += len(units)
                self._change.notify()
        if not units:
            work.future.set_result([])
        work.future.add_done_callback(lambda future: self._drop(work) if future.cancelled() else None)
        return work.future

    @contextlib.contextmanager
    def beside(self, slots: int) -> Iterator[None]:
        """Work that runs outside of the batches, and counts in the queue for as long. Raises as `submit` does."""
        with self._change:
            self._check_room(slots)
            self.beside_slots += slots
        try:
            yield
        finally:
            with self._change:
                self.beside_slots -= slots

    def check_wanted(self) -> None:
        """For `run` to call now and then. Raises Unwanted where nobody waits for its batch any more; in other threads
        than the one that runs batches it does nothing."""
        if threading.current_thread() is self._thread and all(work.future.done() for work, _, _ in self._running):
            raise Unwanted

    def _check_room(self, slots: int) -> None:
        """Raises Closed, or Overloaded where so many slots more are too many."""
        if self._closed:
            raise Closed
        held = self.waiting_slots + self.beside_slots
        if held and held + slots > self.limits.max_queue_slots:
            raise Overloaded(self._seconds_until(slots))

    def _takes_too_long(self, work: _Work) -> TooLong | None:
        """Whether what waits of a request could not be done in time, were it alone in the queue.

        By the best speed of batches that were at least half full: small ones are slower. Where a unit fills a batch by
        itself, that says nothing of requests with units of more than twice the size. Two of them, for the first one of
        all is slower too. Of a request of which nothing ran yet twice the time counts, as texts differ.
        """
        now = time.monotonic()
        known = self._full_batches.of_late(now)
        if known.batches < 2 or work.widest > 2 * known.slots:
            return None
        needed = work.slots / known.speed
        doubt = 2 if len(work.waiting) == len(work.results) else 1
        return TooLong(now - work.arrived + needed) if needed > doubt * (work.until - now) else None

    def _give_up_hopeless(self) -> None:
        """Answer those that have begun and cannot be finished in time: what they wait for would be work in vain."""
        for work in list(self._ring):
            if work.future.done():
                continue  # cancelled; it is about to be dropped
            if late := self._takes_too_long(work):
                self._drop(work)
                _settle(work.future, late)

    def close(self) -> None:
        """Take no more, finish what was accepted, and end the thread."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()

    def _seconds_until(self, slots: int) -> int:
        """When the queue may have room for so many slots, by the speed of late; 1 to 60."""
        too_many = self.waiting_slots + self.running_slots + self.beside_slots + slots - self.limits.max_queue_slots
        seconds = too_many / self._slots_per_second if self._slots_per_second else 1.0
        return int(min(60.0, max(1.0, seconds + 0.999)))

    def _drop(self, work: _Work) -> None:
        """Take what waits of a request out of the queue."""
        with self._change:
            self.waiting_slots -= work.slots
            self.waiting_units -= len(work.waiting)
            work.waiting.clear()
            work.slots = 0
            if work in self._ring:
                self._ring.remove(work)

    def _loop(self) -> None:
        while True:
            with self._change:
                while not self._ring and not self._closed:
                    self._change.wait()
                if not self._ring:
                    return
                self._wait_for_company()
                self._give_up_hopeless()
                batch = self._take()
                self.running_slots = sum(unit.slots for _, _, unit in batch)
            if batch:
                self._answer(batch)
            self.running_slots = 0

    def _wait_for_company(self) -> None:
        """Until a batch is full, or the request at the front has waited long enough."""
        while self._ring and not self._closed and self.waiting_slots < self.limits.max_batch_slots:
            rest = self._ring[0].arrived + self.limits.max_wait_seconds - time.monotonic()
            if rest <= 0:
                return
            self._change.wait(rest)

    def _take(self) -> _Taken:
        """The next batch: of each request in turn its next unit, for as long as one fits."""
        batch: _Taken = []
        served: dict[int, _Work] = {}
        widest = narrowest = 0
        took = True
        while took:
            took = False
            for work in self._ring:
                if not work.waiting:
                    continue
                unit = work.waiting[0][1]
                wide, narrow = max(widest, unit.slots), min(narrowest or unit.slots, unit.slots)
                if batch and not (
                    unit.key == batch[0][2].key
                    and (len(batch) + 1) * wide <= self.limits.max_batch_slots
                    and wide <= _SPREAD * max(narrow, _SMALL_SLOTS)
                ):
                    continue
                batch.append((work, *work.waiting.popleft()))
                work.slots -= unit.slots
                served[id(work)] = work
                widest, narrowest, took = wide, narrow, True
        # Who was served goes to the back, so that whoever waits longest is at the front of the next batch.
        self._ring = deque(work for work in self._ring if id(work) not in served)
        self._ring.extend(work for work in served.values() if work.waiting)
        self.waiting_slots -= sum(unit.slots for _, _, unit in batch)
        self.waiting_units -= len(batch)
        return batch

    def _answer(self, batch: _Taken) -> None:
        began = time.monotonic()
        self._running = batch
        results: list[Any] | None = None
        try:
            found = list(self._run(batch[0][2].key, [unit.payload for _, _, unit in batch]))
            if len(found) != len(batch):
                raise RuntimeError(f"{len(found)} results for {len(batch)} units")
            results = found
        except Unwanted:
            return
        except Exception as error:
            if len(batch) == 1:
                self._fail(batch[0][0], error)
                return
        finally:
            self._running = []
        if results is None:  # here no traceback holds the tensors of the batch any more
            self._answer_apart(batch)
            return
        seconds = time.monotonic() - began
        slots = sum(unit.slots for _, _, unit in batch)
        if seconds > 0:
            speed = slots / seconds
            self._slots_per_second = 0.8 * self._slots_per_second + 0.2 * speed if self._slots_per_second else speed
            if 2 * slots >= self.limits.max_batch_slots:
                with self._change:
                    self._full_batches.add(began + seconds, slots, speed)
        if self._observer is not None:
            self._observer.ran(len(batch), slots, seconds)
        for (work, index, _), result in zip(batch, results, strict=True):
            work.results[index] = result
            work.left -= 1
            if not work.left:
                _settle(work.future, work.results)

    def _answer_apart(self, batch: _Taken) -> None:
        """What fails in company is tried alone, so that one request cannot spoil those of others."""
        for one in batch:
            if not one[0].future.done():
                self._answer([one])

    def _fail(self, work: _Work, error: Exception) -> None:
        # Messages of exceptions may quote the text, which no log has to hold: their class and place are enough.
        places = "".join(traceback.format_tb(error.__traceback__)[-3:])
        log.error("%s: a batch failed: %s\n%s", self.name, type(error).__name__, places)
        _settle(work.future, error)
        self._drop(work)


def _settle(future: "Future[list[Any]]", outcome: list[Any] | Exception) -> None:
    """Give a result or an error to a future that may have been cancelled meanwhile."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
