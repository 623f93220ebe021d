"""Refusals as problem details (RFC 9457): every error of the service is one, and names the limit that was exceeded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import Scope

PROBLEM_JSON = "application/problem+json"


class ProblemDetails(BaseModel):
    """The body of every refusal (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    limit: str | None = Field(None, description="the setting that was exceeded")
    errors: list[dict[str, Any]] | None = Field(None, description="one entry per wrong field")


class Refusal(Exception):
    """Why a request gets no answer: HTTP status, title, what happened and what to do, and the exceeded limit.

    Its kind, which metrics and log name, is that limit or the title if no other is given.
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        limit: str | None = None,
        retry_after_s: int = 0,
        headers: Mapping[str, str] | None = None,
        kind: str | None = None,
    ):
        super().__init__(detail)
        self.status, self.title, self.detail, self.limit = status, title, detail, limit
        self.kind = kind or limit or title.lower().replace(" ", "_")
        self.headers = {**(headers or {}), **({"Retry-After": str(retry_after_s)} if retry_after_s else {})}

    def response(self, scope: Scope, errors: list[dict[str, str]] | None = None) -> JSONResponse:
        """Return the refusal as RFC 9457 JSON, and leave its kind in the request's state for metrics and log."""
        scope.setdefault("state", {})["kind"] = self.kind
        body = ProblemDetails(
            title=self.title, status=self.status, detail=self.detail, limit=self.limit, errors=errors
        ).model_dump(exclude_none=True)
        return JSONResponse(body, self.status, self.headers, PROBLEM_JSON)


LIMIT_OF_FIELD = {
    "id": "id_chars",
    "query": "query_chars",
    "products": "products_per_request",
    "documents": "products_per_request",
    "texts": "products_per_request",
    "title": "title_chars",
    "brand": "title_chars",
    "description": "description_chars",
    "bullets": "description_chars",
    "attributes": "attributes",
}
# A document of `/v1/rerank` is a text or an object, and what `/rerank` takes has documents or texts: pydantic puts
# which of them it is into the field's path.
DOCUMENT_KINDS = ("string", "object", "documents_form", "texts_form")


def field_of(error: dict[str, Any]) -> str:
    """Name the field as `products.3.title`, or `body` where the body is not JSON at all."""
    path = () if error["type"] == "json_invalid" else error["loc"][1:]
    return ".".join(str(part) for part in path if part not in DOCUMENT_KINDS) or "body"


def limit_of(error: dict[str, Any]) -> str | None:
    """Return the setting that bounds a field which is too long, or None for any other mistake."""
    if error["type"] not in ("too_long", "string_too_long"):
        return None
    if "documents" in error["loc"] and error["loc"][-1] in ("string", "text", "title"):
        return "document_chars"
    if "texts" in error["loc"][:-1]:
        return "document_chars"
    if "attributes" in error["loc"][:-1]:
        return "description_chars"
    return LIMIT_OF_FIELD.get(str(error["loc"][-1]))


def answer_errors(api: FastAPI) -> None:
    """Make the API answer every error with problem details."""

    @api.exception_handler(Refusal)
    async def _refused(request: Request, error: Refusal) -> JSONResponse:
        return error.response(request.scope)

    @api.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = [{"field": field_of(e), "message": e["msg"]} for e in error.errors()]
        limit = next(filter(None, map(limit_of, error.errors())), None)
        detail = "; ".join(f"{e['field']}: {e['message']}" for e in errors[:5])
        return Refusal(422, "The request is not valid", detail, limit).response(request.scope, errors[:50])

    @api.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        said = str(error.detail)
        return Refusal(error.status_code, said, said, headers=error.headers).response(request.scope)

    # The cause goes to the log only, because it may hold what nobody outside should read.
    @api.exception_handler(Exception)
    async def _fault(request: Request, _: Exception) -> JSONResponse:
        return Refusal(500, "Internal error", "the service failed; its log says why").response(request.scope)
