"""What happens to a request around the API: it is named, counted and logged, and its body is bounded."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.config import LimitSettings
from serve.http.metrics import Metrics
from serve.http.refusals import Problem, refusal

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
        # Who is refused before routing has no route.
        asked = str(scope.get("path"))
        path = getattr(scope.get("route"), "path", asked if asked in Admission.PATHS else "other")
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

    PATHS = frozenset({"/v1/score", "/v1/explain", "/v1/rerank", "/v2/rerank", "/rerank"})

    def __init__(self, app: ASGIApp, full: Callable[[], Problem | None]):
        self.app, self.full = app, full

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self.PATHS
        if asked and (problem := self.full()):
            await refusal(problem, scope)(scope, receive, send)
            return
        await self.app(scope, receive, send)


class BodyLimit:
    """ASGI middleware: a body over `body_bytes` is answered with 413, announced or not; a late one with 503.

    A body can be late through no fault of the client: Ray Serve's proxy hands it out once, so where a replica dies
    with it, the replica that the request goes to next would wait for ever.
    """

    def __init__(self, app: ASGIApp, limits: LimitSettings):
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                body = await self._read(scope, receive)
        except TimeoutError:
            await refusal(self._late(), scope)(scope, receive, send)
        except Problem as problem:
            await refusal(problem, scope)(scope, receive, send)
        else:
            if body is not None:
                await self.app(scope, handed_on(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the whole body; None where the client has gone. Raises `Problem` where it is too large."""
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.limits.body_bytes:
            raise self._large()
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > self.limits.body_bytes:
                raise self._large()
        return body

    def _large(self) -> Problem:
        detail = f"the body is larger than body_bytes = {self.limits.body_bytes}: send fewer products per request"
        return Problem(413, "The body is too large", detail, "body_bytes")

    def _late(self) -> Problem:
        detail = f"no whole body within body_seconds = {self.limits.body_seconds:g}: try again"
        return Problem(503, "The body did not arrive", detail, "body_seconds", 1)


def handed_on(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body that was read as one message, then what else comes."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
