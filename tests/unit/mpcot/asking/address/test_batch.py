"""Offline batches: what is missing as JSONL, and answers taken into the parts of a stage."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.base.errors import UserError
from cluster.base.tables import read_table
from mpcot.asking.address import batch
from mpcot.asking.address.batch import read_batch, said_of, write_batch
from mpcot.asking.address.estimate import estimate
from mpcot.asking.address.meter import usage_figures
from mpcot.asking.engines.config import OpenAiEngine, Price
from mpcot.asking.plan import GenerationPlan
from mpcot.config import AnswerSettings, JudgeSettings, PerspectiveSettings
from mpcot.perspectives.perspective import load_perspectives
from mpcot.records import ANSWER, PAIR
from mpcot.schemes.scheme import load_scheme
from tests.helpers.scripted_plan import batches
from tests.helpers.scripted_server import completion

ENGINE = OpenAiEngine(base_url="http://host/v1", model="big", price_per_million=Price(input=1, output=2))
PERSPECTIVES = load_perspectives(PerspectiveSettings())


def plan(**ask: Any) -> GenerationPlan:
    return of(AnswerSettings(**ask))


def of(ask: AnswerSettings) -> GenerationPlan:
    return GenerationPlan("", "d", ENGINE, load_scheme("esci"), PERSPECTIVES, ask, 1)


def pairs(count: int = 4) -> list[dict[str, Any]]:
    row: dict[str, Any] = dict.fromkeys(PAIR.names) | {"query": "drill", "title": "Drill", "label": "E"}
    return [row | {"pair_id": f"p{number}", "split": "train"} for number in range(count)]


def asked_about() -> list[pa.RecordBatch]:
    return batches(pairs(), 3)


def written(folder: Path, asked: GenerationPlan) -> list[dict[str, Any]]:
    _, files = write_batch(asked, asked_about(), folder, folder / "requests.jsonl")
    return [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]


def answered(request: dict[str, Any], body: Any = None, status: int = 200) -> str:
    response = {"status_code": status, "request_id": "r", "body": body or completion()}
    return json.dumps({"id": "b", "custom_id": request["custom_id"], "response": response, "error": None})


def answers(folder: Path, *lines: str) -> Path:
    path = folder / "answers.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_requests_in_openais_format(tmp_path: Path) -> None:
    lines = written(tmp_path, plan())
    assert len(lines) == 12 and len({line["custom_id"] for line in lines}) == 12
    assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
    asked = {ask.key: ask.chat for pair in pairs() for *_, ask in plan().asks(pair)}
    assert {line["custom_id"]: line["body"]["messages"] for line in lines} == asked
    assert lines[0]["body"]["model"] == "big"


def test_many_requests_are_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MOST_REQUESTS", 5)
    _, files = write_batch(plan(), asked_about(), tmp_path, tmp_path / "batches" / "requests.jsonl")
    assert {path.name: count for path, count in files.items()} == {
        "requests.jsonl": 5, "requests-2.jsonl": 5, "requests-3.jsonl": 2,
    }  # fmt: skip


def test_answers_are_taken_once(tmp_path: Path) -> None:
    lines = written(tmp_path, plan())
    file = answers(tmp_path, *map(answered, lines[:7]))
    assert read_batch(plan(), asked_about(), tmp_path, file).taken == 7
    table = read_table(tmp_path / "answers")
    assert table.schema.equals(ANSWER) and set(table["verdict"].to_pylist()) == {"E"}
    assert table["cached_tokens"].to_pylist() == [40] * 7
    again = read_batch(plan(), asked_about(), tmp_path, file)
    assert (again.taken, again.answered_before) == (0, 7)
    assert {line["custom_id"] for line in written(tmp_path, plan())} == {line["custom_id"] for line in lines[7:]}


def test_a_batch_costs_less_and_says_so_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 tokens of a prompt at 1 and 20 of an answer at 2, half the price is 70 millionths."""
    derived: list[str] = []
    original = GenerationPlan.asks
    monkeypatch.setattr(GenerationPlan, "asks", lambda self, pair: derived.append(pair) or original(self, pair))
    found, files = write_batch(plan(), asked_about(), tmp_path, tmp_path / "requests.jsonl")
    assert len(derived) == 4, "each pair once"
    at_once = estimate(plan(), asked_about(), tmp_path)
    assert found == replace(at_once, batch=True) and sum(files.values()) == found.requests == 12
    large = replace(at_once, prompt_tokens=10**6, output_tokens=10**6)
    assert ": 3.00 at most" in large.said() and ": 1.50 at most" in replace(large, batch=True).said()
    lines = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text(encoding="utf-8").splitlines()]
    read_batch(plan(), asked_about(), tmp_path, answers(tmp_path, *map(answered, lines[:3])))
    figures = usage_figures(ENGINE, tmp_path)
    assert figures["prompt_tokens"] == 300 and figures["cost"] == pytest.approx(3 * 70e-6)


def test_a_stated_confidence_is_taken_from_a_batch(tmp_path: Path) -> None:
    asked = of(JudgeSettings(confidence=True))
    body = completion("It is a drill, as was asked.\nConfidence: 40\nVerdict: E")
    read_batch(asked, asked_about(), tmp_path, answers(tmp_path, answered(written(tmp_path, asked)[0], body)))
    (logprobs,) = read_table(tmp_path / "answers")["logprobs"].to_pylist()
    assert [math.exp(value) for value in logprobs] == pytest.approx([0.4, 0.2, 0.2, 0.2])


def test_bad_lines_are_counted_and_named(tmp_path: Path) -> None:
    lines = written(tmp_path, plan())
    error = {"error": {"message": "server overloaded"}}
    file = answers(
        tmp_path, answered(lines[0]), "{cut off", '{"no": "id"}', "", answered(lines[1], error, 500),
        answered(lines[2], {"choices": []}), answered(lines[3], completion("no verdict")),
    )  # fmt: skip
    found = read_batch(plan(), asked_about(), tmp_path, file)
    assert list(said_of(found)) == [
        "2 taken, 0 answered before, 1 failed",
        "no answers in line 2, line 3, line 6: to be asked again",
        "the host failed at line 5 (server overloaded): to be asked again",
    ]
    reasons = read_table(tmp_path / "answers")["reason"].to_pylist()
    assert sorted(reasons, key=str) == [None, "unparsable: no verdict line"]


def test_answers_to_other_requests_are_refused(tmp_path: Path) -> None:
    lines = written(tmp_path, plan())
    file = answers(tmp_path, *map(answered, lines))
    with pytest.raises(UserError, match=r"12 of its 12 answers belong to no request of .*first custom_id"):
        read_batch(plan(temperature=0.1), asked_about(), tmp_path, file)
    assert not (tmp_path / "answers").exists()
    with pytest.raises(UserError, match="cannot be read"):
        read_batch(plan(), asked_about(), tmp_path, tmp_path / "nothing.jsonl")


def test_an_estimate_of_what_is_missing(tmp_path: Path) -> None:
    lines = written(tmp_path, plan())
    whole = estimate(plan(), asked_about(), tmp_path)
    read_batch(plan(), asked_about(), tmp_path, answers(tmp_path, *map(answered, lines[:6])))
    half = estimate(plan(), asked_about(), tmp_path)
    assert (whole.requests, half.requests) == (12, 6) and half.output_tokens == 6 * 256
    chars = sum(len(message["content"]) for line in lines for message in line["body"]["messages"])
    assert whole.prompt_tokens == pytest.approx(chars / 4, abs=2)
    cost = (half.prompt_tokens * 1 + half.output_tokens * 2) / 1e6
    assert half.said().startswith("6 requests, about ") and f": {cost:.2f} at most" in half.said()
    assert estimate(plan(), [], tmp_path).said() == "nothing to ask"
