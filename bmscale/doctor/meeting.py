"""How ranks exchange what they found, and how one stops waiting for another: over the launcher's store alone, which
works before any process group does and after one is broken."""

import contextlib
import errno
import json
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from datetime import timedelta
from typing import Any, TypeVar

from bmscale.errors import LostRank

log = logging.getLogger("bmscale")

T = TypeVar("T")


class GivenUp(LostRank):
    """Something was waited for no longer."""


BETWEEN_LOOKS = 0.1
"""Seconds between two looks at whether something has come."""
GRACE = 3.0
"""Seconds that a rank still waits for its own part once another one has failed: it may fail with more to say."""


class Worker:
    """A thread that does the work, so that this one can stop waiting for it. All work is done by the same one, since
    the present GPU belongs to a thread."""

    def __init__(self) -> None:
        self.stuck = False
        """Whether a piece of work was given up: nothing more can be done, and the process must be ended hard."""
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True, name="doctor").start()

    def _run(self) -> None:
        while True:
            future, function = self._work.get()
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def do(self, function: Callable[[], T], seconds: float, failed: Callable[[], str | None] = lambda: None) -> T:
        """The value of `function`. Raises what it raises; GivenUp where it has not ended in time, or `failed` says that
        another rank will never do its part."""
        future: Future[T] = Future()
        self._work.put((future, function))
        end, why = time.monotonic() + seconds, f"did not end within {seconds:g} s"
        while time.monotonic() < end:
            if wait([future], timeout=BETWEEN_LOOKS).done:
                return future.result()
            said = failed()
            if said is not None:
                why, failed = said, lambda: None
                end = min(end, time.monotonic() + GRACE)
        self.stuck = True
        raise GivenUp(why)


def not_met(world_size: int, seconds: float) -> LostRank:
    """What to say where ranks did not meet in time, for whatever reason."""
    address, port = (os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT"))
    return LostRank(
        f"all {world_size} ranks must meet at {address}:{port} within {seconds:g} s, and did not: look whether each "
        "was started with this address and port, whether it is one of rank 0's machine, whether something else listens "
        "there, and whether a firewall stands between; --seconds waits longer"
    )


def check_address(environment: Mapping[str, str], *, listens: bool) -> None:
    """Whether ranks can meet at MASTER_ADDR and MASTER_PORT; `listens` where this one holds the port itself. Raises
    LostRank."""
    address, given = environment.get("MASTER_ADDR", ""), environment.get("MASTER_PORT", "")
    port = int(given) if given.isdecimal() and len(given) < 6 else 0
    if not 0 < port < 2**16:
        raise LostRank(
            f"MASTER_PORT must be a number of 1 to 65535; got '{given}': --main_process_port of accelerate, "
            "--master-port of torchrun sets it"
        )
    try:
        known = bool(address) and bool(socket.getaddrinfo(address, port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError):
        known = False
    if not known:
        raise LostRank(
            f"MASTER_ADDR must be a name or an address of rank 0's machine that this one knows; got '{address}': "
            "--main_process_ip of accelerate, --master-addr of torchrun sets it"
        )
    if not listens:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            why = "the system keeps it for itself" if error.errno == errno.EACCES else "another process has it"
            raise LostRank(
                f"MASTER_PORT must be a port that rank 0 can listen at; got {port}, and {why}: take a free one above "
                "1023, the same for all ranks"
            ) from None


class Meeting:
    """All ranks of a launch, or one process alone."""

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        """`store` is one of torch.distributed; None for one process."""
        self.rank, self.world_size, self._store = rank, world_size, store
        self.present = frozenset(range(world_size)) if store is not None else frozenset([rank])
        """Ranks that have always answered; the others are waited for no more."""

    @classmethod
    def of_launch(cls, rank: int, world_size: int, seconds: float) -> "Meeting":
        """Those that the launcher started. Raises LostRank where its store is not reached in time, or cannot be."""
        if world_size == 1:
            return cls(None, rank, world_size)
        # torch's own store, where no launcher holds it, is that of rank 0.
        check_address(os.environ, listens=rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True")
        from torch.distributed import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        try:
            store, *_ = next(iter(rendezvous("env://", timeout=timedelta(seconds=seconds))))
        except Exception as error:  # torch raises several kinds
            log.debug("the ranks did not meet: %s", error)
            raise not_met(world_size, seconds) from None
        return cls(PrefixStore("bmscale-doctor", store), rank, world_size)

    def exchange(self, topic: str, value: Any, seconds: float) -> dict[int, Any]:
        """What each rank has said, by rank; those that said nothing in time are not in it. Collective.

        Rank 0 collects and hands on, so that all see the same; where it is silent a rank has its own word only.
        """
        if self._store is None:
            return {self.rank: value}
        words, end = {self.rank: value}, time.monotonic() + seconds
        if self.rank:
            self._say(f"{topic}/{self.rank}", value)
            # The first rank may wait its whole time for another one.
            said = self._hear(f"{topic}/all", end + GRACE)
            words |= {} if said is None else {int(rank): word for rank, word in said[0].items()}
        else:
            for rank in sorted(self.present - {0}):
                said = self._hear(f"{topic}/{rank}", end)
                words |= {} if said is None else {rank: said[0]}
            self._say(f"{topic}/all", words)
        self.present = self.present & words.keys()
        return words

    def say_broken(self, stage: str, place: str) -> None:
        """Tell the other ranks that this one will not do its part in a collective stage."""
        if self._store is not None:
            self._say(f"broken/{stage}", place)

    def broken(self, stage: str) -> str | None:
        """Which rank said so, None while none has."""
        place = None if self._store is None else self._hear(f"broken/{stage}", 0.0)
        return None if place is None else f"given up, since {place[0]} failed"

    def _say(self, key: str, value: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the store goes away with the rank or the launcher that holds it
            self._store.set(key, json.dumps([value]))

    def _hear(self, key: str, end: float) -> list[Any] | None:
        """What was said under a key, as the only element; None where it does not come in time. It is looked for once
        at the least."""
        with contextlib.suppress(RuntimeError):
            while not self._store.check([key]):
                if time.monotonic() > end:
                    return None
                time.sleep(BETWEEN_LOOKS)
            said: list[Any] = json.loads(self._store.get(key))
            return said
        return None
