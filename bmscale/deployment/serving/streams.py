"""A completion as server-sent events while it is written."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from bmscale.deployment.serving.batching import Overloaded
from bmscale.deployment.serving.completions import CompletionRequest, cut_at
from bmscale.inference.generator import Generation

# Each is written alone, in a thread of its own beside the batches; more of them would only slow each other down.
_MOST_STREAMS = 4

_Part = str | Generation | Exception


class _Stopped(Exception):
    """Ends a text that nobody needs any further."""


class _Response(StreamingResponse):
    """Gives back its room, and ends the text, whatever becomes of the client; maybe before the first event."""

    def __init__(self, events: AsyncGenerator[bytes, None], room: contextlib.ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._events, self._room = events, room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._room:
            async with contextlib.aclosing(self._events):
                await super().__call__(scope, receive, send)


class Streams:
    """Texts that are given out while they are written, a few at a time."""

    def __init__(self) -> None:
        self._running = 0
        self._threads = ThreadPoolExecutor(_MOST_STREAMS, thread_name_prefix="stream")

    def response(self, request: CompletionRequest, seconds: float) -> Response:
        """The events of one answer, each `data: JSON` and an empty line, at last `data: [DONE]`.

        Raises Overloaded at once where too many are being written, or the queue has no room for what it may write, and
        Closed where the server is shutting down.
        """
        if self._running >= _MOST_STREAMS:
            raise Overloaded(retry_after=1)
        slots = request.model.slots(request.prompt_tokens[0], request.options)
        with contextlib.ExitStack() as room:
            room.enter_context(request.model.batcher.beside(slots))
            self._running += 1
            room.callback(self._ended)
            until = asyncio.get_running_loop().time() + seconds
            return _Response(self._events(request, until), room.pop_all())

    def _ended(self) -> None:
        self._running -= 1

    async def _events(self, request: CompletionRequest, until: float) -> AsyncGenerator[bytes, None]:
        loop = asyncio.get_running_loop()
        parts: asyncio.Queue[_Part] = asyncio.Queue()
        unwanted = threading.Event()
        head = request.head()

        def event(text: str, reason: str | None) -> bytes:
            return _event({**head, "choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": reason}]})

        self._threads.submit(_write, request, lambda part: loop.call_soon_threadsafe(parts.put_nowait, part), unwanted)
        try:
            if request.echo:
                yield event(request.prompts[0], None)
            # Not one timeout around all of it: it would end whatever waits for a client to take what is yielded.
            while isinstance(part := await asyncio.wait_for(parts.get(), until - loop.time()), str):
                yield event(part, None)
            if isinstance(part, Exception):
                yield _event({"error": {"message": "the text could not be written", "type": "server_error"}})
            else:
                yield event("", "stop" if part.ended else "length")
                if request.usage_in_stream:
                    yield _event({**head, "choices": [], "usage": request.usage(part.tokens)})
        except TimeoutError:
            yield event("", "length")
        finally:
            unwanted.set()  # also where the client went away
        yield b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


class _UntilStop:
    """Takes a text in parts and gives out what is surely before the first of the stops."""

    def __init__(self, stops: list[str]) -> None:
        self._stops, self._held = stops, max(map(len, stops), default=1) - 1
        self.text = ""
        self._given = 0
        self.was_cut = False

    def add(self, part: str) -> str:
        """What can be given out now: the end of the text may be the beginning of a stop."""
        self.text, self.was_cut = cut_at(self.text + part, self._stops)
        return self._give(len(self.text) - (0 if self.was_cut else self._held))

    def rest(self) -> str:
        """What was held back, at the end."""
        return self._give(len(self.text))

    def _give(self, until: int) -> str:
        part = self.text[self._given : until] if until > self._given else ""
        self._given += len(part)
        return part


def _write(request: CompletionRequest, give: Callable[[_Part], object], unwanted: threading.Event) -> None:
    """Write one text in this thread; its parts go to `give`, at last a Generation or what went wrong."""
    filtered = _UntilStop(request.stops)
    prompt_came = False

    def watch() -> None:
        if unwanted.is_set():
            raise _Stopped

    def out(part: str) -> None:
        nonlocal prompt_came
        if not prompt_came:  # the generator gives it out first
            prompt_came = True
            return
        if sure := filtered.add(part):
            give(sure)
        if filtered.was_cut:
            raise _Stopped

    generator = request.model.generator
    try:
        result = generator.stream(request.prompts[0], request.options, out=out, watch=watch)
        if rest := filtered.rest():
            give(rest)
        give(result)
    except _Stopped:
        give(Generation(filtered.text, len(generator.tokenizer.encode(filtered.text)) - 1, ended=True))
    except Exception as error:
        give(error)
