"""The HTTP API over anything that scores, so that tests need no cluster. Knows nothing of Ray."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.staticfiles import StaticFiles

from serve.config import LimitSettings, ServeSettings
from serve.http.bearer_tokens import BearerTokens
from serve.http.metrics import Metrics
from serve.http.middleware import Admission, BodyLimit, Observed
from serve.http.refusals import PROBLEM, Problem, ProblemDetails, add_problems
from serve.http.rerank import RerankInput, RerankResponse, ranked, rerank_type, to_score
from serve.http.schemas import (
    Asker,
    Examples,
    ExplainResponse,
    Health,
    ModelInfo,
    ModelList,
    QueryInput,
    ScoreInput,
    ScoreResponse,
    explained,
    request_types,
)

PAGE = Path(__file__).parent / "playground"
# The page runs its own script and style only, and nothing that a query or a title might bring.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {
        "description": about,
        "content": {PROBLEM: {"schema": {"$ref": f"#/components/schemas/{ProblemDetails.__name__}"}}},
    }
    for code, about in {
        400: "Not HTTP as it should be",
        401: "No token, or not one that is known",
        413: "The body is too large",
        422: "A field is wrong or over its limit",
        500: "The service failed; its log says why",
        503: "Too much to do: try again after `Retry-After`",
    }.items()
}


class Service(Protocol):
    """What the API needs of whoever scores."""

    metrics: Metrics

    @property
    def model(self) -> str:
        """The name of the model."""

    @property
    def models(self) -> list[ModelInfo]:
        """What can answer: the model, then those of an experiment's other arms."""

    async def score(self, request: ScoreInput, asker: Asker | None = None) -> ScoreResponse:
        """Score, or raise `Problem`; where there is an experiment, by the arm of the asker's unit."""

    def examples(self, query: str, count: int) -> Examples:
        """Something to try the service with; empty where the export carries nothing."""

    def ready(self) -> bool:
        """Whether a request would be taken now."""

    def full(self) -> Problem | None:
        """The refusal of a request that came now, whatever it asks; None where it might be taken."""

    async def exposition(self) -> str:
        """The figures of all replicas as Prometheus reads them."""


def make_api(
    service: Service, settings: ServeSettings, digests: Sequence[bytes] = (), log: logging.Logger | None = None
) -> FastAPI:
    """Return the HTTP API over `service`, with its page at `/`.

    Args:
        digests: SHA-256 of the tokens that are let in; with none, everybody is.
        log: where one line per request goes.
    """
    limits = settings.limits
    api = FastAPI(title="broadfast", version="1", description="Relevance of products for a query.", redoc_url=None)
    # The last one added sees a request first.
    api.add_middleware(BodyLimit, limits=limits)
    api.add_middleware(Admission, full=service.full)
    if digests:
        api.add_middleware(BearerTokens, digests=digests)
    api.add_middleware(Observed, metrics=service.metrics, log=log, log_queries=settings.log_queries)
    add_problems(api)
    # The middleware has let the request in already; this only tells OpenAPI, so that /docs asks for the token.
    locked: dict[str, Any] = {}
    if digests:
        locked = {"dependencies": [Depends(HTTPBearer(auto_error=False))], "responses": {401: REFUSALS[401]}}
    for router in (scoring(service, limits), reranking(service, limits), models(service, limits), figures(service)):
        api.include_router(router, **locked)
    for router in (health(service), page()):
        api.include_router(router)
    api.mount("/page", StaticFiles(directory=PAGE), name="page")
    describe_refusals(api)
    return api


def describe_refusals(api: FastAPI) -> None:
    """Add the body of refusals to the OpenAPI document, which FastAPI itself would give the media type of answers."""
    plain = api.openapi

    def described() -> dict[str, Any]:
        schema = plain()
        schema["components"]["schemas"][ProblemDetails.__name__] = ProblemDetails.model_json_schema()
        return schema

    api.openapi = described  # type: ignore[method-assign]


async def scored(service: Service, request: ScoreInput, http: Request) -> ScoreResponse:
    """Score, and leave in the request's state what the log says of it."""
    http.state.pairs, http.state.query = len(request.products), request.query
    return await service.score(request, Asker(http.state.request_id, http.headers))


def scoring(service: Service, limits: LimitSettings) -> APIRouter:
    """`/v1/score` and `/v1/explain`."""
    router = APIRouter(responses=REFUSALS)
    score_type, explain_type = request_types(limits)

    async def score(request: ScoreInput, http: Request) -> ScoreResponse:
        return await scored(service, request, http)

    async def explain(request: QueryInput, http: Request) -> ExplainResponse:
        asked = ScoreInput(query=request.query, products=request.products, explain=True)
        return explained(await scored(service, asked, http))

    # FastAPI reads annotations; the types with the limits in force only exist here.
    score.__annotations__ = {"request": score_type, "http": Request, "return": ScoreResponse}
    explain.__annotations__ = {"request": explain_type, "http": Request, "return": ExplainResponse}
    router.post("/v1/score", summary="Score products for a query")(score)
    router.post("/v1/explain", summary="Verdict and nearest training rationale per perspective")(explain)
    return router


def reranking(service: Service, limits: LimitSettings) -> APIRouter:
    """`/v1/rerank`, also where clients of other services look for it: `/rerank` and `/v2/rerank`."""
    router = APIRouter(responses=REFUSALS)

    async def rerank(request: RerankInput, http: Request) -> RerankResponse:
        return ranked(request, await scored(service, to_score(request), http), http.state.request_id)

    rerank.__annotations__ = {"request": rerank_type(limits), "http": Request, "return": RerankResponse}
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        router.post(
            path,
            summary="Rank documents for a query",
            response_model_exclude_none=True,
            include_in_schema=path == "/v1/rerank",
        )(rerank)
    return router


def models(service: Service, limits: LimitSettings) -> APIRouter:
    """`/v1/models` and `/v1/examples`."""
    router = APIRouter()

    @router.get("/v1/models", summary="Each model, its labels and perspectives")
    async def listed() -> ModelList:
        return ModelList(data=service.models)

    # Not async: it reads through the whole index, which the event loop should not wait for.
    def examples(query: str = "", count: int = min(20, limits.products_per_request)) -> Examples:
        return service.examples(query, count)

    examples.__annotations__ = {
        "query": Annotated[str, Query(max_length=limits.query_chars)],
        "count": Annotated[int, Query(ge=1, le=limits.products_per_request)],
        "return": Examples,
    }
    about = "Queries and titles to try the service with"
    router.get("/v1/examples", responses={422: REFUSALS[422]}, summary=about)(examples)
    return router


def figures(service: Service) -> APIRouter:
    """`/metrics`."""
    router = APIRouter()

    @router.get("/metrics", summary="Figures of all replicas in Prometheus form", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(await service.exposition(), media_type=CONTENT_TYPE_LATEST)

    return router


def health(service: Service) -> APIRouter:
    """`/healthz` and `/readyz`."""
    router = APIRouter()

    @router.get("/healthz", summary="The process is alive")
    async def healthz() -> Health:
        return Health(status="ok", model=service.model)

    @router.get("/readyz", responses={503: REFUSALS[503]}, summary="A request would be taken now")
    async def readyz() -> Health:
        if not service.ready():
            raise Problem(503, "Not ready", "the queue is full or the model is not loaded", retry_after_s=1)
        return Health(status="ready", model=service.model)

    return router


def page() -> APIRouter:
    """The page at `/`; its style and script are files beside it."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def index() -> Response:
        return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)

    return router
