"""`/v1/rerank` takes the fields that the rerank endpoints of Cohere, Jina and vLLM share, so their clients work here.

Cohere: https://docs.cohere.com/reference/rerank, Jina: https://jina.ai/reranker, vLLM: its OpenAI-compatible server.
`/rerank` also takes the form of text-embeddings-inference (TEI), and `/infinity/rerank` answers as Infinity does.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, create_model, model_validator

from mpcot.sources.clean_texts import clean_text
from serve.config import LimitSettings
from serve.http.schemas import NotBlank, ProductInput, Result, ScoreInput, ScoreResponse

MAX_DEPTH = 64  # of members that are only returned; pydantic itself gives up at about 250


def _depth(value: Any) -> int:
    """Return how deep lists and objects are nested; a plain value is 0 deep."""
    depth, layer = 0, [value]
    while layer := [one for one in layer if isinstance(one, dict | list) and one]:
        depth += 1
        layer = [inside for one in layer for inside in (one.values() if isinstance(one, dict) else one)]
    return depth


class DocumentInput(BaseModel):
    """A document as an object with a `text`, or a product with a `title`; other members are returned but not read."""

    model_config = ConfigDict(extra="allow")
    text: str | None = None
    title: str | None = None
    brand: str | None = None
    description: str | None = None

    @model_validator(mode="after")
    def _check(self) -> DocumentInput:
        if clean_text(self.title) is None and clean_text(self.text) is None:
            raise ValueError("needs a text or a title that is not blank")
        if _depth(self.model_extra) > MAX_DEPTH:
            raise ValueError(f"has members nested deeper than {MAX_DEPTH}")
        try:  # pydantic checks the text of fields, but not that of other members
            json.dumps(self.model_extra, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("holds half of a surrogate pair, which is no text") from error
        return self


class RerankInput(BaseModel):
    """A query with its documents; fields that only other services have are ignored. `rerank_type` adds the limits."""

    model_config = ConfigDict(extra="ignore")
    model: str | None = Field(None, description="any name is accepted; the answer says which model ranked")
    query: NotBlank
    documents: list[Any]
    top_n: int | None = Field(None, ge=0, description="how many of the best to return; null or 0 returns all")
    return_documents: bool | None = Field(None, description="false leaves the documents out of the answer")


class TeiInput(BaseModel):
    """What TEI's `/rerank` takes; how it would cut texts is ignored."""

    model_config = ConfigDict(extra="ignore")
    query: NotBlank
    texts: list[Any]
    raw_scores: bool | None = Field(None, description="ignored: scores are always 0 to 1")
    return_text: bool | None = Field(None, description="true adds each text to the answer")


class TeiRank(BaseModel):
    """One text's place in TEI's answer, which is a list of these."""

    index: int
    score: float
    text: str | None = None


class Usage(BaseModel):
    """What the request came to; both are the tokens that the student read."""

    prompt_tokens: int
    total_tokens: int


class RerankResult(BaseModel):
    """One document's place in the ranking."""

    index: int = Field(description="position in the request's documents")
    relevance_score: float = Field(description="the score of /v1/score, 0 to 1")
    document: dict[str, Any] | None = Field(None, description="null where the request asked for none")


class RerankResponse(BaseModel):
    """The results, with the most relevant first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: Usage


class InfinityResult(RerankResult):
    """A place in the ranking with the document as a text."""

    document: str | None = None  # type: ignore[assignment]


class InfinityResponse(RerankResponse):
    """The results as Infinity gives them."""

    results: list[InfinityResult]  # type: ignore[assignment]


def rerank_type(limits: LimitSettings) -> type[RerankInput]:
    """Return the type of a rerank request with the limits in force, so that OpenAPI states them."""
    text: Any = (str | None, Field(None, max_length=limits.document_chars))
    document = create_model(
        "Document",
        __base__=DocumentInput,
        text=text,
        title=text,
        brand=(str | None, Field(None, max_length=limits.title_chars)),
        description=(str | None, Field(None, max_length=limits.description_chars)),
    )
    plain = Annotated[NotBlank, Field(min_length=1, max_length=limits.document_chars, pattern=r"\S")]
    either = Annotated[Annotated[plain, Tag("string")] | Annotated[document, Tag("object")], Discriminator(_kind)]
    return create_model(
        "RerankRequest",
        __base__=RerankInput,
        query=(NotBlank, Field(min_length=1, max_length=limits.query_chars)),
        documents=(list[either], Field(min_length=1, max_length=limits.products_per_request)),
    )


def tei_type(limits: LimitSettings) -> type[TeiInput]:
    """Return the type of a request in TEI's form with the limits in force."""
    text = Annotated[NotBlank, Field(min_length=1, max_length=limits.document_chars)]
    return create_model(
        "TeiRequest",
        __base__=TeiInput,
        query=(NotBlank, Field(min_length=1, max_length=limits.query_chars)),
        texts=(list[text], Field(min_length=1, max_length=limits.products_per_request)),
    )


def either_type(limits: LimitSettings) -> Any:
    """Return the type of what `/rerank` takes: a request with `texts` has TEI's form."""
    plain = Annotated[rerank_type(limits), Tag("documents_form")]  # type: ignore[valid-type]
    tei = Annotated[tei_type(limits), Tag("texts_form")]  # type: ignore[valid-type]
    return Annotated[plain | tei, Discriminator(_form)]


def _form(request: Any) -> str:
    texts = "texts" in request if isinstance(request, dict) else isinstance(request, TeiInput)
    return "texts_form" if texts else "documents_form"


def _kind(document: Any) -> str:
    return "string" if isinstance(document, str) else "object"


def to_score(request: RerankInput | TeiInput) -> ScoreInput:
    """Return the request as `/v1/score` takes it; a product's id is its position."""
    given = request.texts if isinstance(request, TeiInput) else request.documents
    products = [_product(n, document) for n, document in enumerate(given)]
    return ScoreInput(query=request.query, products=products)


def _product(n: int, document: str | DocumentInput) -> ProductInput:
    if isinstance(document, str):
        return ProductInput(id=str(n), title=document)
    title, text = clean_text(document.title), clean_text(document.text)
    description = document.description or (text if title else None)
    return ProductInput(id=str(n), title=title or text or "", brand=document.brand, description=description)


def ranked(request: RerankInput, response: ScoreResponse, request_id: str) -> RerankResponse:
    """Return the scores as a ranking, in which equal scores keep the order of the request."""
    order = _order(response)
    shown = order[: request.top_n or None]
    documents = {} if request.return_documents is False else {n: _returned(request.documents[n]) for n, _ in shown}
    results = [RerankResult(index=n, relevance_score=found.score, document=documents.get(n)) for n, found in shown]
    tokens = sum(found.tokens for found in response.results)
    usage = Usage(prompt_tokens=tokens, total_tokens=tokens)
    return RerankResponse(id=request_id, model=response.model, results=results, usage=usage)


def as_infinity(response: RerankResponse) -> InfinityResponse:
    """Return the ranking with each document as a text: what it was sent as, or its title and text."""
    results = [
        InfinityResult(index=r.index, relevance_score=r.relevance_score, document=_text(r.document))
        for r in response.results
    ]
    return InfinityResponse(id=response.id, model=response.model, results=results, usage=response.usage)


def ranked_texts(request: TeiInput, response: ScoreResponse) -> list[TeiRank]:
    """Return the ranking in TEI's form."""
    texts = request.texts if request.return_text else [None] * len(request.texts)
    return [TeiRank(index=n, score=found.score, text=texts[n]) for n, found in _order(response)]


def _order(response: ScoreResponse) -> list[tuple[int, Result]]:
    return sorted(enumerate(response.results), key=lambda found: -found[1].score)


def _text(document: dict[str, Any] | None) -> str | None:
    return None if document is None else " ".join(filter(None, (document.get("title"), document.get("text"))))


def _returned(document: str | DocumentInput) -> dict[str, Any]:
    return {"text": document} if isinstance(document, str) else document.model_dump(exclude_unset=True)
