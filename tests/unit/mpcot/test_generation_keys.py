"""An answer's key is all that decides it: what must be asked again after a change, and what must not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.errors import UserError
from cluster.storage import read_table, write_table
from mpcot.config import AnswerSettings, PerspectiveSettings, Replicas, ScriptedEngine, VllmEngine
from mpcot.generate import GenerationPlan, _answered, _collect, _write_missing, select_pairs
from mpcot.labels import load_scheme
from mpcot.perspective import Perspective, load_perspectives
from mpcot.records import ANSWER, PAIR
from mpcot.worker import requests_of

PLAN = GenerationPlan(
    model="models/a",
    model_digest="aaaa",
    engine=ScriptedEngine(),
    scheme=load_scheme("esci"),
    perspectives=load_perspectives(PerspectiveSettings()),
    ask=AnswerSettings(samples=2),
    seed=1,
)


def pair(number: int = 0, **changes: Any) -> dict[str, Any]:
    row = {name: None for name in PAIR.names} | {"pair_id": f"p{number}", "query_id": "q", "product_id": "x"}
    row |= {"locale": "us", "query": "red drill", "title": f"drill {number}", "label": "E", "split": "train"}
    return row | changes


def keys(plan: GenerationPlan = PLAN, row: dict[str, Any] | None = None) -> dict[tuple[str, int], str]:
    return {(p.name, sample): ask.key for p, sample, ask in plan.asks(row or pair())}


def test_every_request_has_a_key_and_a_seed_of_its_own() -> None:
    asks = [ask for number in range(50) for _, _, ask in PLAN.asks(pair(number))]
    assert len(asks) == 50 * 3 * 2
    assert len({ask.key for ask in asks}) == len(asks)
    assert len({ask.seed for ask in asks}) > 0.99 * len(asks) and all(0 <= ask.seed < 2**31 for ask in asks)
    assert keys() == keys()


@pytest.mark.parametrize(
    "change",
    [
        {"model_digest": "bbbb"},
        {"seed": 2},
        {"engine": ScriptedEngine(accuracy=0.9)},
        {"engine": VllmEngine()},
        {"scheme": load_scheme("graded")},
        {"ask": AnswerSettings(samples=2, temperature=0.1)},
        {"ask": AnswerSettings(samples=2, max_tokens=12)},
        {"ask": AnswerSettings(samples=2, max_chars=50)},
        {"ask": AnswerSettings(samples=2, few_shot=1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_an_answer_makes_every_key_new(change: dict[str, Any]) -> None:
    assert not set(keys().values()) & set(keys(replace(PLAN, **change)).values())


@pytest.mark.parametrize(
    "change",
    [
        {"model": "/elsewhere/models/a"},
        {"engine": ScriptedEngine(delay_s=1.0, replicas=Replicas(max=4, cpus=2, flush_rows=1))},
        {"ask": AnswerSettings(samples=2, splits=("train", "dev"), pairs_per_split=9)},
        {"ask": AnswerSettings(samples=2, retries=5, max_failed_share=0.9)},
    ],
    ids=["where the model lies", "resources", "which pairs", "patience"],
)
def test_what_decides_no_answer_keeps_every_key(change: dict[str, Any]) -> None:
    assert keys(replace(PLAN, **change)) == keys()


def test_engine_settings_of_speed_alone_keep_every_key() -> None:
    slow, fast = VllmEngine(), VllmEngine(max_num_seqs=4, enforce_eager=True, gpu_memory_utilization=0.5)
    assert keys(replace(PLAN, engine=slow)) == keys(replace(PLAN, engine=fast))
    assert keys(replace(PLAN, engine=slow)) != keys(replace(PLAN, engine=VllmEngine(dtype="float32")))


def test_more_samples_and_more_perspectives_keep_what_was_paid_for() -> None:
    more = keys(replace(PLAN, ask=AnswerSettings(samples=5)))
    assert len(more) == 15 and keys().items() <= more.items()
    fourth = Perspective(name="season", title="Season", question="Is it of the season?")
    added = keys(replace(PLAN, perspectives=(fourth, *PLAN.perspectives)))
    assert len(added) == 8 and keys().items() <= added.items()


def test_a_changed_question_is_asked_again_of_that_perspective_alone() -> None:
    changed = PLAN.perspectives[1].model_copy(update={"question": "Which attributes differ?"})
    new = keys(replace(PLAN, perspectives=(PLAN.perspectives[0], changed, PLAN.perspectives[2])))
    assert {place for place, key in keys().items() if new[place] != key} == {(changed.name, 0), (changed.name, 1)}


def test_a_changed_product_is_another_request_but_its_label_is_not() -> None:
    assert not set(keys(row=pair(title="another drill")).values()) & set(keys().values())
    assert keys(row=pair(label="I", split="dev", description="unused")) == keys()


def test_only_what_lacks_an_answer_is_to_be_asked(tmp_path: Path) -> None:
    pairs = [pair(n) for n in range(3)]
    done = set(keys(row=pairs[0]).values()) | {keys(row=pairs[1])["intent", 0]}
    wanted, missing = _write_missing(PLAN, pairs, tmp_path / "todo", done)
    assert len(wanted) == 18 and missing == 11
    todo = read_table(tmp_path / "todo").to_pylist()
    assert [row["pair_id"] for row in todo] == ["p1", "p2"]
    assert set(todo[0]["keys"]) == set(keys(row=pairs[1]).values()) - done


def answer_row(key: str, **changes: Any) -> dict[str, Any]:
    row = {"key": key, "pair_id": "p0", "perspective": "intent", "sample": 0, "rationale": "r", "verdict": "E"}
    return row | {"logprobs": None, "prompt_tokens": 1, "output_tokens": 1, "reason": None} | changes


def test_answers_of_other_settings_are_left_out_and_doubles_count_once(tmp_path: Path) -> None:
    rows = [answer_row("a"), answer_row("b", sample=1), answer_row("old")]
    write_table(tmp_path / "w1-0.parquet", pa.Table.from_pylist(rows, ANSWER))
    write_table(tmp_path / "w2-0.parquet", pa.Table.from_pylist([answer_row("a", rationale="later")], ANSWER))
    table = _collect(tmp_path, {"a", "b"}, "rationales")
    assert table.schema.equals(ANSWER)
    assert [(r["key"], r["rationale"]) for r in table.to_pylist()] == [("a", "r"), ("b", "r")]
    with pytest.raises(UserError, match="1 answers are missing, first lost"):
        _collect(tmp_path, {"a", "lost"}, "rationales")


def test_pairs_are_chosen_by_split_and_id_whatever_their_order(tmp_path: Path) -> None:
    rows = [pair(n, split=("train", "dev", "test")[n % 3]) for n in range(30)]
    path = write_table(tmp_path / "pairs.parquet", pa.Table.from_pylist(rows, PAIR))
    turned = write_table(tmp_path / "turned.parquet", pa.Table.from_pylist(rows[::-1], PAIR))
    ask = AnswerSettings(splits=("train", "test"), pairs_per_split=4)
    chosen = [{r["pair_id"] for r in select_pairs(p, ask)} for p in (path, turned)]
    assert chosen[0] == chosen[1] and len(chosen[0]) == 8
    everything = AnswerSettings(splits=("train", "test"))
    assert {r["split"] for r in select_pairs(path, everything)} == {"train", "test"}
    assert len(list(select_pairs(path, everything))) == 20


def test_a_worker_that_would_ask_otherwise_says_so() -> None:
    """Another version of the prompts on a node must not end in rows that nobody answers."""
    row = pair() | {"keys": list(keys().values())[:2]}
    assert [ask.key for _, _, ask in requests_of(PLAN, row)] == row["keys"]
    with pytest.raises(UserError, match="run one version of broadfast on all nodes"):
        requests_of(replace(PLAN, seed=2), row)


def test_what_an_engine_failed_to_answer_is_asked_again(tmp_path: Path) -> None:
    """Other failures are the model's own and would come again."""
    broken = answer_row("a", rationale=None, verdict=None, reason="engine error: OSError: gone")
    own = answer_row("b", sample=1, verdict=None, reason="empty")
    write_table(tmp_path / "w1-0.parquet", pa.Table.from_pylist([broken, own, answer_row("c", sample=2)], ANSWER))
    assert _answered(tmp_path) == {"b", "c"}
    assert _collect(tmp_path, {"a"}, "rationales")["reason"].to_pylist() == [broken["reason"]]
    write_table(tmp_path / "w2-0.parquet", pa.Table.from_pylist([answer_row("a")], ANSWER))
    assert _answered(tmp_path) == {"a", "b", "c"}
    assert _collect(tmp_path, {"a", "b"}, "rationales")["reason"].to_pylist() == [None, "empty"]


def test_a_folder_without_answers(tmp_path: Path) -> None:
    assert _answered(tmp_path / "answers") == set()
    with pytest.raises(UserError, match="2 answers are missing, first a, b"):
        _collect(tmp_path / "answers", {"a", "b"}, "rationales")
