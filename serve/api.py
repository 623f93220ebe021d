"""What the service takes and answers: typed requests with limits, answers, problem details (RFC 9457).

Nothing here knows of Ray. `make_api` wraps anything that scores, so that tests need no cluster.
"""

from __future__ import annotations

from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.config import LimitSettings

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


class Verdict(BaseModel):
    """What one perspective thinks of the product."""

    verdict: str
    probabilities: dict[str, float]


class Explanation(BaseModel):
    """The training rationale of one perspective that lies nearest to the student's latent vector."""

    perspective: str
    rationale: str
    verdict: str | None
    pair_id: str
    query: str
    title: str
    label: str | None = Field(description="gold label of the training pair; null if it had none")
    similarity: float = Field(description="cosine, -1 to 1")


class Result(BaseModel):
    """One product's score."""

    id: str
    label: str
    score: float = Field(description="expected gain over the best label's gain, 0 to 1: sort by it")
    probabilities: dict[str, float]
    perspectives: dict[str, Verdict] = Field(description="empty where the student has no verdict heads")
    explanations: list[Explanation] | None = Field(None, description="only where the request asked to explain")


class ScoreResponse(BaseModel):
    """Results in the order of the request's products."""

    model: str
    results: list[Result]


class ProductInput(BaseModel):
    """A product as sent. Subclassed with the limits in force by `request_types`."""

    model_config = ConfigDict(extra="forbid")
    id: str
    title: str
    brand: str | None = None
    description: str | None = None

    @field_validator("title")
    @classmethod
    def _title(cls, value: str) -> str:
        return not_blank(value)


class ScoreInput(BaseModel):
    """A query with its products. Subclassed with the limits in force by `request_types`."""

    model_config = ConfigDict(extra="forbid")
    query: str
    products: list[ProductInput]
    explain: bool = Field(False, description="add the nearest training rationale per perspective")

    @field_validator("query")
    @classmethod
    def _query(cls, value: str) -> str:
        return not_blank(value)


class Health(BaseModel):
    """Answer of `/healthz` and `/readyz`."""

    status: str
    model: str


class Service(Protocol):
    """What the API needs of whoever scores."""

    model: str

    async def score(self, request: ScoreInput) -> ScoreResponse:
        """Score, or raise `Problem`."""

    def ready(self) -> bool:
        """Whether a request would be taken now."""


def not_blank(value: str) -> str:
    """Return `value`; a text of white space only is a ValueError."""
    if not value.strip():
        raise ValueError("must hold more than white space")
    return value


def request_types(limits: LimitSettings) -> type[ScoreInput]:
    """Return the request type with the limits in force, so that OpenAPI states them."""
    product = create_model(
        "Product",
        __base__=ProductInput,
        id=(str, Field(min_length=1, max_length=256)),
        title=(str, Field(min_length=1, max_length=limits.title_chars)),
        brand=(str | None, Field(None, max_length=limits.title_chars)),
        description=(str | None, Field(None, max_length=limits.description_chars)),
    )
    return create_model(
        "ScoreRequest",
        __base__=ScoreInput,
        query=(str, Field(min_length=1, max_length=limits.query_chars)),
        products=(list[product], Field(min_length=1, max_length=limits.products_per_request)),
    )


LIMIT_OF_FIELD = {
    "query": "query_chars",
    "products": "products_per_request",
    "title": "title_chars",
    "brand": "title_chars",
    "description": "description_chars",
}


def field_of(error: dict[str, Any]) -> str:
    """Name the field as `products.3.title`; what is not JSON at all is the body's fault."""
    path = () if error["type"] == "json_invalid" else error["loc"][1:]
    return ".".join(str(part) for part in path) or "body"


def invalid(error: RequestValidationError) -> JSONResponse:
    """Turn pydantic's findings into one 422 that names every field, and the limit where one was hit."""
    found = error.errors()
    errors = [{"field": field_of(e), "message": e["msg"]} for e in found]
    long = [str(e["loc"][-1]) for e in found if e["type"] in ("too_long", "string_too_long")]
    limit = LIMIT_OF_FIELD.get(long[0]) if long else None
    detail = "; ".join(f"{e['field']}: {e['message']}" for e in errors[:5])
    return Problem(422, "The request is not valid", detail, limit).response(errors=errors[:50])


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


def make_api(service: Service, limits: LimitSettings) -> FastAPI:
    """Return the HTTP API over `service`: `/v1/score`, `/healthz`, `/readyz`, `/docs`, `/openapi.json`."""
    api = FastAPI(title="broadfast", version="1", description="Relevance of products for a query.")
    api.add_middleware(BodyLimit, limit=limits.body_bytes)
    add_problems(api)
    request_type = request_types(limits)
    refusals: dict[int | str, dict[str, Any]] = {
        code: {"model": ProblemDetails, "content": {PROBLEM: {}}} for code in (413, 422, 503)
    }

    async def score(request: ScoreInput) -> ScoreResponse:
        return await service.score(request)

    # FastAPI reads annotations; the type with the limits in force only exists here.
    score.__annotations__ = {"request": request_type, "return": ScoreResponse}
    api.post("/v1/score", responses=refusals, summary="Score products for a query")(score)

    @api.get("/healthz", summary="The process is alive")
    async def healthz() -> Health:
        return Health(status="ok", model=service.model)

    @api.get("/readyz", responses={503: refusals[503]}, summary="A request would be taken now")
    async def readyz() -> Health:
        if not service.ready():
            raise Problem(503, "Not ready", "the queue is full or the model is not loaded", retry_after_s=1)
        return Health(status="ready", model=service.model)

    return api


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
