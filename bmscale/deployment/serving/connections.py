"""Connections: how long one may be silent, how many there are, and what is said of those that fail."""

import asyncio
import logging
import resource
import time
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger("bmscale")

BACKLOG = 128
"""Connections that wait to be taken; the event loop takes so many in one round."""
# Files that do not count as connections: those of the few rounds until one is counted and another one's file is given
# back for it, and models, logs, the event loop's own.
_OTHER_FILES = 4 * BACKLOG + 128
_PROBE_SECONDS = 0.5
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 5\r\nconnection: close\r\n"
    b'content-length: 33\r\n\r\n{"error": "too many connections"}'
)


class Connection(H11Protocol):
    """uvicorn's, which has a timeout only between two requests, with one for every other silence of the client.

    A client that owes something has `patience_seconds`: for the header of a request from its first moment on, for the
    rest of a body that was answered already, and to take some of an answer. Where there are `most` connections, a new
    one takes the place of the one that owes for longest, and is answered with 503 where none does.
    """

    most: ClassVar[int] = 1024
    patience_seconds: ClassVar[float] = 10.0
    debtors: ClassVar[dict["Connection", None]] = {}
    """Those that owe a header or the rest of a body, the longest first."""

    _owes = ""
    _unread = 0
    _timer: asyncio.TimerHandle | None = None
    _probe_timer: asyncio.TimerHandle | None = None
    _has_ended = False
    """Whether the client has closed its side."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            oldest = next(iter(self.debtors), None)
            if oldest is None:
                transport.write(_FULL)
                transport.close()
            else:
                del self.debtors[oldest]
                oldest.transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._has_ended:
            self._answer_the_last()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._settle()
        self._stop_probing()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open: its client may have closed its side alone, and wait for the answer. Who
        does so while an answer is streamed is taken to be gone: nothing may be sent that would tell."""
        if self._has_ended:  # it is read again wherever reading goes on
            return True
        if self.cycle is None or self.cycle.response_started:
            return False
        self._has_ended = True
        self._answer_the_last()
        return not self.transport.is_closing()

    def _answer_the_last(self) -> None:
        """After the client's end: close the connection behind the last whole request that it sent before."""
        self._stop_probing()
        if self.cycle.response_complete or self.cycle.more_body:  # what else there is lacks its end
            self.transport.close()
            return
        if not self.conn.trailing_data[0]:
            self.cycle.keep_alive = False
        self._probe_timer = self.loop.call_later(_PROBE_SECONDS, self._probe)

    def _stop_probing(self) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()

    def _probe(self) -> None:
        """Find out whether a client that sent its end is still there: only what is sent to it tells.

        100 may come any number of times before an answer (RFC 9110, section 15.2). HTTP/1.0 does not have it.
        """
        if self.transport.is_closing() or self.cycle.response_started or self.scope["http_version"] == "1.0":
            return
        self.transport.write(self.conn.send(h11.InformationalResponse(status_code=100, headers=[], reason="Continue")))
        self._probe_timer = self.loop.call_later(_PROBE_SECONDS, self._probe)

    def _what_it_owes(self) -> str:
        if self.transport.is_closing():
            return "reading the rest"
        if self.flow.write_paused:
            return "reading"
        if self.conn.their_state is h11.IDLE:
            return "header"
        if self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete:
            return "body"
        return ""

    def _watch(self) -> None:
        """Start or stop the clock, after whatever may have changed what the client owes."""
        owes = self._what_it_owes()
        if owes == self._owes:
            return
        self._settle()
        self._owes = owes
        if owes:
            self._start()
        if owes in ("header", "body"):
            self.debtors[self] = None

    def _settle(self) -> None:
        self._owes = ""
        self.debtors.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self) -> None:
        self._unread = self.transport.get_write_buffer_size()
        self._timer = self.loop.call_later(self.patience_seconds, self._expire)

    def _expire(self) -> None:
        if self._owes in ("header", "body"):
            self.transport.close()
            self._watch()
        elif self.transport.get_write_buffer_size() < self._unread:  # slow, but it reads
            self._start()
        else:
            self.transport.abort()


def connections_of(most: int, patience_seconds: float = Connection.patience_seconds) -> type[Connection]:
    """The class of the connections of one server."""
    return type("BoundedConnection", (Connection,), {"most": most, "patience_seconds": patience_seconds, "debtors": {}})


def affordable(wanted: int) -> int:
    """So many connections, or as many as the process may have files for; its soft limit is raised for them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    most = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
    if most > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    room = max(1, most - _OTHER_FILES)
    if room < wanted:
        log.warning("%d connections at most: this process may open %d files (ulimit -n)", room, most)
    return min(room, wanted)


class RareErrors:
    """The event loop's exception handler: says each kind of error once a minute, and never what a request held.

    asyncio has a log entry with a traceback for each try to take a connection for which there is no file left, which
    are thousands a second.
    """

    _SILENT_SECONDS = 60.0

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        # An OSError's text is the system's; another one may quote what came.
        reason = str(error) if isinstance(error, OSError) else type(error).__name__
        what = f"{context.get('message')}: {reason}"
        now = time.monotonic()
        if now - self._said.get(what, -self._SILENT_SECONDS) >= self._SILENT_SECONDS:
            if len(self._said) >= 100:
                self._said.clear()
            self._said[what] = now
            log.error("%s (said once a minute)", what)
