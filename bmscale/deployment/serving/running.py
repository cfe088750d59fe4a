"""A server as a process: its socket, its signals, its end."""

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from bmscale.deployment.serving.connections import BACKLOG, Connection, RareErrors, affordable, connections_of
from bmscale.deployment.serving.limits import Limits
from bmscale.errors import BadInput

log = logging.getLogger("bmscale")


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens: who comes before models are loaded waits. Raises BadInput for an address not to be had."""
    if not 0 <= port <= 65_535:
        raise BadInput(f"--port: must be from 0 (any that is free) to 65535; got {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)  # until then another server may bind it as well
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"--host {host} --port {port}: cannot be served on: {reason}; give another") from None
    return bound


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(bound.getsockname()[0].split("%")[0]).is_loopback


class _Server(uvicorn.Server):
    """uvicorn's, whose process ends with code 0 after a signal on which everything was finished."""

    has_answered_all = False
    """Whether the end came after all that was accepted, and not after the time that it had."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            _end_at_once()
        super().handle_exit(sig, frame)

    async def _wait_tasks_to_complete(self) -> None:
        await super()._wait_tasks_to_complete()  # is cancelled where the time is over
        self.has_answered_all = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(RareErrors())
        await super().startup(sockets)


def _end_at_once() -> None:
    """End the process without its teardown, which would take the threads that run batches out of native code."""
    try:
        log.warning("ended at once")
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(128 + signal.SIGINT)


def make_server(app: ASGIApp, limits: Limits, patience_seconds: float = Connection.patience_seconds) -> _Server:
    """A server that is not running yet; `patience_seconds` are those of `Connection`."""
    config = uvicorn.Config(
        app,
        http=connections_of(affordable(limits.max_connections), patience_seconds),
        backlog=BACKLOG,
        access_log=False,  # it would have the query, which may be text
        log_config=None,
        log_level="error",  # there is a warning for every request that is no HTTP
        server_header=False,
        proxy_headers=False,  # a client could call itself by any address
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=int(limits.timeout_seconds) + 5,
    )
    return _Server(config)


def run(app: ASGIApp, bound: socket.socket, limits: Limits) -> bool:
    """Serve until SIGTERM or Ctrl-C; then take no more, answer what was accepted, and return whether all of it was
    answered in its time. A second Ctrl-C does not wait for that: the process ends with code 130."""
    server = make_server(app, limits)
    host, port = bound.getsockname()[:2]
    log.info("serving on http://%s:%d (Ctrl-C or SIGTERM ends it)", f"[{host}]" if ":" in host else host, port)
    server.run(sockets=[bound])
    return server.has_answered_all
