"""The HTTP API over a service that echoes: limits, problem documents, OpenAPI. No Ray."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.testclient import TestClient

from serve.config import LimitSettings, ServeSettings
from serve.http.refusals import PROBLEM_JSON, Refusal
from serve.http.routes import make_api
from tests.helpers.echo_service import Echo

LIMITS = LimitSettings(
    products_per_request=3, query_chars=20, title_chars=30, description_chars=40, attributes=2, body_bytes=2000
)


@pytest.fixture(scope="module")
def service():
    return Echo()


@pytest.fixture(scope="module")
def client(service):
    return TestClient(make_api(service, ServeSettings(limits=LIMITS)))


def product(**more):
    return {"id": "a", "title": "red shoe", **more}


def test_results_come_in_the_order_of_the_products(client):
    answer = client.post("/v1/score", json={"query": "shoe", "products": [product(), product(id="b", brand="X")]})
    assert answer.status_code == 200
    assert [(r["id"], r["score"]) for r in answer.json()["results"]] == [("a", 1.0), ("b", 0.5)]
    assert answer.json()["model"] == "echo"


@pytest.mark.parametrize(
    ("body", "field", "limit"),
    [
        ({"query": "x" * 21, "products": [product()]}, "query", "query_chars"),
        ({"query": "x", "products": [product()] * 4}, "products", "products_per_request"),
        ({"query": "x", "products": [product(title="t" * 31)]}, "products.0.title", "title_chars"),
        ({"query": "x", "products": [product(id="i" * 257)]}, "products.0.id", "id_chars"),
        ({"query": "x", "products": [product(description="t" * 41)]}, "products.0.description", "description_chars"),
        ({"query": "x", "products": [product(bullets="t" * 41)]}, "products.0.bullets", "description_chars"),
        (
            {"query": "x", "products": [product(attributes=dict.fromkeys("abc", "x"))]},
            "products.0.attributes",
            "attributes",
        ),
        (
            {"query": "x", "products": [product(attributes={"a": "t" * 41})]},
            "products.0.attributes.a",
            "description_chars",
        ),
        ({"query": "x", "products": [product(attributes={"a": 1})]}, "products.0.attributes.a", None),
        ({"query": "x", "products": []}, "products", None),
        ({"query": "  ", "products": [product()]}, "query", None),
        ({"query": "x", "products": [product(), product(title=" \n")]}, "products.1.title", None),
        ({"query": "x", "products": [product(colour="red")]}, "products.0.colour", None),
        ({"products": [product()]}, "query", None),
        ([1, 2], "body", None),
    ],
)
def test_a_wrong_request_names_the_field_and_the_limit(client, body, field, limit):
    answer = client.post("/v1/score", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["status"], answer.headers["content-type"]) == (422, 422, PROBLEM_JSON)
    assert [error["field"] for error in problem["errors"]] == [field]
    assert problem.get("limit") == limit
    assert field in problem["detail"]


def test_what_is_not_json_is_the_body_s_fault(client):
    problem = client.post("/v1/score", content=b"{oops", headers={"Content-Type": "application/json"}).json()
    assert [error["field"] for error in problem["errors"]] == ["body"]


def in_pieces():
    yield from [b" " * 500] * 5


@pytest.mark.parametrize("content", [b" " * 2001, in_pieces()], ids=["announced", "chunked"])
def test_a_large_body_is_refused_announced_or_not(client, content):
    answer = client.post("/v1/score", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["limit"]) == (413, "body_bytes")
    assert answer.headers["content-type"] == PROBLEM_JSON


def test_a_body_that_never_comes_is_refused_in_time(service):
    """As on the replica that gets a request after one that took its body along: Ray Serve hands it out once."""
    api = make_api(service, ServeSettings(limits=LimitSettings(body_seconds=0.05)))
    path, headers = "/v1/score", [(b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": headers,
        "http_version": "1.1",
    }
    sent = []

    async def nothing():
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    asyncio.run(asyncio.wait_for(api(scope, nothing, send), 10))
    start, body = sent
    assert (start["status"], json.loads(body["body"])["limit"]) == (408, "body_seconds")


def test_a_refusal_of_the_service_carries_its_limit_and_retry_after(client):
    answer = client.post("/v1/score", json={"query": "full", "products": [product()]})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert answer.json() == {
        "type": "about:blank", "title": "Overloaded", "status": 503, "detail": "try again",
        "limit": "request_timeout_s",
    }  # fmt: skip


def test_a_full_queue_refuses_before_the_body_is_read(client, service, monkeypatch):
    monkeypatch.setattr(service, "refuses_all", Refusal(503, "Overloaded", "later", "request_timeout_s", 2))
    paths = {route.path for route in client.app.routes if "POST" in (getattr(route, "methods", None) or ())}
    assert {"/v1/score", "/rerank"} < paths
    for path in paths:
        answer = client.post(path, content=b"{never read", headers={"X-Request-ID": "abc"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert answer.json()["limit"] == "request_timeout_s" and answer.headers["content-type"] == PROBLEM_JSON
        counted = [line for line in client.get("/metrics").text.splitlines() if f'path="{path}"' in line]
        assert any(line.startswith("broadfast_requests_total") and '"503"' in line for line in counted)
    assert client.get("/v1/models").status_code == 200


def test_unknown_paths_and_methods_are_problems_too(client):
    for answer, status in ((client.get("/v2"), 404), (client.get("/v1/score"), 405)):
        assert (answer.status_code, answer.json()["status"], answer.headers["content-type"]) == (
            status,
            status,
            PROBLEM_JSON,
        )


def test_health_and_readiness(client, service, monkeypatch):
    assert client.get("/healthz").json() == {"status": "ok", "model": "echo"}
    assert client.get("/readyz").json()["status"] == "ready"
    monkeypatch.setattr(service, "is_ready", False)
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200


def test_openapi_states_the_limits_in_force(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["ScoreRequest"]["properties"]["products"]["maxItems"] == 3
    assert schemas["ScoreRequest"]["properties"]["query"]["maxLength"] == 20
    assert schemas["Product"]["properties"]["title"]["maxLength"] == 30
    assert client.get("/docs").status_code == 200


def test_explain_answers_by_perspective(client):
    answer = client.post("/v1/explain", json={"query": "shoe", "products": [product()]}).json()
    (result,) = answer["results"]
    assert (answer["model"], result["id"], result["label"], result["score"]) == ("echo", "a", "E", 1.0)
    assert result["perspectives"]["intent"] == {"verdict": "E", "probabilities": {"E": 1.0}, "nearest": None}
    rules = result["perspectives"]["rules"]
    assert (rules["verdict"], rules["nearest"]["rationale"]) == (None, "It fits.")


def test_explain_takes_no_field_of_score(client):
    problem = client.post("/v1/explain", json={"query": "x", "products": [product()], "explain": True}).json()
    assert [error["field"] for error in problem["errors"]] == ["explain"]


def test_the_model_is_listed(client, service):
    assert client.get("/v1/models").json() == {"object": "list", "data": [service.model_info.model_dump()]}


def test_examples_are_bounded_by_the_limits(client):
    assert client.get("/v1/examples?query=red").json() == {"queries": ["red"], "titles": ["3"]}
    for asked in ("count=4", "count=0", f"query={'x' * 21}"):
        assert client.get(f"/v1/examples?{asked}").status_code == 422


def test_a_fault_is_a_problem_that_tells_nothing(service):
    client = TestClient(make_api(service, ServeSettings(limits=LIMITS)), raise_server_exceptions=False)
    answer = client.post("/v1/score", json={"query": "broken", "products": [product()]})
    assert (answer.status_code, answer.headers["content-type"]) == (500, PROBLEM_JSON)
    assert "secret" not in answer.text


def test_the_page_and_its_files_are_served_under_a_strict_policy(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for file in ("page/page.css", "page/page.js"):
        assert file in page.text and client.get(f"/{file}").status_code == 200
    assert client.get("/page/../config.py").status_code == 404
