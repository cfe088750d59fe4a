"""How a start of a run ends: with one cause in exit.json, said once, by the rank that knows it best.

When one rank dies, every other one fails too, of a connection that is gone: errors that say nothing of the cause. So
a rank that meets such an error first looks for one that has said more, then for one whose process is gone, and speaks
only where it finds neither. The launcher ends the others as soon as one rank has ended with an error, 30 s later by
force; so a rank that others wait for must not linger.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from bmscale.engine import process_group
from bmscale.errors import BadInput, BmscaleError, LostRank, exit_code, message
from bmscale.experiment import RunFolder
from bmscale.training import lock, ranks, record
from bmscale.training.ranks import RankState
from bmscale.training.watchdog import OBSERVED_SECONDS, lost_message

WORD_SECONDS = 5.0
"""How long a rank that lost a connection waits for another to say why, or to be gone."""
SETTLE_SECONDS = 1.0
"""Between an error and its report: what the other ranks still log stands before it."""

CONNECTION_WORDS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Timed out waiting",
    "Socket Timeout",
    "gloo",
    "NCCL",
)
"""What collectives say in a RuntimeError of their own when another rank goes away (gloo, NCCL, torch's store)."""


@dataclass(frozen=True)
class Ending:
    """How a training ended that did not fail."""

    kind: str
    """done, preempted, interrupted or stopped: a class of exit.json."""
    message: str


class Terminated(KeyboardInterrupt):
    """SIGTERM outside the steps, where nobody has set a handler that saves first."""


def of(run: RunFolder, train: Callable[[], Ending]) -> Ending:
    """Train, and write into exit.json how it ended. An error does not come back from here, except where it came before
    the run was started: then it is raised, as BmscaleError if it was of no kind with a message for people.

    Afterwards a rank under a launcher ignores SIGTERM: its launcher sends it as soon as the first rank has left; and
    the run is free for another training.
    """
    try:
        return _end(run, train)
    finally:
        lock.release(run)


def _end(run: RunFolder, train: Callable[[], Ending]) -> Ending:
    launched = "TORCHELASTIC_RUN_ID" in os.environ  # set by torchrun, and so by accelerate launch
    if launched:
        _follow_launcher()
    before = _signature(run)
    number = os.environ.get("RANK", "0")
    rank = int(number) if number.isdigit() else 0  # what else it holds the process group refuses
    try:
        ending = train()
    except BaseException as error:
        if launched:
            _ignore_signals()
        me = ranks.read_own(run, rank)
        if me is not None:
            _settle(run, me, error)
        _refuse(run, error, spoken=_signature(run) != before)
    if launched:
        _ignore_signals()
    process_group.stop()
    if rank == 0:
        record.write_exit(run, record.exit_code(ending.kind), ending.message, ending.kind, replace=True)
    return ending


def _follow_launcher() -> None:
    """Have the system send SIGTERM to this process when its launcher dies, whose ranks would go on without it.

    Until the steps begin, SIGTERM raises Terminated; then it saves and leaves (`signals`).
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, prctl(2); children do not inherit it
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # before the steps there is nothing to save


def _terminated(*_: Any) -> None:
    raise Terminated


def _ignore_signals() -> None:
    """The process is about to end, and has something to write first."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)


def _signature(run: RunFolder) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = run.exit.stat()
        return status.st_ino, status.st_mtime_ns
    return None


def _refuse(run: RunFolder, error: BaseException, *, spoken: bool) -> NoReturn:
    """An error before the run was started. What it replaces in exit.json was said of an earlier start."""
    if isinstance(error, BadInput):
        raise error  # nothing was started, so nothing is recorded
    if _lost_connection(error):  # another rank knows why
        raise LostRank(f"a rank went away while the ranks started: {message(error)}") from None
    code = exit_code(error)
    if not lock.is_anothers(run):
        record.write_exit(run, code, message(error), replace=not spoken)
    if isinstance(error, BmscaleError | KeyboardInterrupt | OSError):
        raise error
    traceback.print_exception(error)
    raise BmscaleError(message(error), code) from None


def _lost_connection(error: BaseException) -> bool:
    """Whether an error is of a kind that a rank gets when another one is gone."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, Terminated | ConnectionError) or "DistError" in names:  # torch's errors of collectives
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in CONNECTION_WORDS)


def _settle(run: RunFolder, me: RankState, error: BaseException) -> NoReturn:
    """Find out which rank is the cause, have it said once, and end the process."""
    alone, code = me.world_size == 1, exit_code(error)
    if not alone:
        if _lost_connection(error) and code == 1:
            code = LostRank.exit_code
            _leave_if_another_is_the_cause(run, me)
        elif me.rank and isinstance(error, BmscaleError | KeyboardInterrupt):
            time.sleep(SETTLE_SECONDS)  # mostly all ranks raise it together, and rank 0 speaks for them
    if record.write_exit(run, code, message(error), rank=me.rank, step=me.step):
        if not alone:
            time.sleep(SETTLE_SECONDS)
        record.say(run, _last_words(me, error))
    _leave(run, me, code)


def _last_words(me: RankState, error: BaseException) -> str:
    rank = "" if me.rank == 0 else f"rank {me.rank}: "
    if isinstance(error, BmscaleError | KeyboardInterrupt | OSError):
        return f"bmscale: {rank}error: {message(error)}"
    trace = "".join(traceback.format_exception(error)).rstrip()
    return f"bmscale: {me.name} failed at {me.place}:\n{trace}"


def _leave_if_another_is_the_cause(run: RunFolder, me: RankState) -> None:
    """Returns only when no rank has said why it ended and none is gone."""
    deadline = time.monotonic() + WORD_SECONDS
    neighbours = [rank for rank in ranks.on_this_node(me.rank) if rank != me.rank]
    while time.monotonic() < deadline:
        # In this order: who is gone because of an error has said so before.
        gone = next((state for state in ranks.read(run, neighbours).values() if ranks.is_gone(state)), None)
        if record.read_exit(run) is not None:
            _leave(run, me, LostRank.exit_code)
        if gone is not None:
            _report_lost(run, me, gone)
        time.sleep(0.1)
    # Processes of other machines cannot be seen, but that they write no more can.
    others = [rank for rank in range(me.world_size) if rank not in (me.rank, *neighbours)]
    before, deadline = ranks.read(run, others), time.monotonic() + OBSERVED_SECONDS
    while others and time.monotonic() < deadline and record.read_exit(run) is None:
        time.sleep(0.1)
    if record.read_exit(run) is not None:
        _leave(run, me, LostRank.exit_code)
    for rank, state in ranks.read(run, before).items():
        if before[rank].beat == state.beat:
            _report_lost(run, me, state)


def _report_lost(run: RunFolder, me: RankState, lost: RankState) -> NoReturn:
    said = lost_message(lost, me)
    if record.write_exit(run, LostRank.exit_code, said, rank=lost.rank, step=me.step):
        record.say(run, f"bmscale: error: {said}")
    _leave(run, me, LostRank.exit_code)


def _leave(run: RunFolder, me: RankState, code: int) -> NoReturn:
    """End the process with the code of exit.json.

    Among several ranks at once: to take down the process group, or the thread that reads data, may wait for ever.
    """
    if me.world_size == 1:
        raise SystemExit(code)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit((record.read_exit(run) or {}).get("code", code))
