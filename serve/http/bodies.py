"""The body of a request: its type, its encoding, how large it may be and how long it may take."""

from __future__ import annotations

import asyncio
import zlib

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.config import LimitSettings
from serve.http.refusals import Refusal

JSON, GZIP = "application/json", ("gzip", "x-gzip")
GZIP_ALONE = 31  # zlib's window bits for data with the header of gzip


class Bodies:
    """ASGI middleware that hands on whole JSON bodies, unpacked.

    It answers another type or encoding with 415, a body over `body_bytes` with 413, announced or not, packed or not,
    and a late one with 408. A body can be late through no fault of the client: Ray Serve's proxy hands it out once, so
    where a replica dies with it, the replica that gets the request next would wait for ever.
    """

    def __init__(self, app: ASGIApp, limits: LimitSettings):
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        try:
            body = await self._whole(Request(scope, receive))
        except ClientDisconnect:
            return
        except Refusal as refusal:
            await refusal.response(scope)(scope, receive, send)
        else:
            await self.app(scope, with_body(body, receive), send)

    async def _whole(self, request: Request) -> bytes:
        """Return the whole body as the client meant it, or raise its refusal."""
        packed = check_headers(request.headers)
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                body = await self._read(request)
        except TimeoutError as error:
            detail = f"no whole body within body_seconds = {self.limits.body_seconds:g}: try again"
            raise Refusal(408, "The body did not arrive", detail, "body_seconds") from error
        return self._unpacked(body) if packed else body

    async def _read(self, request: Request) -> bytes:
        """Return the whole body, or raise the refusal of one that is too large."""
        body, announced = bytearray(), request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > self.limits.body_bytes:
            raise self._large
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.limits.body_bytes:
                raise self._large
        return bytes(body)

    def _unpacked(self, body: bytes) -> bytes:
        """Unpack no more than may be read, because a small body can hold gigabytes."""
        unpack = zlib.decompressobj(GZIP_ALONE)
        try:
            plain = unpack.decompress(body, self.limits.body_bytes + 1)
        except zlib.error as error:
            raise Refusal(400, "The body cannot be unpacked", f"Content-Encoding is gzip, but {error}") from error
        if len(plain) > self.limits.body_bytes:
            raise self._large
        if not unpack.eof:
            raise Refusal(400, "The body cannot be unpacked", "Content-Encoding is gzip, but the body ends too early")
        return plain

    @property
    def _large(self) -> Refusal:
        limit = self.limits.body_bytes
        detail = f"the body is larger than body_bytes = {limit}: send fewer products per request"
        return Refusal(413, "The body is too large", detail, "body_bytes")


def check_headers(headers: Headers) -> bool:
    """Say whether the body is packed by gzip.

    Raises:
        Refusal: 415, its type is not JSON, or it is packed in another way.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON and not (kind.startswith("application/") and kind.endswith("+json")):
        said = f"Content-Type is {kind!r}" if kind else "there is no Content-Type"
        raise Refusal(415, "Unsupported media type", f"{said}: send {JSON}", headers={"Accept": JSON})
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding in GZIP:
        return True
    if coding != "identity":
        detail = f"Content-Encoding is {coding!r}: send gzip or none"
        raise Refusal(415, "Unsupported encoding", detail, headers={"Accept-Encoding": "gzip"})
    return False


def with_body(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body which was read already as one message, then whatever else comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
