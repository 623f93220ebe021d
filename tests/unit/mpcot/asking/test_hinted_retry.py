"""Which pairs are asked once more with a hint, and what that costs of the failures that a stage may have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from cluster.base.tables import write_table
from mpcot.asking import hinted_retry as hinted
from mpcot.asking.answers import Answers
from mpcot.asking.hinted_retry import all_wrong, ask_with_hint
from mpcot.asking.join_answers import AnsweredPairs
from mpcot.asking.plan import GenerationPlan
from mpcot.asking.prompts import HINT
from mpcot.config import RationaleSettings
from mpcot.records import ANSWER, PAIR
from tests.helpers.scripted_plan import scripted_plan

PLAN = scripted_plan(RationaleSettings(samples=2, max_failed_share=0.1))
GOLD = {"right": "E", "mixed": "E", "wrong": "E", "failed": "E", "partly": "E", "dev": "E", "unlabelled": None}


def joined() -> AnsweredPairs:
    """Pairs by what was said of them: a letter is a verdict, a dot a failed answer."""
    verdicts = {"right": "EE", "mixed": "SE", "wrong": "SI", "failed": "..", "partly": ".C", "dev": "SS"}
    rows = [
        {"key": f"{pair}{n}", "pair_id": pair, "perspective": "rules", "sample": n, "rationale": "It is a drill."}
        | ({"verdict": None, "reason": "empty"} if verdict == "." else {"verdict": verdict, "reason": None})
        for pair, said in (verdicts | {"unlabelled": "SS"}).items()
        for n, verdict in enumerate(said)
    ]
    splits = [pair if pair in ("dev", "unlabelled") else "train" for pair in GOLD]
    pairs = pa.table({"pair_id": list(GOLD), "label": list(GOLD.values()), "split": splits})
    return AnsweredPairs(pa.Table.from_pylist(rows, ANSWER), pairs, [])


def test_only_labelled_training_pairs_with_nothing_but_wrong_verdicts() -> None:
    assert all_wrong(joined()) == ["partly", "wrong"]


class Plain(Answers):
    def by_pair(self, again: bool = False) -> Iterator[AnsweredPairs]:
        assert again, "they are read once more when the outcomes are written"
        yield joined()


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is handed to `generate`, with 3 of 100 plain requests failed and 10 of 100 allowed."""
    fixed = {"query_id": "q", "product_id": "x", "locale": "us", "query": "drill", "title": "a drill", "split": "train"}
    rows = [fixed | {"pair_id": pair, "label": gold} for pair, gold in GOLD.items()]
    write_table(tmp_path / "pairs.parquet", pa.Table.from_pylist(rows, PAIR))
    seen: dict[str, Any] = {}

    def generate(plan: GenerationPlan, pairs: Iterator[pa.RecordBatch], folder: Path, label: str) -> str:
        seen.update(plan=plan, pairs=[row for batch in pairs for row in batch.to_pylist()], label=label)
        return "answers"

    monkeypatch.setattr(hinted, "generate", generate)
    plain = Plain(tmp_path, "rationales", 0.1, 100, 100)
    assert ask_with_hint(PLAN, plain, tmp_path / "pairs.parquet", tmp_path, "rationales") == ("answers", 2)
    return seen


def test_each_perspective_is_asked_once_with_the_label_and_under_other_keys(asked: dict[str, Any]) -> None:
    assert [pair["pair_id"] for pair in asked["pairs"]] == ["wrong", "partly"]
    for pair in asked["pairs"]:
        plain, again = list(PLAN.asks(pair)), list(asked["plan"].asks(pair))
        assert len(plain) == 6 and [p.name for p, _, _ in again] == [p.name for p in PLAN.perspectives]
        assert not {ask.key for *_, ask in plain} & {ask.key for *_, ask in again}
        assert all(f"{HINT} the verdict is E" in ask.chat[-1]["content"] for *_, ask in again)
        assert not any(HINT in ask.chat[-1]["content"] for *_, ask in plain)


def test_failures_are_counted_over_both_rounds(asked: dict[str, Any]) -> None:
    """10 % of 100 + 6 requests are 10.6 failures; 3 came in the first round: all 6 of the second may fail."""
    assert asked["plan"].ask.max_failed_share == 1.0
    assert asked["plan"].parameters == PLAN.parameters


def test_nothing_is_asked_where_no_pair_is_all_wrong(tmp_path: Path) -> None:
    class Right(Answers):
        def by_pair(self, again: bool = False) -> Iterator[AnsweredPairs]:
            yield AnsweredPairs(joined().answers.slice(0, 4), joined().pairs, [])

    plain = Right(tmp_path, "rationales", 0.1, 4, 4)
    assert ask_with_hint(PLAN, plain, tmp_path / "pairs.parquet", tmp_path, "rationales") is None


def test_a_retry_that_could_ask_nothing_is_refused() -> None:
    assert RationaleSettings(hinted_retry=True).hinted_retry and not RationaleSettings().hinted_retry
    with pytest.raises(ValidationError, match="hinted_retry has no effect"):
        RationaleSettings(hinted_retry=True, splits=("test",))
