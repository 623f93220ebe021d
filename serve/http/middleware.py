"""What happens to a request around the API: it gets an id, is counted and logged, and may be refused early."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.metrics import Metrics
from serve.http.refusals import Refusal

GONE = 499  # the client left before it could be answered
ID_CHARS = 128  # of a request's id; of a longer one, the rest is left out


class RequestLog:
    """ASGI middleware that gives every request an id, times it, counts it and, where there is a log, logs it.

    The time until the answer begins is told in milliseconds in `Server-Timing` (https://www.w3.org/TR/server-timing).

    The id is the request's `X-Request-ID` or a new one. Ray Serve's proxy adds this header to every request and
    returns it with the answer, so it is not returned here a second time.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, log: logging.Logger | None, log_queries: bool):
        self.app, self.metrics, self.log, self.log_queries = app, metrics, log, log_queries

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = Headers(scope=scope).get("x-request-id", "")[:ID_CHARS] or str(uuid.uuid4())
        started, status = time.perf_counter(), GONE

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                taken = f"replica;dur={1000 * (time.perf_counter() - started):.1f}"
                MutableHeaders(scope=message).append("Server-Timing", taken)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:  # it is answered further out, by the handler of all faults
            status, state["kind"] = 500, "internal_error"
            raise
        finally:
            self._finish(scope, status, time.perf_counter() - started)

    def _finish(self, scope: Scope, status: int, seconds: float) -> None:
        state = scope["state"]
        # The route's template is counted, because the paths that clients ask for have no bound. A request that was
        # refused before routing has no route.
        asked = str(scope.get("path"))
        path = getattr(scope.get("route"), "path", asked if asked in Admission.PATHS else "other")
        kind = state.get("kind")
        self.metrics.answered(path, status, seconds, kind)
        if self.log is None:
            return
        line = {"method": scope["method"], "path": path, "status": status, "ms": round(1000 * seconds, 2), "kind": kind}
        line |= {"request_id": state["request_id"], "pairs": state.get("pairs")}
        line |= {"query": state.get("query")} if self.log_queries else {}
        said = {key: value for key, value in line.items() if value is not None}
        self.log.info("%s %s %d", scope["method"], path, status, extra=said)


class Admission:
    """ASGI middleware that refuses what would be refused anyway, whatever it asks for, before the body is read.

    Under heavy overload most requests are refused, and reading and checking their bodies would take the model's time.
    """

    PATHS = frozenset({"/v1/score", "/v1/explain", "/v1/rerank", "/v2/rerank", "/rerank", "/infinity/rerank"})

    def __init__(self, app: ASGIApp, hasty: Callable[[], Refusal | None]):
        self.app, self.hasty = app, hasty

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self.PATHS
        if asked and (refusal := self.hasty()):
            await refusal.response(scope)(scope, receive, send)
            return
        await self.app(scope, receive, send)


class HeadAsGet:
    """ASGI middleware that answers HEAD as GET is answered, without the body."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        scope["method"] = "GET"
        try:
            await self.app(scope, receive, without_body)
        finally:
            scope["method"] = "HEAD"  # for the log
