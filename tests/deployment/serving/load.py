"""Many clients at once: good and bad requests, and how fast the server answers.

As a program it measures what batching brings, on an idle machine:

    python -m tests.deployment.serving.load MODEL [--clients 32] [--requests 2000] [--test FILE]

and with --exported FOLDER, how fast the server is with that export of MODEL beside a loop in which PyTorch translates
one sentence after another with MODEL in float32, and whether the translations are as good:

    python -m tests.deployment.serving.load MODEL --exported FOLDER --clients 64 [--test FILE]
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode


@dataclass
class Answer:
    """What came back; status 0 is nothing."""

    status: int
    headers: dict[str, str]
    body: bytes


def post(path: str, body: bytes, kind: str = "application/json", *more: str) -> bytes:
    """A request as bytes."""
    head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def chunked(path: str, chunks: Sequence[bytes]) -> bytes:
    """A request whose length is not said beforehand."""
    head = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Transfer-Encoding: chunked"]
    return (
        "\r\n".join(head).encode()
        + b"\r\n\r\n"
        + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))
    )


class Connection:
    """HTTP/1.1 by hand: it can send what no library would."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> Answer:
        reader, writer = await self._open()
        try:
            writer.write(request)
            await writer.drain()
            answer = await asyncio.wait_for(_read(reader), 120)
        except (ConnectionError, asyncio.IncompleteReadError):
            answer = Answer(0, {}, b"")
        if answer.status in (0, 408, 413) or answer.headers.get("connection") == "close":
            self.close()
        return answer

    async def cut_off(self, request: bytes, sent: int) -> None:
        """Send so many bytes of a request and be gone."""
        _, writer = await self._open()
        writer.write(request[:sent])
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        self.close()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None or self._streams[0].at_eof():
            self.close()
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        return self._streams

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _read(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Answer(int(head[0].split()[1]), headers, body)


# ---- good and bad requests


@dataclass
class Asked:
    """A request and what must come back."""

    request: bytes
    status: int
    translations: list[str] | None = None
    """Of a good request, what it must be answered with."""
    cut_at: int | None = None
    """Where the client goes away."""


def good(known: dict[str, str], draw: random.Random) -> Asked:
    """A request for texts whose translations are known."""
    texts = draw.choices(list(known), k=draw.choice([1, 1, 1, 2, 5]))
    as_form = len(texts) == 1 and draw.random() < 0.3
    fields = {"q": texts[0] if len(texts) == 1 else texts, "source": "en", "target": "de"}
    if as_form:
        request = post("/translate", urlencode(fields).encode(), "application/x-www-form-urlencoded")
    else:
        request = post("/translate", json.dumps(fields).encode())
    return Asked(request, 200, [known[text] for text in texts])


def bad(max_body_bytes: int, turn: int, draw: random.Random) -> Asked:
    """One of many ways to be wrong, each in its turn, with the code that says so."""
    fine = {"q": "she counted boats", "source": "en", "target": "de"}

    def of(**changed: object) -> bytes:
        fields = {name: value for name, value in {**fine, **changed}.items() if value is not ...}
        return post("/translate", json.dumps(fields).encode())

    whole = of()
    large = b"x" * (max_body_bytes // 2 + 1)
    unended = chunked("/translate", [b'{"q": "'])
    ways = [
        Asked(post("/translate", b"{"), 400),
        Asked(post("/translate", b"[1]"), 400),
        Asked(post("/translate", b"\xff\xfe"), 400),
        Asked(post("/translate", b"[" * 20_000), 400),
        Asked(post("/translate", b"q=%ff&source=en&target=de", "application/x-www-form-urlencoded"), 400),
        Asked(post("/translate", b"--x\r\nrubbish", "multipart/form-data; boundary=x"), 400),
        Asked(of(q=...), 400),
        Asked(of(q={"a": 1}), 400),
        Asked(of(q=["a", 1]), 400),
        Asked(of(source=...), 400),
        Asked(of(target="xx"), 400),
        Asked(of(target=["de"]), 400),
        Asked(of(format="pdf"), 400),
        Asked(of(alternatives=1000), 400),
        Asked(of(alternatives=True), 400),
        Asked(of(q="x" * 60_000), 400),
        Asked(of(q=["x"] * 2_000), 400),
        Asked(post("/translate", b"hello", "text/plain"), 415),
        Asked(post("/../../etc/passwd", b"{}"), 404),
        Asked(b"GET /translate HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        Asked(b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        Asked(b"RUBBISH\r\n\r\n", 400),
        Asked(post("/translate", b"", "application/json", "Content-Length: x"), 400),
        Asked(post("/translate", large + large), 413),
        Asked(chunked("/translate", [large, large]), 413),
        Asked(whole, 0, cut_at=draw.randrange(1, len(whole))),
        Asked(unended, 0, cut_at=len(unended) - len(b"0\r\n\r\n")),
    ]
    return ways[turn % len(ways)]


@dataclass
class Outcome:
    """What many requests led to."""

    codes: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


async def storm(
    port: int, known: dict[str, str], *, requests: int, clients: int, max_body_bytes: int, seed: int = 1
) -> Outcome:
    """So many requests by so many clients, a third of them bad; 429 is asked again after a while."""
    outcome = Outcome()
    left, turns = iter(range(requests)), itertools.count()

    async def client(number: int) -> None:
        draw = random.Random(seed * 1000 + number)
        connection = Connection(port)
        for _ in left:
            asked = bad(max_body_bytes, next(turns), draw) if draw.random() < 1 / 3 else good(known, draw)
            if asked.cut_at is not None:
                await connection.cut_off(asked.request, asked.cut_at)
                outcome.codes[0] += 1
                continue
            answer = await connection.ask(asked.request)
            while answer.status == 429:
                outcome.codes[429] += 1
                await asyncio.sleep(float(answer.headers["retry-after"]) * draw.random())
                answer = await connection.ask(asked.request)
            outcome.codes[answer.status] += 1
            _check(asked, answer, outcome)
        connection.close()

    await asyncio.gather(*map(client, range(clients)))
    return outcome


def _check(asked: Asked, answer: Answer, outcome: Outcome) -> None:
    if answer.status != asked.status:
        outcome.wrong.append(f"{asked.request[:80]!r}: {answer.status}, must be {asked.status}; {answer.body[:80]!r}")
    elif asked.translations is not None:
        got = json.loads(answer.body)["translatedText"]
        if (got if isinstance(got, list) else [got]) != asked.translations:
            outcome.wrong.append(f"{asked.request[-200:]!r}: {got!r}, must be {asked.translations!r}")


async def metrics(port: int) -> dict[str, float]:
    """What /metrics says, by name with labels."""
    connection = Connection(port)
    answer = await connection.ask(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    connection.close()
    lines = [line for line in answer.body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


# ---- speed


@dataclass
class Speed:
    """How fast answers came."""

    seconds: float
    latencies: list[float]
    batches: float
    """Mean units of a batch."""
    translations: list[str]
    """Of the first so many texts, in their order."""

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """In milliseconds."""
        return 1000 * sorted(self.latencies)[min(len(self.latencies) - 1, int(share * len(self.latencies)))]

    def __str__(self) -> str:
        return (
            f"{self.per_second:8.1f} requests/s   p50 {self.percentile(0.5):7.0f} ms   p99 {self.percentile(0.99):7.0f}"
            f" ms   mean batch {self.batches:.1f}"
        )


async def speed(port: int, texts: Sequence[str], *, source: str, target: str, requests: int, clients: int) -> Speed:
    """One sentence a request, each client with one request at a time."""
    latencies: list[float] = []
    translations: dict[int, str] = {}
    left = iter(range(requests))

    async def client() -> None:
        connection = Connection(port)
        for number in left:
            fields = {"q": texts[number % len(texts)], "source": source, "target": target}
            began = time.perf_counter()
            answer = await connection.ask(post("/translate", json.dumps(fields).encode()))
            assert answer.status == 200, answer
            latencies.append(time.perf_counter() - began)
            translations[number] = json.loads(answer.body)["translatedText"]
        connection.close()

    before = await metrics(port)
    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - began
    after = await metrics(port)
    units, batches = (
        sum(
            value - before.get(name, 0) for name, value in after.items() if name.startswith(f"bmscale_batch_units_{of}")
        )
        for of in ("sum", "count")
    )
    in_order = [translations[number] for number in range(min(requests, len(texts)))]
    return Speed(seconds, latencies, units / max(1, batches), in_order)


@contextlib.contextmanager
def server(*arguments: str, folder: Path | None = None) -> Iterator[int]:
    """`bmscale serve` as a process; the port that it is on."""
    command = [sys.executable, "-m", "bmscale", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"serving on http://\S+:(\d+) ", line):
                yield int(found[1])
                break
        else:
            raise AssertionError("".join(lines))
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode == 0


def measure(
    model: str,
    texts: Sequence[str],
    *,
    languages: tuple[str, str],
    requests: int,
    clients: int,
    rounds: int,
    more: Sequence[str] = (),
) -> dict[str, list[Speed]]:
    """The same load on a server with batching and one without, in turns."""
    found: dict[str, list[Speed]] = {"batching": [], "one by one": []}
    with server(model, *more) as batching, server(model, "--max-batch-tokens", "1", *more) as single:
        for _ in range(rounds):
            for name, port in (("one by one", single), ("batching", batching)):
                found[name].append(_warm(port, texts, languages, requests, clients))
    return found


def measure_against_loop(
    model: str,
    exported: str,
    texts: Sequence[str],
    *,
    languages: tuple[str, str],
    requests: int,
    clients: int,
    rounds: int,
    beam_size: int,
    more: Sequence[str] = (),
) -> dict[str, list[Speed]]:
    """A server with the exported model under that load, and `generate` of PyTorch in float32 over each of the texts
    once, one at a time, in turns; both with the same search."""
    from bmscale.inference.translator import Translator

    translator = Translator.from_pretrained(model, backend="torch", compute_type="float32")
    translator.translate(texts[:5], beam_size=beam_size)
    found: dict[str, list[Speed]] = {"server": [], "loop": []}
    with server(exported, "--beam-size", str(beam_size), *more) as port:
        for _ in range(rounds):
            latencies, translations = [], []
            for text in texts:
                began = time.perf_counter()
                translations += translator.translate([text], beam_size=beam_size)
                latencies.append(time.perf_counter() - began)
            found["loop"].append(Speed(sum(latencies), latencies, 1, translations))
            found["server"].append(_warm(port, texts, languages, requests, clients))
    return found


def _warm(port: int, texts: Sequence[str], languages: tuple[str, str], requests: int, clients: int) -> Speed:
    source, target = languages
    for count in (2 * clients, requests):  # the first warms up
        found = asyncio.run(speed(port, texts, source=source, target=target, requests=count, clients=clients))
    return found


def report(found: dict[str, list[Speed]], fast: str, slow: str) -> float:
    """Print the figures; the ratio of the throughputs, the median of the rounds."""
    for name, speeds in found.items():
        for of_round in speeds:
            print(f"{name:11} {of_round}")
    ratios = [a.per_second / b.per_second for a, b in zip(found[fast], found[slow], strict=True)]
    print(f"{fast} / {slow}: {statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")
    return statistics.median(ratios)


def main() -> None:
    from bmscale.data.toy import toy_pairs
    from bmscale.evaluation.compare import format_comparison, paired_tests
    from bmscale.inference.translator import Translator

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--exported", metavar="FOLDER")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beam-size", type=int, default=5, help="with --exported (default: 5)")
    parser.add_argument("--test", type=Path, help="pairs, tab between them (default: those of the embedded corpus)")
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="options of bmscale serve, last")
    options = parser.parse_args()
    if options.test:
        pairs = [tuple(line.split("\t")[:2]) for line in options.test.read_text(encoding="utf-8").splitlines()]
    else:
        pairs = list(toy_pairs("test", 500))
    texts = [source for source, _ in pairs]
    translator = Translator.from_pretrained(options.model)
    languages = str(translator.source_language), str(translator.target_language)
    load = {"requests": options.requests, "clients": options.clients, "rounds": options.rounds, "more": options.serve}
    if not options.exported:
        report(measure(options.model, texts, languages=languages, **load), "batching", "one by one")
        return
    load |= {"requests": max(options.requests, len(texts)), "beam_size": options.beam_size}
    found = measure_against_loop(options.model, options.exported, texts, languages=languages, **load)
    report(found, "server", "loop")
    sides = [(name, found[name][-1].translations) for name in ("loop", "server")]
    print(format_comparison(paired_tests(sides, [target for _, target in pairs], target_language=languages[1])))


if __name__ == "__main__":
    main()
