"""Tokens: who is let in, what stays open, and that a token shows up nowhere."""

from __future__ import annotations

import logging

import pytest
from starlette.testclient import TestClient

from cluster.base.errors import UserError
from serve.config import AuthSettings, ServeSettings
from serve.http.bearer_tokens import Tokens, known, read_tokens
from serve.http.refusals import PROBLEM_JSON
from serve.http.routes import make_api
from tests.helpers.echo_service import Echo

ONE, TWO, WRONG = "first-token-0123456789", "second-token-987654321", "third-token-5555555555"
BODY = {"query": "shoe", "products": [{"id": "a", "title": "red shoe"}]}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    file = tmp_path_factory.mktemp("auth") / "tokens"
    file.write_text(f"{ONE}\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOP_TOKENS", f"{TWO} another-token-000000")
        return read_tokens(AuthSettings(tokens_file=file, tokens_env="SHOP_TOKENS"))


@pytest.fixture(scope="module")
def client(tokens):
    log = logging.getLogger("tests.auth")
    return TestClient(make_api(Echo(), ServeSettings(access_log=True, log_queries=True), tokens, log))


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("token", [ONE, TWO])
def test_every_token_of_file_and_environment_is_let_in(client, token):
    assert client.post("/v1/score", json=BODY, headers=bearer(token)).status_code == 200
    assert client.get("/metrics", headers={"authorization": f"bearer {token}"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, bearer(WRONG), bearer(ONE[:-1]), bearer(""), {"Authorization": ONE}, {"Authorization": f"Basic {ONE}"}],
    ids=["none", "unknown", "cut", "empty", "bare", "basic"],
)
@pytest.mark.parametrize("path", ["/v1/score", "/v1/rerank", "/v2/rerank", "/rerank", "/v1/explain"])
def test_others_get_a_401_before_their_body_is_looked_at(client, path, headers):
    answer = client.post(path, content=b"{not json", headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (401, PROBLEM_JSON)
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["status"] == 401


@pytest.mark.parametrize("path", ["/v1/models", "/v1/examples", "/metrics", "/nowhere", "//v1/models"])
def test_nothing_that_holds_data_is_open(client, path):
    assert client.get(path).status_code == 401


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/healthz", "/readyz", "/docs", "/openapi.json"])
def test_probes_page_and_docs_stay_open(client, path):
    assert client.get(path).status_code == 200


def test_openapi_says_that_a_token_is_needed(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert paths["/v1/score"]["post"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in paths["/healthz"]["get"]


def test_no_token_is_logged_or_kept(client, tokens, caplog):
    with caplog.at_level(logging.DEBUG):
        client.post("/v1/score", json=BODY, headers=bearer(ONE))
        client.post("/v1/score", json=BODY, headers=bearer(WRONG))
    assert len([record for record in caplog.records if record.name == "tests.auth"]) == 2
    said = " ".join(str(record.__dict__) for record in caplog.records) + repr(tokens)
    assert not any(token in said for token in (ONE, TWO, WRONG))


def test_tokens_are_compared_in_constant_time(tokens, monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    assert known(f"Bearer {ONE}", tokens.asking)
    assert [b for _, b in compared] == list(tokens.asking), "the first is the one; all are compared"


def test_without_tokens_everybody_is_let_in():
    assert read_tokens(AuthSettings()) == Tokens()
    assert TestClient(make_api(Echo(), ServeSettings())).post("/v1/score", json=BODY).status_code == 200


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b" \n", "holds no token"), (b"secret-7", "16 or more"), (b"\xff" * 20, "not UTF-8")],
    ids=["missing", "empty", "short", "binary"],
)
def test_an_unusable_file_is_refused_without_a_word_of_it(tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokens").write_bytes(content)
    with pytest.raises(UserError, match=rf"serve\.auth\.tokens_file .*{message}") as error:
        read_tokens(AuthSettings(tokens_file=tmp_path / "tokens"))
    assert "secret" not in str(error.value)


def test_an_unset_variable_is_refused(monkeypatch):
    monkeypatch.delenv("SHOP_TOKENS", raising=False)
    with pytest.raises(UserError, match=r"serve\.auth\.tokens_env SHOP_TOKENS: holds no token"):
        read_tokens(AuthSettings(tokens_env="SHOP_TOKENS"))


def test_a_token_for_figures_opens_nothing_else(tokens, monkeypatch):
    monkeypatch.setenv("SCRAPER", WRONG)
    scraping = read_tokens(AuthSettings(scrape_tokens_env="SCRAPER")).scraping
    both = TestClient(make_api(Echo(), ServeSettings(), Tokens(tokens.asking, scraping)))
    assert both.get("/metrics", headers=bearer(WRONG)).status_code == 200
    assert both.get("/metrics", headers=bearer(ONE)).status_code == 200
    assert both.get("/metrics").status_code == 401
    for path in ("/v1/models", "/v1/examples"):
        assert both.get(path, headers=bearer(WRONG)).status_code == 401
    alone = TestClient(make_api(Echo(), ServeSettings(), Tokens((), scraping)))
    assert (alone.get("/metrics").status_code, alone.get("/v1/models").status_code) == (401, 200)
