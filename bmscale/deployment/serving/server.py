"""The server: LibreTranslate's routes, OpenAI's for language models, metrics, and the page."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from bmscale import __version__
from bmscale.deployment.serving import openapi
from bmscale.deployment.serving.batching import Closed, Overloaded, TooLong
from bmscale.deployment.serving.bodies import fields_of
from bmscale.deployment.serving.completions import CompletionRequest
from bmscale.deployment.serving.gate import Gate, error_response, json_response
from bmscale.deployment.serving.languages import Detector, name_of
from bmscale.deployment.serving.limits import Keys, Limits, Rates, Refused, read_body
from bmscale.deployment.serving.metrics import CONTENT_TYPE, Metrics
from bmscale.deployment.serving.models import Models
from bmscale.deployment.serving.sites import Sites
from bmscale.deployment.serving.streams import Streams
from bmscale.deployment.serving.translation import TranslationPlan, TranslationRequest, texts_of

PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/alignment.js": ("alignment.js", "text/javascript"),
}


@dataclass
class Service:
    """What is behind the routes."""

    models: Models
    limits: Limits = field(default_factory=Limits)
    keys: Keys | None = None
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.detector = Detector(self.models.sources)
        self.rates = Rates(self.limits.requests_per_minute)
        self.streams = Streams()

    async def fields(self, request: Request) -> tuple[dict[str, Any], float]:
        """The fields of a request that may be answered, and until when (event loop's time). Raises Refused."""
        until = asyncio.get_running_loop().time() + self.limits.timeout_seconds
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        key = bearer.strip() if scheme.lower() == "bearer" else ""
        # Who may not ask need not send a body. OpenAI's clients have their key in the header, LibreTranslate's do not.
        of_header = bool(key) or self.keys is None or request.url.path.startswith("/v1/")
        if of_header:
            self._admit(request, key)
        body = await read_body(request, self.limits.max_body_bytes, self.limits.timeout_seconds)
        found = fields_of(request.headers.get("content-type", ""), body, request.url.query)
        if not of_header:
            self._admit(request, found.get("api_key"))
        return found, until

    def _admit(self, request: Request, key: object) -> None:
        caller = request.client.host if request.client else ""
        if self.keys is not None:
            openai = request.url.path.startswith("/v1/")
            if not key:
                raise Refused(401 if openai else 400, "Please contact the server operator to get an API key")
            if not isinstance(key, str) or not self.keys.accept(key):
                raise Refused(401 if openai else 403, "Invalid API key")
            caller = key
        self.rates.take(caller)

    async def results(self, request: Request, futures: Sequence[Future[list[Any]]], until: float) -> list[list[Any]]:
        """What comes of work, as soon as it is there. Raises Refused: 503 too late, 400 nobody waits any more."""
        loop = asyncio.get_running_loop()
        gone = asyncio.ensure_future(_gone(request))
        work = asyncio.ensure_future(_all(futures))
        try:
            waited: set[asyncio.Future[Any]] = {work, gone}
            await asyncio.wait(waited, timeout=until - loop.time(), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return await work
            if gone.done():
                raise Refused(400, "the client went away")
            raise Refused(503, f"the request took longer than {self.limits.timeout_seconds:g} s", retry_after=10)
        finally:
            gone.cancel()
            work.cancel()

    async def translate(self, request: Request) -> Response:
        """POST /translate."""
        fields, until = await self.fields(request)
        asked = TranslationRequest.of(fields, self.limits)
        plan = await asyncio.to_thread(TranslationPlan, asked, self.models, self.detector)
        work = await asyncio.to_thread(lambda: plan.work)
        futures: list[Future[list[Any]]] = []
        try:
            left = until - asyncio.get_running_loop().time()
            futures.extend(model.batcher.submit(units, left) for model, units in work)
            self.metrics.characters.inc(sum(map(len, asked.texts)))
            return json_response(plan.answer(await self.results(request, futures, until)))
        finally:
            for future in futures:
                future.cancel()

    async def detect(self, request: Request) -> Response:
        """POST /detect."""
        fields, _ = await self.fields(request)
        texts, _ = texts_of(fields, self.limits)
        if not self.detector.works:
            raise Refused(400, "the server has no language detector")
        found = await asyncio.to_thread(self.detector.detect, "\n".join(texts))
        return json_response([{"confidence": one.confidence, "language": one.language} for one in found])

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions."""
        fields, until = await self.fields(request)
        asked = await asyncio.to_thread(CompletionRequest.of, fields, self.models, self.limits)
        self.metrics.characters.inc(sum(map(len, asked.prompts)))
        if asked.stream:
            return self.streams.response(asked, until - asyncio.get_running_loop().time())
        units = asked.units()
        left = until - asyncio.get_running_loop().time()
        future = asked.model.batcher.submit([unit for of_prompt in units for unit in of_prompt], left)
        try:
            (found,) = await self.results(request, [future], until)
        finally:
            future.cancel()
        rest = iter(found)
        by_prompt = [[text for _ in of_prompt for text in next(rest)] for of_prompt in units]
        return json_response(asked.answer(by_prompt))

    def languages(self) -> list[dict[str, Any]]:
        """What /languages says."""
        codes = dict.fromkeys([*self.models.sources, *(target for _, target in self.models.pairs)])
        return [{"code": code, "name": name_of(code), "targets": self.models.targets(code)} for code in codes]

    def settings(self) -> dict[str, Any]:
        """What /frontend/settings says."""
        source, target = next(iter(self.models.pairs), ("", ""))
        return {
            "apiKeys": self.keys is not None,
            "charLimit": self.limits.max_characters,
            "filesTranslation": False,
            "frontendTimeout": 500,
            "keyRequired": self.keys is not None,
            "language": {
                "source": {"code": source, "name": name_of(source)},
                "target": {"code": target, "name": name_of(target)},
            },
            "suggestions": False,
            "supportedFilesFormat": [],
            # What LibreTranslate does not have; the page reads it.
            "detection": self.detector.works,
            "models": list(self.models.language_models),
            "pairs": len(self.models.pairs),
        }

    def openai_models(self) -> list[dict[str, Any]]:
        """What /v1/models lists."""
        return [
            {"id": name, "object": "model", "created": 0, "owned_by": "bmscale"} for name in self.models.language_models
        ]


async def _all(futures: Sequence[Future[list[Any]]]) -> list[list[Any]]:
    """What comes of all of them."""
    return [await asyncio.wrap_future(future) for future in futures]


async def _gone(request: Request) -> None:
    """Returns when the client is no longer there."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_app(service: Service, sites: Sites | None = None) -> ASGIApp:
    """The application of uvicorn; when it ends, the queues finish what they accepted."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.models.close)

    # No docs_url: FastAPI's page loads its scripts from elsewhere.
    app = FastAPI(
        title="bmscale",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    _add_routes(app, service)
    _add_page(app)
    _add_errors(app, service.limits.timeout_seconds)
    return Gate(app, service.limits, service.metrics, sites or Sites())


def _add_routes(app: FastAPI, service: Service) -> None:
    models = service.models
    if models.pairs:
        sources = [*models.sources, *(["auto"] if service.detector.works else [])]
        targets = list(dict.fromkeys(target for _, target in models.pairs))
        app.post("/translate", **openapi.translate(sources, targets))(service.translate)
        app.post("/detect", **openapi.DETECT)(service.detect)
        app.get("/languages")(lambda: json_response(service.languages()))
    if models.language_models:
        app.post("/v1/completions", **openapi.COMPLETIONS)(service.complete)
        app.get("/v1/models")(lambda: json_response({"object": "list", "data": service.openai_models()}))
    app.get("/health")(lambda: json_response({"status": "ok"}))
    app.get("/frontend/settings")(lambda: json_response(service.settings()))
    app.get("/metrics", include_in_schema=False)(
        lambda: Response(service.metrics.text(models.batchers), media_type=CONTENT_TYPE)
    )


def _add_page(app: FastAPI) -> None:
    """The files of the page, read once: no path of a request is ever looked up on the disk."""
    folder = files("bmscale.deployment.serving") / "page"
    for path, (name, kind) in PAGE.items():
        app.get(path, include_in_schema=False)(_static((folder / name).read_bytes(), kind))


def _static(content: bytes, kind: str) -> Callable[[], Response]:
    return lambda: Response(content, media_type=kind, headers={"cache-control": "no-cache"})


def _add_errors(app: FastAPI, timeout_seconds: float) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return error_response(request.url.path, error.status, error.message, error.retry_after)

    async def overloaded(request: Request, error: Exception) -> Response:
        assert isinstance(error, Overloaded)
        return error_response(request.url.path, 429, f"Slowdown: {error}", error.retry_after)

    async def too_long(request: Request, error: Exception) -> Response:
        message = f"Invalid request: {error}, and may take {timeout_seconds:g} s; send less of it at a time"
        return error_response(request.url.path, 413, message)

    async def closed(request: Request, error: Exception) -> Response:
        return error_response(request.url.path, 503, "the server is shutting down", 5)

    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = error_response(request.url.path, error.status_code, str(error.detail))
        response.headers.update(error.headers or {})
        return response

    async def failed(request: Request, error: Exception) -> Response:
        return error_response(request.url.path, 500, "the request could not be answered")

    app.add_exception_handler(Exception, failed)  # else Starlette answers with plain text
    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(Overloaded, overloaded)
    app.add_exception_handler(TooLong, too_long)
    app.add_exception_handler(Closed, closed)
    app.add_exception_handler(HTTPException, of_http)
