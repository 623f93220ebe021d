"""What happens to a request around the API: it gets an id, it is counted and logged, and its body is bounded."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.config import LimitSettings
from serve.http.metrics import Metrics
from serve.http.refusals import Refusal

GONE = 499  # the client left before it could be answered


class RequestLog:
    """ASGI middleware that gives every request an id, times it, counts it and, where there is a log, logs it.

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
        state["request_id"] = Headers(scope=scope).get("x-request-id") or str(uuid.uuid4())
        started, status = time.perf_counter(), GONE

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
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
    """ASGI middleware that refuses what would be refused anyway, whatever it asks for, before the body is read.

    Under heavy overload most requests are refused, and reading and checking their bodies would take the model's time.
    """

    PATHS = frozenset({"/v1/score", "/v1/explain", "/v1/rerank", "/v2/rerank", "/rerank"})

    def __init__(self, app: ASGIApp, hasty: Callable[[], Refusal | None]):
        self.app, self.hasty = app, hasty

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self.PATHS
        if asked and (refusal := self.hasty()):
            await refusal.response(scope)(scope, receive, send)
            return
        await self.app(scope, receive, send)


class BodyLimit:
    """ASGI middleware that answers a body over `body_bytes` with 413, announced or not, and a late one with 503.

    A body can be late through no fault of the client. Ray Serve's proxy hands it out once, so where a replica dies
    with it, the replica that gets the request next would wait for ever.
    """

    def __init__(self, app: ASGIApp, limits: LimitSettings):
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                body = await self._read(Request(scope, receive))
        except ClientDisconnect:
            return
        except TimeoutError:
            detail = f"no whole body within body_seconds = {self.limits.body_seconds:g}: try again"
            late = Refusal(503, "The body did not arrive", detail, "body_seconds", 1)
            await late.response(scope)(scope, receive, send)
        except Refusal as refusal:
            await refusal.response(scope)(scope, receive, send)
        else:
            await self.app(scope, with_body(body, receive), send)

    async def _read(self, request: Request) -> bytes:
        """Return the whole body, or raise the refusal of one that is too large."""
        limit, body = self.limits.body_bytes, bytearray()
        detail = f"the body is larger than body_bytes = {limit}: send fewer products per request"
        large = Refusal(413, "The body is too large", detail, "body_bytes")
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            raise large
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise large
        return bytes(body)


def with_body(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body which was read already as one message, then whatever else comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
