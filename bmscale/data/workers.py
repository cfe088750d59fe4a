"""Worker processes for data preparation: an ordered, bounded map, and one process for one piece of work."""

import contextlib
import itertools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any, TypeVar

from tqdm import tqdm

from bmscale.errors import BmscaleError

log = logging.getLogger("bmscale")

SECONDS_BETWEEN_LINES = 15

In = TypeVar("In")
Out = TypeVar("Out")


def cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """An ordered, bounded map over processes, which start with the second chunk: small work needs none.

    The processes are spawned, not forked: forking a process with threads (a test runner, a training process) can
    deadlock, and macOS has no safe fork at all.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or cores()
        self._executor: ProcessPoolExecutor | None = None

    def map(self, work: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
        """`work` of each item in the order of the items; at most two items a worker wait, so memory stays bounded."""
        iterator = iter(items)
        first = list(itertools.islice(iterator, 2))
        if self.workers == 1 or len(first) < 2:
            yield from map(work, itertools.chain(first, iterator))
            return
        executor = self._start()
        waiting: deque[Future[Out]] = deque()
        try:
            for item in itertools.chain(first, iterator):
                waiting.append(executor.submit(work, item))
                if len(waiting) > 2 * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise BmscaleError(
                "a worker process was killed, most likely for want of memory; run again with fewer workers"
            ) from None
        finally:
            for future in waiting:
                future.cancel()

    def _start(self) -> ProcessPoolExecutor:
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self.workers, context, initializer=_follow_parent)
            with _interrupts_held():
                # Processes start on submission: all of them now, while Ctrl-C is held from them.
                for future in [self._executor.submit(os.getpid) for _ in range(self.workers)]:
                    future.result()
        return self._executor

    def __enter__(self) -> "Workers":
        return self

    def stop(self) -> None:
        """End the processes once they have done what they are at; the next `map` starts new ones."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def __exit__(self, *error: object) -> None:
        self.stop()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Children started inside never see Ctrl-C: the parent alone answers it, one that comes meanwhile afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # which else unblocks it when the first process starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children inherit the mask
    # Where this thread blocks it, another thread of the process takes it, and Python answers it here all the same.
    handler = signal.getsignal(signal.SIGINT)
    came: list[tuple[int, FrameType | None]] = []
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and handler is not None:  # None is one that C set: Python could not put it back
        signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if in_main_thread and handler is not None:
            signal.signal(signal.SIGINT, handler)
        if came and callable(handler):
            handler(*came[0])


def _follow_parent() -> None:
    """End this process when its parent is gone, killed ones included: a pool's queues alone would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def in_own_process(work: Callable[..., bytes], *arguments: Any) -> bytes:
    """`work(*arguments)` in a process of its own: Ctrl-C ends it at once, and its memory goes back when it is done."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, work, arguments), daemon=True)
    with _interrupts_held():
        process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        raise BmscaleError(
            f"the process that trains the tokenizer died with code {process.exitcode}, most likely for want of memory; "
            "lower data.tokenizer.sample_sentences"
        ) from None
    finally:
        process.terminate()
        process.join()
        receiver.close()
    if isinstance(result, BaseException):
        raise result
    return bytes(result)


def _send_result(sender: Any, work: Callable[..., bytes], arguments: tuple[Any, ...]) -> None:
    _follow_parent()
    try:
        sender.send(work(*arguments))
    except Exception as error:
        sender.send(error)


class Progress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, name: str, total: int | None = None, items: str = "pairs") -> None:
        self._name, self._total, self._items, self._done = name, total, items, 0
        self._bar = tqdm(total=total, desc=name, unit=f" {items}", unit_scale=True) if sys.stderr.isatty() else None
        self._started = self._said = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            of = f" of {self._total:,}" if self._total else ""
            rate = self._done / (self._said - self._started)
            log.info("%s: %s%s %s, %s/s", self._name, f"{self._done:,}", of, self._items, f"{rate:,.0f}")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
