"""Bearer tokens are read once, where the service starts; from there on only their digests travel."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.base.errors import UserError
from serve.config import AuthSettings
from serve.http.refusals import Refusal

LEAST_CHARS = 16
# These hold no data: the pages that ask with a token, the health probes, and the description of the API.
OPEN_PATHS = ("/", "/drift", "/healthz", "/readyz", "/docs", "/openapi.json")
OPEN_FOLDER, METRICS = "/page/", "/metrics"


@dataclass(frozen=True)
class Tokens:
    """SHA-256 digests of the tokens of those who ask, and of those who may only read `/metrics`."""

    asking: tuple[bytes, ...] = ()
    scraping: tuple[bytes, ...] = ()

    def of(self, path: str) -> tuple[bytes, ...]:
        """Return the digests of what opens the path; none where it needs no token."""
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            return ()
        return self.asking + self.scraping if path == METRICS else self.asking


NO_TOKENS = Tokens()


def read_tokens(settings: AuthSettings) -> Tokens:
    """Return the digests of the tokens in the files and environment variables; none where neither is set.

    Raises:
        UserError: a source that cannot be read or is empty, or a token that is too short. The message never holds a
            token.
    """
    return Tokens(
        _read("tokens", settings.tokens_file, settings.tokens_env),
        _read("scrape_tokens", settings.scrape_tokens_file, settings.scrape_tokens_env),
    )


def _read(setting: str, file: Path | None, variable: str | None) -> tuple[bytes, ...]:
    digests: list[bytes] = []
    if file:
        name = f"serve.auth.{setting}_file {file}"
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise UserError(f"{name}: cannot be read ({reason})") from None
        digests += _digests(name, text.split())
    if variable:
        digests += _digests(f"serve.auth.{setting}_env {variable}", os.environ.get(variable, "").split())
    return tuple(digests)


def _digests(source: str, tokens: list[str]) -> list[bytes]:
    if not tokens:
        raise UserError(f"{source}: holds no token. Put one per line, such as `openssl rand -hex 32` prints.")
    if any(len(token) < LEAST_CHARS or not token.isascii() for token in tokens):
        raise UserError(f"{source}: a token needs {LEAST_CHARS} or more ASCII characters and no white space")
    return [hashlib.sha256(token.encode()).digest() for token in tokens]


def known(authorization: str | None, digests: Sequence[bytes]) -> bool:
    """Say whether the header holds one of our tokens; the time that this takes tells nothing about them."""
    scheme, _, token = (authorization or "").partition(" ")
    digest = hashlib.sha256(token.strip().encode()).digest()
    matches = [hmac.compare_digest(digest, one) for one in digests]  # compares with all of them, found or not
    return scheme.lower() == "bearer" and any(matches)


class BearerTokens:
    """ASGI middleware that answers a request without a known token with 401, before its body is read."""

    def __init__(self, app: ASGIApp, tokens: Tokens):
        self.app, self.tokens = app, tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (digests := self.tokens.of(scope["path"])):
            given = Headers(scope=scope).get("authorization")
            if not known(given, digests):
                challenge = "Bearer" if given is None else 'Bearer error="invalid_token"'
                detail = "send `Authorization: Bearer TOKEN` with a token of this service"
                refusal = Refusal(401, "Unauthorized", detail, headers={"WWW-Authenticate": challenge})
                await refusal.response(scope)(scope, receive, send)
                return
        await self.app(scope, receive, send)
