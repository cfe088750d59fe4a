"""Clients that are silent, half gone, or too many."""

import asyncio
import contextlib
import errno
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from bmscale.deployment.serving import connections
from bmscale.deployment.serving.batching import BatchLimits
from bmscale.deployment.serving.connections import RareErrors, affordable
from bmscale.deployment.serving.limits import Limits
from bmscale.deployment.serving.models import Models
from tests.deployment.serving.conftest import Running, instant_model, served, translator_of, wait_for

FIELDS = {"q": "a", "source": "en", "target": "de"}


def request(fields: dict[str, Any]) -> bytes:
    body = json.dumps(fields).encode()
    head = f"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


@contextlib.contextmanager
def open_to(running: Running) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as connection:
        yield connection


def closes(connection: socket.socket) -> bytes:
    """What comes until the server closes; fails where it does not."""
    came = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            came += part
    return came


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /health HTTP/1.1\r\nHos",
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea",  # half of a second one
        b"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\nx",  # 413, and the body goes on
    ],
)
def test_who_is_silent_is_closed(tokenizer, sent):
    with served(Models.of([instant_model(tokenizer)]), patience_seconds=0.3) as running, open_to(running) as connection:
        begun = time.monotonic()
        connection.sendall(sent)
        came = closes(connection)
        assert 0.2 < time.monotonic() - begun < 4
        assert came.count(b"HTTP/1.1 ") == (b"\r\n\r\n" in sent)


def test_drops_are_no_sign_of_life(tokenizer):
    """A header that comes byte by byte, and a body that was refused and comes byte by byte."""
    refused = b"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n"
    with served(Models.of([instant_model(tokenizer)]), patience_seconds=0.4) as running:
        for head in (b"GET /health HTTP/1.1\r\nX: ", refused):
            with open_to(running) as connection:
                connection.sendall(head)
                begun = time.monotonic()
                with contextlib.suppress(ConnectionError):
                    while time.monotonic() - begun < 5:
                        connection.sendall(b"x")
                        time.sleep(0.02)
                assert 0.3 < time.monotonic() - begun < 4


@pytest.mark.parametrize("reads", [True, False])
def test_who_reads_slowly_gets_all_and_who_does_not_read_is_closed(tokenizer, reads):
    text = "a" * 1_000_000
    limits = Limits(max_characters=len(text))
    with (
        served(Models.of([instant_model(tokenizer, longest=0)]), limits=limits, patience_seconds=0.4) as running,
        socket.socket() as connection,
    ):
        for end, size in ((running.socket, socket.SO_SNDBUF), (connection, socket.SO_RCVBUF)):
            end.setsockopt(socket.SOL_SOCKET, size, 16_384)  # what the system holds is out of the server's sight
        connection.connect(("127.0.0.1", running.port))
        connection.settimeout(20)
        connection.sendall(request({**FIELDS, "q": text}))
        if reads:
            held, begun = 0, time.monotonic()
            while held < len(text) and (part := connection.recv(2**14)):
                held += len(part)
                time.sleep(0.01)
            assert time.monotonic() - begun > 0.4
            assert held >= len(text)
        else:
            wait_for(lambda: running.open_connections == 1)
            wait_for(lambda: running.open_connections == 0)


def test_a_new_client_takes_the_place_of_a_silent_one(tokenizer):
    limits = Limits(max_connections=5)
    with served(Models.of([instant_model(tokenizer)]), limits=limits) as running, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(open_to(running)) for _ in range(20)]
        answer = httpx.post(f"{running.url}/translate", json=FIELDS)
        assert answer.json() == {"translatedText": "A"}
        assert running.open_connections <= 5
        assert all(closes(connection) == b"" for connection in silent[:15])


def test_where_all_are_at_work_a_new_client_is_told(tokenizer):
    model = instant_model(tokenizer, BatchLimits(max_batch_slots=1))
    translator = translator_of(model)
    translator.may_run.clear()
    with served(Models.of([model]), limits=Limits(max_connections=3)) as running, contextlib.ExitStack() as stack:
        busy = [stack.enter_context(open_to(running)) for _ in range(3)]
        for connection in busy:
            connection.sendall(request(FIELDS))
        wait_for(lambda: model.batcher.waiting_units == 2)
        answer = httpx.get(f"{running.url}/health")
        assert (answer.status_code, answer.json()) == (503, {"error": "too many connections"})
        assert answer.headers["retry-after"]
        translator.may_run.set()
        for connection in busy:
            came = b""
            while b'"A"' not in came:
                came += (part := connection.recv(65_536))
                assert part


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_who_closes_its_side_gets_its_answer(tokenizer, version):
    model = instant_model(tokenizer)
    translator = translator_of(model)
    translator.may_run.clear()
    with served(Models.of([model])) as running, open_to(running) as connection:
        connection.sendall(request(FIELDS).replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
        connection.shutdown(socket.SHUT_WR)
        wait_for(lambda: translator.texts)
        threading.Timer(0.8, translator.may_run.set).start()
        came = closes(connection)
    assert came.count(b"HTTP/1.1 100 Continue\r\n\r\n") == (1 if version == "1.1" else 0)
    assert came.count(b" 200 OK") == 1
    assert came.endswith(b'{"translatedText": "A"}')


@pytest.mark.parametrize(
    "rest", [b"", b"GET /hea", b"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"]
)
def test_who_closes_its_side_behind_several_requests_gets_all_answers(tokenizer, rest):
    """What comes after the last whole one is half of one, which nobody waits for."""
    model = instant_model(tokenizer)
    translator = translator_of(model)
    translator.may_run.clear()
    with served(Models.of([model])) as running, open_to(running) as connection:
        connection.sendall(b"".join(request({**FIELDS, "q": text}) for text in "abc") + rest)
        connection.shutdown(socket.SHUT_WR)
        wait_for(lambda: translator.texts)
        threading.Timer(0.2, translator.may_run.set).start()
        begun = time.monotonic()
        came = closes(connection)
        assert time.monotonic() - begun < 4
    assert [came.count(b'"translatedText": "%s"' % text) for text in (b"A", b"B", b"C")] == [1, 1, 1]
    assert came.count(b" 200 OK") == 3


def test_accept_errors_are_said_once(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(connections.log, "error", lambda text, *arguments: said.append(text % arguments))
    handler, loop = RareErrors(), asyncio.new_event_loop()
    try:
        for _ in range(1000):
            error = OSError(errno.EMFILE, "Too many open files")
            handler(loop, {"message": "accept", "exception": error})
            handler(loop, {"message": "broke", "exception": ValueError("a secret")})
    finally:
        loop.close()
    assert said == [
        "accept: [Errno 24] Too many open files (said once a minute)",
        "broke: ValueError (said once a minute)",
    ]


@pytest.mark.parametrize(
    ("soft", "hard", "room", "raised"),
    [
        (4096, 4096, 1000, None),
        (1024, 4096, 1000, 1640),
        (256, 1040, 400, 1040),
        (740, 740, 100, None),
        (100, 100, 1, None),
        (256, resource.RLIM_INFINITY, 1000, 1640),
    ],
)
def test_no_more_connections_than_files(monkeypatch, soft, hard, room, raised):
    given: list[Any] = []
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(connections.resource, "setrlimit", lambda _, limits: given.append(limits))
    assert affordable(1000) == room
    assert given == ([] if raised is None else [(raised, hard)])
