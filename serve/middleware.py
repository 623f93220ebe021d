"""What happens to a request around the API: it is named, counted and logged, and its body is bounded."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.metrics import Metrics
from serve.problems import Problem, refusal

GONE = 499  # nobody was there any more to take an answer


class Observed:
    """ASGI middleware: names, times, counts and, where there is a log, logs every request.

    The name is the request's `X-Request-ID` or a new one. Ray Serve's proxy gives every request such a header and
    returns it, so it is not returned here again.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, log: logging.Logger | None, log_queries: bool):
        self.app, self.metrics, self.log, self.log_queries = app, metrics, log, log_queries

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = Headers(scope=scope).get("x-request-id") or str(uuid.uuid4())
        started, status = time.perf_counter(), GONE

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:  # answered further out, by the handler of all faults
            status, state["kind"] = 500, "internal_error"
            raise
        finally:
            self._finish(scope, status, time.perf_counter() - started)

    def _finish(self, scope: Scope, status: int, seconds: float) -> None:
        state = scope["state"]
        # The template: what is asked for is unbounded.
        path = state.get("path") or getattr(scope.get("route"), "path", "other")
        kind = state.get("kind") or ("client_gone" if status == GONE else None)
        self.metrics.answered(path, status, seconds, kind)
        if self.log is None:
            return
        line = {"method": scope["method"], "path": path, "status": status, "ms": round(1000 * seconds, 2), "kind": kind}
        line |= {"request_id": state["request_id"], "pairs": state.get("pairs")}
        line |= {"query": state.get("query")} if self.log_queries else {}
        said = {key: value for key, value in line.items() if value is not None}
        self.log.info("%s %s %d", scope["method"], path, status, extra=said)


class Admission:
    """ASGI middleware: what a full queue would refuse anyway is refused before its body is read.

    Under far too much load most requests are refused, and reading and checking them would take the model's time.
    """

    PATHS = frozenset({"/v1/score", "/v1/explain", "/v1/rerank"})

    def __init__(self, app: ASGIApp, full: Callable[[], Problem | None]):
        self.app, self.full = app, full

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self.PATHS
        if asked and (problem := self.full()):
            scope["state"]["path"] = scope["path"]
            await refusal(problem, scope)(scope, receive, send)
            return
        await self.app(scope, receive, send)


class BodyLimit:
    """ASGI middleware: a body over `limit` bytes is answered with 413, announced or not."""

    def __init__(self, app: ASGIApp, limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.limit:
            await refusal(self.problem(), scope)(scope, receive, send)
            return
        await self.counted(scope, receive, send)

    async def counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the whole body within the limit, then hand it on as one message."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > self.limit:
                await refusal(self.problem(), scope)(scope, receive, send)
                return
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    def problem(self) -> Problem:
        """The 413."""
        detail = f"the body is larger than body_bytes = {self.limit}: send fewer products per request"
        return Problem(413, "The body is too large", detail, "body_bytes")
