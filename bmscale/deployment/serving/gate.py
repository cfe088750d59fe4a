"""What every request passes: its site, its path, how many there are; and how errors are answered."""

import json
import logging
import time
import traceback
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bmscale.deployment.serving.limits import Limits
from bmscale.deployment.serving.metrics import Metrics
from bmscale.deployment.serving.sites import Sites

log = logging.getLogger("bmscale")

_SAFETY = {
    "content-security-policy": "default-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON in UTF-8; half a surrogate pair, which UTF-8 does not have, becomes a question mark."""
    content = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", errors="replace")
    return Response(content, status, headers, media_type="application/json")


def error_response(path: str, status: int, message: str, retry_after: int | None = None) -> Response:
    """An error as LibreTranslate's clients read it, or OpenAI's on their routes."""
    headers = {} if retry_after is None else {"retry-after": str(retry_after)}
    if status == 408:  # the rest of the body may still come, and would be read as the next request
        headers["connection"] = "close"
    if not path.startswith("/v1/"):
        return json_response({"error": message}, status, headers)
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status)
    kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
    return json_response({"error": {"message": message, "type": kind, "param": None, "code": None}}, status, headers)


class Gate:
    """Around everything: refuses other sites, counts requests, bounds how many there are, and keeps texts out of the
    log of errors. A path may end in a slash, and HEAD is GET without its body. Pages of allowed sites can read every
    answer but the refusal of a site."""

    def __init__(self, app: FastAPI, limits: Limits, metrics: Metrics, sites: Sites) -> None:
        self._app, self._limits, self._metrics, self._sites = app, limits, metrics, sites
        self._routes = {str(getattr(route, "path", "")) for route in app.routes}
        self._running = 0
        self._behind_sites: ASGIApp = self._answer
        if sites.origins:
            self._behind_sites = CORSMiddleware(
                self._answer,
                allow_origins=list(sites.origins),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"],
                expose_headers=["Retry-After"],
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        metrics, path = self._metrics, str(scope["path"]).rstrip("/") or "/"
        # A copy: uvicorn leaves the body out where its own says HEAD. A redirect would lose the body of a POST.
        scope = {**scope, "path": path, "method": "GET" if scope["method"] == "HEAD" else scope["method"]}
        began, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                message["headers"] = [
                    *message.get("headers", ()), *((name.encode(), value.encode()) for name, value in _SAFETY.items())
                ]  # fmt: skip
            await send(message)

        self._running += 1
        metrics.in_flight.inc()
        try:
            refusal = self._sites.refusal(Headers(scope=scope))
            answer: ASGIApp = self._behind_sites if refusal is None else error_response(path, 403, refusal)
            await answer(scope, receive, sending)
        finally:
            self._running -= 1
            metrics.in_flight.dec()
            route = path if path in self._routes else "other"
            metrics.requests.labels(route, str(status)).inc()
            metrics.request_seconds.labels(route).observe(time.monotonic() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, has_begun = str(scope["path"]), False

        async def sending(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        # Health and metrics are wanted most when there is too much of everything else.
        if self._running > self._limits.max_requests and scope["method"] == "POST":
            slow_down = error_response(path, 429, "Slowdown: too many requests at the same time", 1)
            await slow_down(scope, receive, send)
            return
        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            places = "".join(traceback.format_tb(error.__traceback__)[-4:])
            log.error("an answer failed: %s\n%s", type(error).__name__, places)
            if not has_begun:
                await error_response(path, 500, "the request could not be answered")(scope, receive, send)
