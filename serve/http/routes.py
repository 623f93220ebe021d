"""The HTTP API over a service that scores. Nothing here knows of Ray, so that tests need no cluster."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from serve.config import LimitSettings, ServeSettings
from serve.experiments.config import ARM_HEADER
from serve.http.bearer_tokens import NO_TOKENS, BearerTokens, Tokens
from serve.http.bodies import Bodies
from serve.http.docs_page import HEADERS, docs_page
from serve.http.middleware import Admission, HeadAsGet, RequestLog
from serve.http.refusals import PROBLEM_JSON, ProblemDetails, Refusal, answer_errors
from serve.http.rerank import (
    InfinityResponse,
    RerankInput,
    RerankResponse,
    TeiInput,
    TeiRank,
    as_infinity,
    either_type,
    ranked,
    ranked_texts,
    rerank_type,
    to_score,
)
from serve.http.schemas import (
    Asker,
    DriftReport,
    Examples,
    ExplainResponse,
    Health,
    ModelList,
    QueryInput,
    ScoreInput,
    ScoreResponse,
    explained,
    request_types,
)

if TYPE_CHECKING:
    from serve.replica.model_swap import SwappingService

PAGE = Path(__file__).parent / "playground"
# The page runs only its own script and style, and nothing that a query or a title might contain.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {
        "description": about,
        "content": {PROBLEM_JSON: {"schema": {"$ref": f"#/components/schemas/{ProblemDetails.__name__}"}}},
    }
    for code, about in {
        400: "The request is not valid HTTP, or its body cannot be unpacked",
        401: "The token is missing or unknown",
        408: "The body took too long to arrive",
        413: "The body is too large",
        415: "The body is not JSON, or packed by something else than gzip",
        422: "A field is wrong or exceeds its limit",
        500: "The service failed; its log says why",
        503: "The service is overloaded: try again after `Retry-After` seconds",
    }.items()
}


def make_api(
    service: SwappingService,
    settings: ServeSettings,
    tokens: Tokens = NO_TOKENS,
    log: logging.Logger | None = None,
) -> FastAPI:
    """Return the HTTP API over `service`, with its page at `/`.

    Args:
        tokens: digests of the tokens that are accepted; without any, no token is needed.
        log: gets one line per request.
    """
    limits = settings.limits
    api = FastAPI(
        title="broadfast", version="1", description="Relevance of products for a query.", redoc_url=None, docs_url=None
    )
    # The middleware that is added last sees a request first.
    api.add_middleware(Bodies, limits=limits)
    api.add_middleware(Admission, hasty=service.hasty)
    if tokens.asking or tokens.scraping:
        api.add_middleware(BearerTokens, tokens=tokens)
    api.add_middleware(HeadAsGet)
    if settings.cors_origins:
        api.add_middleware(CORSMiddleware, **cors(settings))
    api.add_middleware(RequestLog, metrics=service.metrics, log=log, log_queries=settings.log_queries)
    answer_errors(api)
    # The middleware has checked the token already; this only tells OpenAPI, so that /docs asks for it.
    locked: dict[str, Any] = {}
    if tokens.asking:
        locked = {"dependencies": [Depends(HTTPBearer(auto_error=False))], "responses": {401: REFUSALS[401]}}
    for router in (scoring(service, limits), information(service, limits)):
        api.include_router(router, **locked)
    api.include_router(open_to_all(service))
    api.mount("/page", StaticFiles(directory=PAGE), name="page")
    describe_refusals(api)

    @api.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(api.openapi()), headers=HEADERS)

    return api


def cors(settings: ServeSettings) -> dict[str, Any]:
    """Return what pages of the origins in the settings may send and read."""
    sent = ["Authorization", "Content-Type", "Content-Encoding", "X-Request-ID"]
    sent += [settings.experiment.unit_header, ARM_HEADER] if settings.experiment else []
    return {
        "allow_origins": settings.cors_origins,
        "allow_methods": ["GET", "POST"],
        "allow_headers": sent,
        "expose_headers": ["X-Request-ID", "Retry-After", "Server-Timing"],
    }


def describe_refusals(api: FastAPI) -> None:
    """Add the body of refusals to the OpenAPI document; FastAPI itself would give it the media type of answers."""
    plain = api.openapi

    def described() -> dict[str, Any]:
        schema = plain()
        schema["components"]["schemas"][ProblemDetails.__name__] = ProblemDetails.model_json_schema()
        return schema

    api.openapi = described  # type: ignore[method-assign]


async def scored(service: SwappingService, request: ScoreInput, http: Request) -> ScoreResponse:
    """Score the request, and leave in its state what goes into the log."""
    http.state.pairs, http.state.query = len(request.products), request.query
    return await service.score(request, Asker(http.state.request_id, http.headers))


def scoring(service: SwappingService, limits: LimitSettings) -> APIRouter:
    """Return `/v1/score`, `/v1/explain` and `/v1/rerank`, the last also at the paths and in the forms of others."""
    router = APIRouter(responses=REFUSALS)
    score_type, explain_type = request_types(limits)

    async def score(request: ScoreInput, http: Request) -> ScoreResponse:
        return await scored(service, request, http)

    async def explain(request: QueryInput, http: Request) -> ExplainResponse:
        asked = ScoreInput(query=request.query, products=request.products, explain=True)
        return explained(await scored(service, asked, http))

    async def rerank(request: RerankInput, http: Request) -> RerankResponse:
        return ranked(request, await scored(service, to_score(request), http), http.state.request_id)

    async def rerank_either(request: RerankInput | TeiInput, http: Request) -> RerankResponse | list[TeiRank]:
        if isinstance(request, TeiInput):
            return ranked_texts(request, await scored(service, to_score(request), http))
        return await rerank(request, http)

    async def infinity(request: RerankInput, http: Request) -> InfinityResponse:
        return as_infinity(await rerank(request, http))

    # FastAPI reads annotations, and the types with the limits in force exist only here.
    score.__annotations__ = {"request": score_type, "http": Request, "return": ScoreResponse}
    explain.__annotations__ = {"request": explain_type, "http": Request, "return": ExplainResponse}
    rerank.__annotations__ = {"request": rerank_type(limits), "http": Request, "return": RerankResponse}
    infinity.__annotations__ = {"request": rerank_type(limits), "http": Request, "return": InfinityResponse}
    both = RerankResponse | list[TeiRank]
    rerank_either.__annotations__ = {"request": either_type(limits), "http": Request, "return": both}
    router.post("/v1/score", summary="Score products for a query")(score)
    router.post("/v1/explain", summary="Verdict and nearest training rationale per perspective")(explain)
    about: dict[str, Any] = {"summary": "Rank documents for a query", "response_model_exclude_none": True}
    router.post("/v1/rerank", **about)(rerank)
    for path, answer in (("/v2/rerank", rerank), ("/rerank", rerank_either), ("/infinity/rerank", infinity)):
        router.post(path, **about, include_in_schema=False)(answer)
    return router


def information(service: SwappingService, limits: LimitSettings) -> APIRouter:
    """Return `/v1/models`, `/v1/examples`, `/v1/drift` and `/metrics`."""
    router = APIRouter()

    @router.get("/v1/models", summary="Each model, its labels and perspectives")
    async def listed() -> ModelList:
        return ModelList(data=service.models)

    # This is not async because it reads the whole index, and the event loop should not wait for that.
    def examples(query: str = "", count: int = min(10, limits.products_per_request)) -> Examples:
        return service.examples(query, count)

    examples.__annotations__ = {
        "query": Annotated[str, Query(max_length=limits.query_chars)],
        "count": Annotated[int, Query(ge=1, le=limits.products_per_request)],
        "return": Examples,
    }
    about = "Queries and titles to try the service with"
    router.get("/v1/examples", responses={422: REFUSALS[422]}, summary=about)(examples)

    @router.get("/v1/drift", summary="The dev split beside what this replica has scored lately")
    async def drift() -> DriftReport:
        return service.metrics.drifts.report()

    about = "Figures of the replica that answers, in Prometheus form"

    @router.get("/metrics", summary=about, response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router


def open_to_all(service: SwappingService) -> APIRouter:
    """Return what needs no token: `/healthz`, `/readyz`, and the pages, whose styles and scripts are beside them."""
    router = APIRouter()

    @router.get("/healthz", summary="The process is alive")
    async def healthz() -> Health:
        return Health(status="ok", model=service.models[0].id)

    @router.get("/readyz", responses={503: REFUSALS[503]}, summary="The model is loaded and right")
    async def readyz() -> Health:
        if not service.ready():
            raise Refusal(503, "Not ready", "the model is not loaded, or it fails", retry_after_s=1)
        return Health(status="ready", model=service.models[0].id)

    @router.get("/", include_in_schema=False)
    async def index() -> Response:
        return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)

    @router.get("/drift", include_in_schema=False)
    async def drift_page() -> Response:
        return FileResponse(PAGE / "drift.html", headers=PAGE_HEADERS)

    return router
