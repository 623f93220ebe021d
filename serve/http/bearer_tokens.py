"""Bearer tokens: read once where the service starts; from there on only their digests travel."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.base.errors import UserError
from serve.config import AuthSettings
from serve.http.refusals import Problem, refusal

LEAST_CHARS = 16
# What holds no data: the page that asks for a token, the probes of whoever runs the service, the form of the API.
OPEN_PATHS = ("/", "/healthz", "/readyz", "/docs", "/openapi.json")
OPEN_FOLDER = "/page/"


def read_digests(settings: AuthSettings) -> tuple[bytes, ...]:
    """Return the SHA-256 digest of every token in the file and the environment variable; none if neither is set.

    Raises:
        UserError: unreadable, empty, or a token that is too short. The message never holds a token.
    """
    digests: list[bytes] = []
    if settings.tokens_file:
        digests += _digests("serve.auth.tokens_file", str(settings.tokens_file), _file(settings))
    if settings.tokens_env:
        value = os.environ.get(settings.tokens_env, "")
        digests += _digests("serve.auth.tokens_env", settings.tokens_env, value.split())
    return tuple(digests)


def _file(settings: AuthSettings) -> list[str]:
    assert settings.tokens_file is not None
    try:
        return settings.tokens_file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"serve.auth.tokens_file {settings.tokens_file}: cannot be read ({reason})") from None


def _digests(field: str, where: str, tokens: list[str]) -> list[bytes]:
    if not tokens:
        raise UserError(f"{field} {where}: holds no token. Put one per line, such as `openssl rand -hex 32` prints.")
    if any(len(token) < LEAST_CHARS or not token.isascii() for token in tokens):
        raise UserError(f"{field} {where}: a token needs {LEAST_CHARS} or more ASCII characters and no white space")
    return [hashlib.sha256(token.encode()).digest() for token in tokens]


def known(authorization: str | None, digests: Sequence[bytes]) -> bool:
    """Whether the header holds a token of ours. Takes as long for a wrong one, whatever it begins with."""
    scheme, _, token = (authorization or "").partition(" ")
    digest = hashlib.sha256(token.strip().encode()).digest()
    matches = [hmac.compare_digest(digest, one) for one in digests]  # all of them, found or not
    return scheme.lower() == "bearer" and any(matches)


class BearerTokens:
    """ASGI middleware: refuses what comes without a known token with 401, before its body is read."""

    def __init__(self, app: ASGIApp, digests: Sequence[bytes]):
        self.app, self.digests = app, digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._open(scope["path"]):
            given = Headers(scope=scope).get("authorization")
            if not known(given, self.digests):
                await self._refuse(scope, given is not None)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _open(self, path: str) -> bool:
        return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)

    def _refuse(self, scope: Scope, given: bool) -> JSONResponse:
        detail = "send `Authorization: Bearer TOKEN` with a token of this service"
        challenge = 'Bearer error="invalid_token"' if given else "Bearer"
        return refusal(Problem(401, "Unauthorized", detail, headers={"WWW-Authenticate": challenge}), scope)
