"""The types of requests, with the limits in force, and of answers. Nothing here knows of a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model
from pydantic.json_schema import SkipJsonSchema

from mpcot.sources.clean_texts import clean_text
from serve.config import LimitSettings


def not_blank(value: str) -> str:
    """Return `value`, or raise a ValueError where it holds only white space and what cannot be seen."""
    if clean_text(value) is None:
        raise ValueError("must hold more than white space and invisible characters")
    return value


NotBlank = Annotated[str, AfterValidator(not_blank)]


class Verdict(BaseModel):
    """What one perspective thinks of the product."""

    verdict: str
    probabilities: dict[str, float]


class Explanation(BaseModel):
    """The training rationale of a perspective nearest to the student's latent vector, if possible with its verdict."""

    perspective: str
    rationale: str
    verdict: str | None
    pair_id: str
    query: str
    title: str
    label: str | None = Field(description="gold label of the training pair; null where it has none")
    similarity: float = Field(description="cosine, -1 to 1")


class Result(BaseModel):
    """One product's score."""

    id: str
    label: str
    score: float = Field(description="expected gain over the best label's gain, 0 to 1: sort by it")
    probabilities: dict[str, float]
    perspectives: dict[str, Verdict] = Field(description="empty where the student has no verdict heads")
    explanations: list[Explanation] | None = Field(None, description="only where the request asked to explain")
    tokens: SkipJsonSchema[int] = Field(0, exclude=True, description="of the pair; `/v1/rerank` answers their sum")


class ScoreResponse(BaseModel):
    """Results in the order of the products in the request."""

    model: str
    results: list[Result]


class PerspectiveView(BaseModel):
    """One perspective of `/v1/explain`: the student's verdict, and the most similar case of the teacher's."""

    verdict: str | None = Field(None, description="null where the student has no verdict heads")
    probabilities: dict[str, float] | None = None
    nearest: Explanation | None = Field(None, description="null where no training pair has a rationale from here")


class ExplainedResult(BaseModel):
    """One product's score with the reasons for it, by perspective."""

    id: str
    label: str
    score: float
    perspectives: dict[str, PerspectiveView]


class ExplainResponse(BaseModel):
    """Explained results in the order of the products in the request."""

    model: str
    results: list[ExplainedResult]


class LabelInfo(BaseModel):
    """A label that the model can give."""

    code: str
    name: str
    meaning: str
    gain: float
    relevant: bool


class ModelInfo(BaseModel):
    """A model that this service has loaded."""

    id: str
    object: str = "model"
    owned_by: str = "broadfast"
    labels: list[LabelInfo] = Field(description="the best first")
    perspectives: list[str]
    verdicts: bool = Field(description="whether results carry a verdict per perspective")
    explanations: bool = Field(description="whether the export carries an index of training rationales")
    fields: str = Field(description="the fields of a product that the model reads, joined by +")
    max_tokens: int
    arms: list[str] = Field([], description="arms of the running experiment that it answers for; `X-Arm` chooses one")


class ModelList(BaseModel):
    """Answer of `/v1/models`."""

    object: str = "list"
    data: list[ModelInfo]


class Examples(BaseModel):
    """Queries and product titles to try the service with, from the training pairs that the export carries."""

    queries: list[str]
    titles: list[str] = Field(description="titles that share the most words with the query come first")


class DriftBin(BaseModel):
    """One bin of a quantity, with the share of the dev pairs and of the served pairs in it."""

    name: str
    reference: float
    served: float


class QuantityDrift(BaseModel):
    """How far a quantity of the served pairs is from that of the dev split."""

    quantity: str = Field(description="score, label, length or unknown_tokens")
    psi: float | None = Field(description="population stability index; null while nothing was scored")
    chance: float | None = Field(description="what chance exceeds once in twenty times without any change")
    reading: str = Field(description="stable, look, changed or too few pairs")
    bins: list[DriftBin]


class ModelDrift(BaseModel):
    """One model: its dev split beside the latest pairs that this replica scored with it."""

    model: str
    pairs: int = Field(description="the latest pairs that were scored, 20,000 at most")
    reference_pairs: int = Field(description="pairs of the dev split")
    quantities: list[QuantityDrift]


class DriftReport(BaseModel):
    """Answer of `/v1/drift`: the models whose export carries a reference."""

    replica: str
    models: list[ModelDrift]


class Health(BaseModel):
    """Answer of `/healthz` and `/readyz`."""

    status: str
    model: str


class ProductInput(BaseModel):
    """A product as it was sent. `request_types` adds the limits in force."""

    model_config = ConfigDict(extra="forbid")
    id: str
    title: NotBlank
    brand: str | None = None
    description: str | None = None
    bullets: str | None = None
    attributes: dict[str, str] | None = None


class QueryInput(BaseModel):
    """A query with its products. `request_types` adds the limits in force."""

    model_config = ConfigDict(extra="forbid")
    query: NotBlank
    products: list[ProductInput]


class ScoreInput(QueryInput):
    """What `/v1/score` takes."""

    explain: bool = Field(False, description="add the nearest training rationale per perspective")


@dataclass(frozen=True)
class Asker:
    """Who asks: the id of the request and its headers, whose names may be in upper or lower case."""

    request_id: str
    headers: Mapping[str, str] = field(default_factory=dict)


def explained(response: ScoreResponse) -> ExplainResponse:
    """Return scores that carry explanations, sorted by perspective."""
    results = []
    for result in response.results:
        nearest = {found.perspective: found for found in result.explanations or []}
        views = {name: PerspectiveView(**verdict.model_dump()) for name, verdict in result.perspectives.items()}
        for name, found in nearest.items():
            views.setdefault(name, PerspectiveView()).nearest = found
        results.append(ExplainedResult(id=result.id, label=result.label, score=result.score, perspectives=views))
    return ExplainResponse(model=response.model, results=results)


def request_types(limits: LimitSettings) -> tuple[type[ScoreInput], type[QueryInput]]:
    """Return the types of score and explain requests with the limits in force, so that OpenAPI states them."""
    product = create_model(
        "Product",
        __base__=ProductInput,
        id=(str, Field(min_length=1, max_length=limits.id_chars)),
        title=(NotBlank, Field(min_length=1, max_length=limits.title_chars)),
        brand=(str | None, Field(None, max_length=limits.title_chars)),
        description=(str | None, Field(None, max_length=limits.description_chars)),
        bullets=(str | None, Field(None, max_length=limits.description_chars)),
        attributes=(
            dict[str, Annotated[str, Field(max_length=limits.description_chars)]] | None,
            Field(None, max_length=limits.attributes, description="names and values"),
        ),
    )
    bounded: dict[str, Any] = {
        "query": (NotBlank, Field(min_length=1, max_length=limits.query_chars)),
        "products": (list[product], Field(min_length=1, max_length=limits.products_per_request)),
    }
    return (
        create_model("ScoreRequest", __base__=ScoreInput, **bounded),
        create_model("ExplainRequest", __base__=QueryInput, **bounded),
    )
