"""What one request may ask for, and who may ask: sizes, time, keys, rates."""

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from dataclasses import dataclass, fields
from pathlib import Path

from starlette.requests import ClientDisconnect, Request

from bmscale.errors import BadInput


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after


@dataclass(frozen=True)
class Limits:
    """Bounds of what one request may cost. Raises BadInput for one that is not above 0."""

    max_characters: int = 50_000
    """Characters of all texts of a request."""
    max_texts: int = 1_000
    """Texts of a request."""
    max_alternatives: int = 9
    """Other translations than the best; each is a beam more."""
    max_new_tokens: int = 4_096
    """Tokens that a language model writes for one text."""
    timeout_seconds: float = 60.0
    """A request that has no answer by then, the reading of its body included, gets 408 or 503."""
    max_requests: int = 512
    """Requests that are read or answered at the same time."""
    max_connections: int = 1_024
    """Connections that are open, those included that ask for nothing."""
    requests_per_minute: float = float("inf")
    """Of one key, or of one address without keys; a minute's may come at once."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise BadInput(f"{field.name}: must be above 0; got {getattr(self, field.name)}")
        if self.timeout_seconds > 86_400:
            raise BadInput(f"timeout_seconds: must be at most 86,400, a day; got {self.timeout_seconds:g}")

    @property
    def max_body_bytes(self) -> int:
        """Bytes of a body: a character is 12 at most, as \\ud83d\\ude00 in JSON or %F0%9F%98%80 in a form."""
        return 12 * self.max_characters + 8 * self.max_texts + 16_384


async def read_body(request: Request, most_bytes: int, seconds: float) -> bytes:
    """The body, never more of it in memory than it may have. Raises Refused: 413 too large, 408 slow, 400 cut off."""
    too_large = Refused(413, f"the body of the request must be at most {most_bytes} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > most_bytes:
        raise too_large
    parts: list[bytes] = []
    held = 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                held += len(part)
                if held > most_bytes:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise Refused(408, f"the body of the request did not come within {seconds:g} s") from None
    except ClientDisconnect:
        raise Refused(400, "the request was cut off") from None
    return b"".join(parts)


class Keys:
    """API keys; only their hashes are held, and compared in a time that tells nothing."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def read(cls, path: str | Path) -> "Keys":
        """One key a line; empty lines and those that begin with # are none. Raises BadInput for no key at all."""
        try:
            lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise BadInput(f"{path}: must be UTF-8 text, one API key a line") from None
        keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not keys:
            raise BadInput(f"{path}: must have at least one API key, one a line; got none")
        return cls(keys)

    def accept(self, key: str) -> bool:
        """Whether it is one of them. All are compared, whichever fits."""
        digest = _digest(key)
        return sum([hmac.compare_digest(digest, known) for known in self._digests]) > 0


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogatepass")).digest()


class Rates:
    """A token bucket for each caller; those that were not seen for longest are forgotten."""

    _MOST_CALLERS = 10_000

    def __init__(self, per_minute: float) -> None:
        self._per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> None:
        """Count one request. Raises Refused with 429 where it is too many."""
        if self._per_minute == float("inf"):
            return
        now = time.monotonic()
        most = max(self._per_minute, 1.0)
        left, then = self._buckets.pop(caller, (most, now))
        left = min(most, left + (now - then) * self._per_minute / 60)
        allowed = left >= 1
        self._buckets[caller] = (left - allowed, now)
        if len(self._buckets) > self._MOST_CALLERS:
            self._buckets.popitem(last=False)
        if not allowed:
            wait = int((1 - left) * 60 / self._per_minute) + 1
            raise Refused(429, f"Slowdown: at most {self._per_minute:g} requests a minute", wait)
