"""The service on a real local Ray Serve with a tiny student: answers, batches, refuses and stops."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.base.errors import UserError
from cluster.base.free_port import free_port
from serve.config import ServeSettings
from serve.on_ray.running_service import score_once, serve_export
from serve.scoring.scorer import Scorer
from tests.helpers.report_run import NAMES, write_export

PRODUCTS = [{"id": "a", "title": "red phone case"}, {"id": "b", "title": "blue lamp", "brand": "Mug"}]
PATIENCE_S = 300  # ends a hang; no answer is expected to take so long


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return write_export(tmp_path_factory.mktemp("export"), tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    logs = tmp_path_factory.mktemp("logs")
    return ServeSettings(port=free_port(), request_timeout_s=PATIENCE_S, access_log=True, log_folder=logs)


@pytest.fixture(scope="module")
def url(local_ray, export, settings):
    told = []
    service = serve_export(export, settings, ready=told.append, blocking=False)
    assert told == [service.url]
    yield service.url
    service.stop()
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{service.url}/healthz", timeout=PATIENCE_S)


def post(url: str, products: list[dict]) -> tuple[int, dict, dict]:
    """POST to /v1/score and return status, headers and body, whatever the status."""
    body = json.dumps({"query": "red phone", "products": products}).encode()
    request = urllib.request.Request(f"{url}/v1/score", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.status, dict(answer.headers), json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), json.load(error)


def test_the_service_says_what_the_scorer_says(url, export, settings):
    answer = score_once(url, "red phone", PRODUCTS)
    scorer = Scorer.load(export, settings)
    expected = scorer.score([{"query": "red phone", **product} for product in PRODUCTS])
    assert [result["id"] for result in answer["results"]] == ["a", "b"]
    for result, probabilities in zip(answer["results"], expected.probabilities, strict=True):
        assert list(result["probabilities"].values()) == pytest.approx(probabilities.tolist(), abs=1e-5)
        assert set(result["perspectives"]) == set(NAMES)
    assert answer["model"] == scorer.name


def test_requests_at_once_each_get_their_own_answer(url):
    alone = {f"lamp {i}": score_once(url, "red", [{"id": "x", "title": f"lamp {i}"}])["results"][0] for i in range(4)}

    def ask(title):
        return title, score_once(url, "red", [{"id": "x", "title": title}])["results"][0]

    with ThreadPoolExecutor(4) as pool:
        for title, result in pool.map(ask, list(alone) * 5):
            assert result["score"] == pytest.approx(alone[title]["score"], abs=1e-5)


@pytest.mark.parametrize("path", ["healthz", "readyz", "openapi.json"])
def test_health_is_told_while_the_model_works(url, path):
    """What was asked last is answered first, or the model would hold up everything."""
    many = [{"id": str(i), "title": "red phone case mug lamp " * 8} for i in range(200)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(50):
            busy = [pool.submit(post, url, many) for _ in range(4)]
            wait(busy, return_when=FIRST_COMPLETED)  # the first answer: all are on their way
            with urllib.request.urlopen(f"{url}/{path}", timeout=PATIENCE_S) as answer:
                assert answer.status == 200
            overtaken = sum(not future.done() for future in busy)
            wait(busy)
            if overtaken:
                break
    assert overtaken > 0


def figures(url: str) -> dict[tuple[str, ...], float]:
    """What `/metrics` says, by name and labels other than replica and model."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=PATIENCE_S) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            (sample.name, *(v for k, v in sorted(sample.labels.items()) if k not in ("replica", "model"))): sample.value
            for family in families
            for sample in family.samples
        }


def hang_up(port: int, after_s: float) -> None:
    """Ask for many products and go away before the answer."""
    many = [{"id": str(i), "title": "red phone case mug lamp " * 8} for i in range(200)]
    body = json.dumps({"query": "red", "products": many}).encode()
    head = (
        f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        connection.sendall(head.encode() + body)
        time.sleep(after_s)


def test_a_client_that_hangs_up_is_dropped(url, settings):
    for turn in range(50):
        with ThreadPoolExecutor(4) as pool:  # gone too early, a request never reaches the replica
            list(pool.map(hang_up, [settings.port] * 4, [0.01 * (turn + 1)] * 4))
        seen = figures(url)
        if gone := seen.get(("broadfast_requests_total", "/v1/score", "499")):
            break
    assert gone
    assert post(url, PRODUCTS)[0] == 200


def test_a_request_is_counted_and_logged_under_the_id_that_comes_back(url, settings):
    before = figures(url)
    body = json.dumps({"query": "unheard of", "documents": ["red phone", "lamp"], "top_n": 1}).encode()
    headers = {"Content-Type": "application/json", "X-Request-ID": "a-shop-s-own-id"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{url}/v1/rerank", body, headers), timeout=PATIENCE_S
    ) as answer:
        assert answer.headers.get_all("X-Request-ID") == ["a-shop-s-own-id"]
        said = json.load(answer)
    assert said["id"] == "a-shop-s-own-id" and len(said["results"]) == 1
    after = figures(url)
    assert after["broadfast_pairs_total",] - before["broadfast_pairs_total",] == 2
    for name in ("queue_seconds", "model_seconds", "batch_pairs"):
        assert after[f"broadfast_{name}_count",] == before[f"broadfast_{name}_count",] + 1
    text = "".join(path.read_text(encoding="utf-8") for path in settings.log_folder.rglob("replica_*.log"))
    (line,) = (json.loads(line) for line in text.splitlines() if "a-shop-s-own-id" in line)
    assert (line["path"], line["status"], line["pairs"]) == ("/v1/rerank", 200, 2)
    assert "unheard of" not in text


def test_limits_hold_over_http(url, settings):
    status, _, body = post(url, PRODUCTS * 101)
    assert (status, body["limit"]) == (422, "products_per_request")
    status, _, body = post(url, [{"id": "a", "title": "x" * (settings.limits.body_bytes + 1)}])
    assert (status, body["limit"]) == (413, "body_bytes")


def test_an_explanation_needs_an_index(url):
    with pytest.raises(UserError, match="this export carries no rationale index"):
        score_once(url, "red", PRODUCTS, explain=True)


def test_a_folder_that_is_no_export_starts_nothing(local_ray, tmp_path, settings):
    with pytest.raises(UserError, match=r"has no student\.json"):
        serve_export(tmp_path, settings)


def test_a_second_service_on_the_same_ray_is_refused(url, export, settings):
    with pytest.raises(UserError, match="this Ray serves an export already"):
        serve_export(export, settings)
