"""What happens to a request before and after the API sees it: an id, a bounded body."""

from __future__ import annotations

import uuid

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.problems import Problem


class RequestId:
    """ASGI middleware: names a request in its state, by its `X-Request-ID` or, without one, by a new id.

    Ray Serve's proxy gives every request such a header and returns it, so it is not returned here again.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope.setdefault("state", {})["request_id"] = Headers(scope=scope).get("x-request-id") or str(uuid.uuid4())
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
            await self.refuse()(scope, receive, send)
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
                await self.refuse()(scope, receive, send)
                return
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    def refuse(self) -> JSONResponse:
        """The 413."""
        detail = f"the body is larger than body_bytes = {self.limit}: send fewer products per request"
        return Problem(413, "The body is too large", detail, "body_bytes").response()
