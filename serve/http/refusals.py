"""Refusals as problem details (RFC 9457): every error of the service is one, and names the limit that was hit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import Scope

PROBLEM = "application/problem+json"


class Problem(Exception):
    """A refusal: HTTP status, title, what happened and what to do, and the limit that was hit."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        limit: str | None = None,
        retry_after_s: int = 0,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(detail)
        self.status, self.title, self.detail, self.limit = status, title, detail, limit
        self.headers = {**(headers or {}), **({"Retry-After": str(retry_after_s)} if retry_after_s else {})}

    @property
    def kind(self) -> str:
        """What the metrics count it under."""
        return self.limit or self.title.lower().replace(" ", "_")

    def response(self, **more: Any) -> JSONResponse:
        """Return the problem as RFC 9457 JSON; `more` are extension members."""
        body = {"type": "about:blank", "title": self.title, "status": self.status, "detail": self.detail, **more}
        body |= {"limit": self.limit} if self.limit else {}
        return JSONResponse(body, self.status, self.headers, PROBLEM)


def refusal(problem: Problem, scope: Scope, **more: Any) -> JSONResponse:
    """Return the problem's response, and leave its kind in the request's state for metrics and log."""
    scope.setdefault("state", {})["kind"] = problem.kind
    return problem.response(**more)


class ProblemDetails(BaseModel):
    """The body of every refusal (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    limit: str | None = Field(None, description="the setting that was exceeded")
    errors: list[dict[str, Any]] | None = Field(None, description="one entry per wrong field")


LIMIT_OF_FIELD = {
    "id": "id_chars",
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


def invalid(error: RequestValidationError) -> tuple[Problem, list[dict[str, str]]]:
    """Turn pydantic's findings into one 422 that names every field, and the limit where one was hit."""
    found = error.errors()
    errors = [{"field": field_of(e), "message": e["msg"]} for e in found]
    limit = next(filter(None, map(limit_of, found)), None)
    detail = "; ".join(f"{e['field']}: {e['message']}" for e in errors[:5])
    return Problem(422, "The request is not valid", detail, limit), errors[:50]


def add_problems(api: FastAPI) -> None:
    """Answer every error as problem details."""

    @api.exception_handler(Problem)
    async def _problem(request: Request, error: Problem) -> JSONResponse:
        return refusal(error, request.scope)

    @api.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problem, errors = invalid(error)
        return refusal(problem, request.scope, errors=errors)

    @api.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        said = str(error.detail)
        return refusal(Problem(error.status_code, said, said, headers=error.headers), request.scope)

    # The cause goes to the log only: it may hold what nobody outside should read.
    @api.exception_handler(Exception)
    async def _fault(request: Request, _: Exception) -> JSONResponse:
        return refusal(Problem(500, "Internal error", "the service failed; its log says why"), request.scope)
