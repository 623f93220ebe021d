"""Refusals as problem details (RFC 9457): every error of the service is one, and names the limit that was hit."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

PROBLEM = "application/problem+json"


class Problem(Exception):
    """A refusal: HTTP status, title, what happened and what to do, and the limit that was hit."""

    def __init__(self, status: int, title: str, detail: str, limit: str | None = None, retry_after_s: int = 0):
        super().__init__(detail)
        self.status, self.title, self.detail = status, title, detail
        self.limit, self.retry_after_s = limit, retry_after_s

    def response(self, **more: Any) -> JSONResponse:
        """Return the problem as RFC 9457 JSON; `more` are extension members."""
        body = {"type": "about:blank", "title": self.title, "status": self.status, "detail": self.detail, **more}
        body |= {"limit": self.limit} if self.limit else {}
        headers = {"Retry-After": str(self.retry_after_s)} if self.retry_after_s else None
        return JSONResponse(body, self.status, headers, PROBLEM)


class ProblemDetails(BaseModel):
    """The body of every refusal (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    limit: str | None = Field(None, description="the setting that was exceeded")
    errors: list[dict[str, Any]] | None = Field(None, description="one entry per wrong field")


LIMIT_OF_FIELD = {
    "query": "query_chars",
    "products": "products_per_request",
    "documents": "products_per_request",
    "title": "title_chars",
    "brand": "title_chars",
    "description": "description_chars",
}
# In `/v1/rerank` a document is a text or an object, and its path says which.
DOCUMENT_KINDS = ("string", "object")


def field_of(error: dict[str, Any]) -> str:
    """Name the field as `products.3.title`; what is not JSON at all is the body's fault."""
    path = () if error["type"] == "json_invalid" else error["loc"][1:]
    return ".".join(str(part) for part in path if part not in DOCUMENT_KINDS) or "body"


def limit_of(error: dict[str, Any]) -> str | None:
    """The setting that bounds a field which is too long; None for any other mistake."""
    if error["type"] not in ("too_long", "string_too_long"):
        return None
    if "documents" in error["loc"] and error["loc"][-1] in ("string", "text", "title"):
        return "document_chars"
    return LIMIT_OF_FIELD.get(str(error["loc"][-1]))


def invalid(error: RequestValidationError) -> JSONResponse:
    """Turn pydantic's findings into one 422 that names every field, and the limit where one was hit."""
    found = error.errors()
    errors = [{"field": field_of(e), "message": e["msg"]} for e in found]
    limit = next(filter(None, map(limit_of, found)), None)
    detail = "; ".join(f"{e['field']}: {e['message']}" for e in errors[:5])
    return Problem(422, "The request is not valid", detail, limit).response(errors=errors[:50])


def add_problems(api: FastAPI) -> None:
    """Answer every error as problem details."""

    @api.exception_handler(Problem)
    async def _problem(_: Request, error: Problem) -> JSONResponse:
        return error.response()

    @api.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return invalid(error)

    @api.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        return Problem(error.status_code, str(error.detail), str(error.detail)).response()

    # The cause goes to the log only: it may hold what nobody outside should read.
    @api.exception_handler(Exception)
    async def _fault(_: Request, __: Exception) -> JSONResponse:
        return Problem(500, "Internal error", "the service failed; its log says why").response()
