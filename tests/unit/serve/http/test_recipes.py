"""The recipes: each request of the page is sent as the program named would, and what it reads is in the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from serve.config import ServeSettings
from serve.http.refusals import PROBLEM_JSON
from serve.http.routes import make_api
from serve.scoring.scorer import Scorer
from tests.helpers.local_service import local_service
from tests.helpers.report_run import write_export

PAGE = (Path(__file__).parents[4] / "serve" / "RECIPES.md").read_text(encoding="utf-8")
QUERY, DOCUMENTS = 'red "phone" case', ["blue lamp", "red phone case", "shoe"]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("export"), tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def scorer(export: Path) -> Scorer:
    return Scorer.load(export, ServeSettings(precision="fp32"))


@pytest.fixture(scope="module")
def client(scorer: Scorer) -> Iterator[TestClient]:
    with TestClient(make_api(local_service(scorer), ServeSettings())) as opened:  # all requests in one event loop
        yield opened


@pytest.fixture(scope="module")
def expected(scorer: Scorer) -> list[tuple[int, float]]:
    """Positions and scores, the best first."""
    scores = scorer.relevance(scorer.score([{"query": QUERY, "title": title} for title in DOCUMENTS]).probabilities)
    return sorted(enumerate(scores.tolist()), key=lambda found: -found[1])


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def blocks(title: str, language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL)
    assert found, title
    return found


def request_of(title: str, number: int = 0) -> tuple[str, str, Any]:
    """Return method, path and body of a request on the page."""
    line, _, body = blocks(title, "json")[number].partition("\n")
    method, path = line.split(" ")
    return method, path, json.loads(body)


def close(found: list[tuple[int, float]], expected: list[tuple[int, float]]) -> None:
    assert [n for n, _ in found] == [n for n, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)


def path_of(url: str) -> str:
    return "/" + url.split("/", 3)[3]


def looked_up(path: str, answer: Any) -> list[Any]:
    """Return what Elasticsearch's short form of JSONPath finds, such as `$.results[*].index`."""
    listed, name = re.fullmatch(r"\$\.(\w+)\[\*\]\.(\w+)", path).groups()  # type: ignore[union-attr]
    return [one[name] for one in answer[listed]]


def test_elasticsearch(client: TestClient, expected: list[tuple[int, float]]) -> None:
    method, path, body = request_of("Elasticsearch")
    assert (method, path, body["service"]) == ("PUT", "_inference/rerank/broadfast", "custom")
    settings = body["service_settings"]
    asked = settings["request"].replace("${query}", json.dumps(QUERY)).replace("${input}", json.dumps(DOCUMENTS))
    assert "${" not in asked
    answer = client.post(path_of(settings["url"]), content=asked, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    parser = settings["response"]["json_parser"]
    indices, scores = (looked_up(parser[name], answer.json()) for name in ("reranked_index", "relevance_score"))
    close(list(zip(indices, scores, strict=True)), expected)
    retriever = request_of("Elasticsearch", 1)[2]["retriever"]["text_similarity_reranker"]
    assert retriever["inference_id"] == path.rpartition("/")[2]
    assert retriever["rank_window_size"] <= ServeSettings().limits.products_per_request


def test_opensearch(client: TestClient, expected: list[tuple[int, float]]) -> None:
    (action,) = request_of("OpenSearch")[2]["actions"]
    assert action["pre_process_function"] == "connector.pre_process.cohere.rerank"
    # That function gives these parameters, and texts escaped as within quotes.
    given = {"query": json.dumps(QUERY)[1:-1], "documents": json.dumps(DOCUMENTS), "top_n": str(len(DOCUMENTS))}
    asked = action["request_body"]
    for name, value in given.items():
        asked = asked.replace(f"${{parameters.{name}}}", value)
    assert "${" not in asked
    answer = client.post(path_of(action["url"]), content=asked, headers={"Content-Type": "application/json"}).json()
    # Its counterpart sorts by index again, and takes the scores in that order.
    scores = {result["index"]: result["relevance_score"] for result in answer["results"]}
    close(sorted(scores.items(), key=lambda found: -found[1]), expected)
    (processor,) = request_of("OpenSearch", 1)[2]["response_processors"]
    assert set(processor["rerank"]) == {"ml_opensearch", "context"}


def asked_like(title: str, **changes: Any) -> tuple[str, Any]:
    """Return path and body of the request on the page, with our texts in it."""
    _, path, body = request_of(title)
    texts = "texts" if "texts" in body else "documents"
    return path, body | {"query": QUERY, texts: DOCUMENTS} | changes


def test_haystack(client: TestClient, expected: list[tuple[int, float]]) -> None:
    path, body = asked_like("Haystack", top_n=None)
    answer = client.post(path, json=body).json()
    close([(result["index"], result["relevance_score"]) for result in answer["results"]], expected)
    assert answer["model"] and answer["usage"]["total_tokens"] > 0  # what the component hands on as `meta`


def test_langchain(client: TestClient, expected: list[tuple[int, float]]) -> None:
    path, body = asked_like("LangChain")
    answer = client.post(path, json=body | {"max_tokens_per_doc": 4096}).json()
    close([(result["index"], result["relevance_score"]) for result in answer["results"]], expected[:2])
    assert answer["id"]


def test_llamaindex(client: TestClient, expected: list[tuple[int, float]]) -> None:
    path, body = asked_like("LlamaIndex")
    answer = client.post(path, json=body).json()
    close([(result["index"], result["score"]) for result in answer], expected)
    assert set(answer[0]) == {"index", "score"}
    more = client.post(path, json=body | {"return_text": True, "raw_scores": False}).json()
    assert [result["text"] for result in more] == [DOCUMENTS[n] for n, _ in expected]


def test_litellm(client: TestClient, expected: list[tuple[int, float]]) -> None:
    path, body = asked_like("LiteLLM")
    answer = client.post(path, json=body).json()
    close([(result["index"], result["relevance_score"]) for result in answer["results"]], expected)
    assert [result["document"] for result in answer["results"]] == [DOCUMENTS[n] for n, _ in expected]
    assert answer["usage"]["total_tokens"] - answer["usage"]["prompt_tokens"] == 0  # it takes the rest for output
    assert f'api_base="http://student:8000{path.removesuffix("/rerank")}"' in blocks("LiteLLM", "python")[0]
    without = client.post(path, json=body | {"return_documents": False}).json()
    assert "document" not in without["results"][0]


def test_usage_counts_the_tokens_that_the_student_read(client: TestClient, scorer: Scorer) -> None:
    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS, "top_n": 1}).json()
    found = scorer.tokens([{"query": QUERY, "title": title} for title in DOCUMENTS])
    assert answer["usage"]["total_tokens"] == sum(map(scorer.tokens.length, found))


@pytest.mark.parametrize(
    ("body", "field", "limit"),
    [
        ({"query": "x", "texts": []}, "texts", None),
        ({"query": "x", "texts": ["a"] * 201}, "texts", "products_per_request"),
        ({"query": "x", "texts": ["a", "b" * 20_001]}, "texts.1", "document_chars"),
        ({"query": "x", "texts": [" "]}, "texts.0", None),
        ({"query": "x" * 1001, "texts": ["a"]}, "query", "query_chars"),
        ({"query": "x"}, "documents", None),
        ({"query": "x", "documents": ["a", 3]}, "documents.1", None),
    ],
)
def test_what_is_wrong_in_either_form_is_named(client: TestClient, body: Any, field: str, limit: str | None) -> None:
    answer = client.post("/rerank", json=body)
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM_JSON)
    assert [error["field"] for error in problem["errors"]] == [field]
    assert problem.get("limit") == limit


def test_solr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"query": q, "product_id": p, "score": s} for q, p, s in (("a", "1", 0.5), ("b", "1", 0.25), ("a", "2", 1.0))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "scores.parquet")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(blocks("Solr", "python")[0], "RECIPES.md", "exec"), names)
    assert names["body"] == [
        {"id": "1", "student_dpf": {"set": "q0|0.5000 q1|0.2500"}},
        {"id": "2", "student_dpf": {"set": "q0|1.0000"}},
    ]
    (feature,) = request_of("Solr")[2]
    assert feature["class"].endswith("SolrFeature") and "payload(student_dpf,${query_id}" in feature["params"]["q"]


def test_vespa(export: Path, scorer: Scorer, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from distill.formats.onnx_graph import write_onnx

    write_onnx(export, tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (schema,) = blocks("Vespa", "text")
    inputs = dict(re.findall(r"input (\w+): (\w+)", schema))
    assert set(inputs) == {one.name for one in session.get_inputs()}
    assert re.findall(r"output (\w+):", schema) == [session.get_outputs()[0].name]
    functions = dict(re.findall(r"function (\w+)\(\) \{ expression: (\w+)\(", schema))
    made = {name: functions[function] for name, function in inputs.items()}
    tokenizer = scorer.tokens.tokenizer
    query, title = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (QUERY, DOCUMENTS[1]))
    length = 40  # on the page 128: the test's encoder reads fewer
    ids = [tokenizer.cls_token_id, *query, tokenizer.sep_token_id, *title, tokenizer.sep_token_id]
    types = [0] * (len(query) + 2) + [1] * (len(title) + 1)
    rows = {"tokenInputIds": ids, "tokenTypeIds": types, "tokenAttentionMask": [1] * len(ids)}
    feeds = {name: np.array([rows[kind] + [0] * (length - len(ids))]) for name, kind in made.items()}
    (score,) = session.run(["score"], feeds)
    wanted = scorer.relevance(scorer.score([{"query": QUERY, "title": DOCUMENTS[1]}]).probabilities)
    assert score == pytest.approx(wanted, abs=1e-5)
