"""Rerank: what clients of other rerank services send is understood, and what they read is there."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from serve.config import LimitSettings, ServeSettings
from serve.http.refusals import PROBLEM_JSON
from serve.http.routes import make_api
from serve.http.schemas import Asker, Result, ScoreInput, ScoreResponse
from tests.helpers.echo_service import Echo

LIMITS = LimitSettings(products_per_request=4, query_chars=20, document_chars=30, description_chars=40)
# One request as each service's own client sends it, with fields that only that service has.
REQUESTS = {
    "cohere": {"model": "rerank-v3.5", "max_tokens_per_doc": 4096, "priority": 0},
    "jina": {"model": "jina-reranker-v3", "return_embeddings": False},
    "vllm": {"model": "BAAI/bge-reranker-v2-m3", "truncate_prompt_tokens": -1, "additional_data": None},
    "none": {},
}


class ByLength(Echo):
    """The longer the title, the more relevant; remembers what it was asked."""

    asked: ScoreInput

    async def score(self, request: ScoreInput, asker: Asker | None = None) -> ScoreResponse:
        self.asked = request
        scores = [len(product.title) / 100 for product in request.products]
        results = [
            Result(id=p.id, label="E", score=s, probabilities={}, perspectives={}, tokens=len(p.title))
            for p, s in zip(request.products, scores, strict=True)
        ]
        return ScoreResponse(model=self.model, results=results)


@pytest.fixture(scope="module")
def service():
    return ByLength()


@pytest.fixture(scope="module")
def client(service):
    return TestClient(make_api(service, ServeSettings(limits=LIMITS)))


@pytest.mark.parametrize("more", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_a_client_of_another_service_gets_a_ranking(client, path, more):
    asked = {"query": "shoe", "documents": ["mid", "longest", "a"], **more}
    answer = client.post(path, json=asked, headers={"X-Request-ID": "mine"})
    assert answer.status_code == 200
    assert answer.json() == {
        "id": "mine",
        "model": "echo",
        "results": [
            {"index": 1, "relevance_score": 0.07, "document": {"text": "longest"}},
            {"index": 0, "relevance_score": 0.03, "document": {"text": "mid"}},
            {"index": 2, "relevance_score": 0.01, "document": {"text": "a"}},
        ],
        "usage": {"prompt_tokens": 11, "total_tokens": 11},
    }


@pytest.mark.parametrize(("wanted", "come"), [(True, True), (None, True), (False, False)])
def test_documents_are_left_out_where_they_are_not_wanted(client, wanted, come):
    asked = {"query": "q", "documents": ["a"], "return_documents": wanted}
    (result,) = client.post("/v1/rerank", json=asked).json()["results"]
    assert ("document" in result) == come


@pytest.mark.parametrize(
    ("top_n", "indices"), [(1, [1]), (2, [1, 0]), (9, [1, 0, 2]), (0, [1, 0, 2]), (None, [1, 0, 2])]
)
def test_top_n(client, top_n, indices):
    answer = client.post("/v1/rerank", json={"query": "q", "documents": ["bb", "ccc", "bb"], "top_n": top_n}).json()
    assert [result["index"] for result in answer["results"]] == indices, "equal scores keep the request's order"


def test_documents_may_be_objects_and_come_back_as_they_were_sent(client, service):
    documents = [
        "plain",
        {"text": "a text", "sku": 7},
        {"title": "a title", "brand": "X"},
        {"title": "both", "text": "more"},
    ]
    asked = {"query": "q", "documents": documents, "return_documents": True}
    results = client.post("/v1/rerank", json=asked).json()["results"]
    assert {result["index"]: result["document"] for result in results} == {
        0: {"text": "plain"}, 1: documents[1], 2: documents[2], 3: documents[3],
    }  # fmt: skip
    assert [(p.title, p.brand, p.description) for p in service.asked.products] == [
        ("plain", None, None),
        ("a text", None, None),
        ("a title", "X", None),
        ("both", None, "more"),
    ]


def test_an_id_is_made_where_none_is_sent(client):
    ids = {client.post("/v1/rerank", json={"query": "q", "documents": ["a"]}).json()["id"] for _ in range(2)}
    assert len(ids) == 2 and all(ids)


@pytest.mark.parametrize(
    ("body", "field", "limit"),
    [
        ({"query": "x" * 21, "documents": ["a"]}, "query", "query_chars"),
        ({"query": "x", "documents": ["a"] * 5}, "documents", "products_per_request"),
        ({"query": "x", "documents": ["a", "d" * 31]}, "documents.1", "document_chars"),
        ({"query": "x", "documents": [{"text": "d" * 31}]}, "documents.0.text", "document_chars"),
        ({"query": "x", "documents": [{"title": "d" * 31}]}, "documents.0.title", "document_chars"),
        ({"query": "x", "documents": [{"text": "d", "brand": "b" * 4001}]}, "documents.0.brand", "title_chars"),
        ({"query": "x", "documents": []}, "documents", None),
        ({"query": "x", "documents": [" \n"]}, "documents.0", None),
        ({"query": "x", "documents": [{"text": " "}]}, "documents.0", None),
        ({"query": "x", "documents": [{"url": "a.png"}]}, "documents.0", None),
        ({"query": "x", "documents": [3]}, "documents.0", None),
        ({"query": "x", "documents": ["a"], "top_n": -1}, "top_n", None),
        ({"query": " ", "documents": ["a"]}, "query", None),
        ({"documents": ["a"]}, "query", None),
    ],
)  # fmt: skip
def test_a_wrong_request_names_the_field_and_the_limit(client, body, field, limit):
    answer = client.post("/v1/rerank", json=body)
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM_JSON)
    assert [error["field"] for error in problem["errors"]] == [field]
    assert problem.get("limit") == limit


@pytest.mark.parametrize(
    "document",
    [
        '{"text": "b", "x": "\\ud800"}',
        '{"text": "b", "x": [{"y": "\\ud800"}]}',
        '{"text": "b", "x": ' + 300 * "[" + "1" + 300 * "]" + "}",
        '{"text": "b", "x": ' + 100 * '{"y": ' + "1" + 100 * "}" + "}",
    ],
    ids=["half a pair", "half a pair inside", "deep lists", "deep objects"],
)
def test_what_cannot_be_given_back_is_refused(client, document):
    body = f'{{"query": "a", "documents": [{document}], "return_documents": true}}'
    answer = client.post("/v1/rerank", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and answer.headers["content-type"] == PROBLEM_JSON
