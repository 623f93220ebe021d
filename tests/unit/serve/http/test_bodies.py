"""What a request may look like: its type and encoding, HEAD and CORS, and the length of its id."""

from __future__ import annotations

import gzip
import json
import logging
import re

import pytest
from starlette.testclient import TestClient

from serve.config import AuthSettings, LimitSettings, ServeSettings
from serve.experiments.config import Arm, ExperimentSettings
from serve.http.bearer_tokens import read_tokens
from serve.http.middleware import ID_CHARS
from serve.http.refusals import PROBLEM_JSON
from serve.http.routes import make_api
from tests.helpers.echo_service import Echo

BODY = json.dumps({"query": "shoe", "products": [{"id": "a", "title": "red shoe"}]}).encode()
LIMITS = LimitSettings(body_bytes=2000)
PATHS = [
    "/",
    "/healthz",
    "/readyz",
    "/v1/models",
    "/v1/examples",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/page/page.js",
]


@pytest.fixture(scope="module")
def client():
    return TestClient(make_api(Echo(), ServeSettings(limits=LIMITS)))


def post(client, content=BODY, **headers):
    sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post("/v1/score", content=content, headers={k: v for k, v in sent.items() if v})


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/ld+json"])
def test_json_is_read_under_each_of_its_names(client, kind):
    assert post(client, Content_Type=kind).status_code == 200


@pytest.mark.parametrize(("kind", "named"), [("text/plain", "'text/plain'"), ("", "no Content-Type")])
def test_a_wrong_or_missing_type_is_named(client, kind, named):
    answer = post(client, Content_Type=kind)
    assert (answer.status_code, answer.headers["accept"]) == (415, "application/json")
    assert named in answer.json()["detail"] and answer.headers["content-type"] == PROBLEM_JSON


def test_a_packed_body_is_unpacked(client):
    assert post(client, gzip.compress(BODY), Content_Encoding="gzip").json() == post(client).json()


@pytest.mark.parametrize(
    ("content", "coding", "status"),
    [
        (gzip.compress(b" " * 10**6), "gzip", 413),
        (gzip.compress(BODY)[:-9], "gzip", 400),
        (BODY, "gzip", 400),
        (BODY, "br", 415),
    ],
    ids=["a bomb", "cut", "not packed", "brotli"],
)
def test_what_cannot_be_unpacked_is_refused(client, content, coding, status):
    answer = post(client, content, Content_Encoding=coding)
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM_JSON)
    assert status != 415 or answer.headers["accept-encoding"] == "gzip"


@pytest.mark.parametrize("path", PATHS)
def test_head_is_get_without_the_body(client, path):
    answer, whole = client.head(path), client.get(path)
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (
        200, b"", whole.headers["content-type"],
    )  # fmt: skip


def test_pages_of_other_origins_may_ask_only_where_that_is_set(client, tmp_path):
    (tmp_path / "tokens").write_text("a-token-of-the-shop-0123456789", encoding="utf-8")
    arms = (Arm(name="all", export="x", share=1.0),)
    settings = ServeSettings(
        cors_origins=("https://shop.example",), experiment=ExperimentSettings(name="e", arms=arms),
        auth=AuthSettings(tokens_file=tmp_path / "tokens"),
    )  # fmt: skip
    open_to = TestClient(make_api(Echo(), settings, read_tokens(settings.auth)))
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, x-unit-id, x-arm",
    }
    ours, other = ({"Origin": f"https://{name}.example"} for name in ("shop", "other"))
    preflight = open_to.options("/v1/score", headers=ours | asked)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, ours["Origin"])
    assert open_to.options("/v1/score", headers=other | asked).status_code == 400
    refused = open_to.post("/v1/score", content=BODY, headers=ours)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ours["Origin"])
    closed = client.options("/v1/score", headers=ours | asked)
    assert closed.status_code == 405 and "access-control-allow-origin" not in closed.headers


def test_a_long_request_id_is_cut(caplog):
    asker = TestClient(make_api(Echo(), ServeSettings(access_log=True), log=logging.getLogger("tests.ids")))
    with caplog.at_level(logging.INFO, "tests.ids"):
        said = asker.post("/v1/rerank", json={"query": "q", "documents": ["x"]}, headers={"X-Request-ID": "i" * 5000})
    assert said.json()["id"] == caplog.records[0].request_id == "i" * ID_CHARS


def test_the_docs_run_and_load_nothing_from_elsewhere(client):
    page = client.get("/docs")
    assert "default-src 'none'" in page.headers["content-security-policy"] and "<script" not in page.text
    assert not re.findall(r"(?:src|href)=.(?:https?:)?//", page.text)
    schema = client.get("/openapi.json").json()
    for path in schema["paths"]:
        assert path in page.text
    for name in schema["components"]["schemas"]:
        assert f'id="{name}"' in page.text
    assert 'href="#ScoreRequest"' in page.text and 'href="#ScoreResponse"' in page.text
