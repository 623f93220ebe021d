"""Which pairs are asked about where some have judgements from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from cluster.base.tables import write_table
from mpcot.given import Given
from mpcot.records import GIVEN_JUDGEMENT
from tests.helpers.scripted_plan import PLAN, batches, pair

NAMES = ("intent", "attributes", "rules")
PAIRS = [pair(number) for number in range(5)]


@pytest.fixture
def given(tmp_path: Path) -> Given:
    """p0 is judged from all perspectives, p1 from one, p2 as a whole, the others not at all."""
    said = [*(("p0", name) for name in NAMES), ("p1", "rules"), ("p2", None), ("elsewhere", "intent")]
    rows = [{"pair_id": pair_id, "perspective": name, "verdict": "E", "origin": "people"} for pair_id, name in said]
    return Given(write_table(tmp_path / "given.parquet", pa.Table.from_pylist(rows, GIVEN_JUDGEMENT)), NAMES)


def asked(given: Given, size: int) -> dict[str, list[str]]:
    found = [row for batch in given.to_ask(batches(PAIRS, size)) for row in batch.to_pylist()]
    return {row["pair_id"]: row["given"] for row in found}


@pytest.mark.parametrize("size", [1, 2, 5])
def test_what_is_judged_is_not_asked_again(given: Given, size: int) -> None:
    assert asked(given, size) == {"p1": ["rules"], "p3": [], "p4": []}
    for nobody, ids in ((False, ["p0", "p2"]), (True, ["p0", "p1", "p2", "p3", "p4"])):
        left = [joined.pairs for joined in given.unasked(batches(PAIRS, size), nobody)]
        assert pa.concat_tables(left)["pair_id"].to_pylist() == ids
        assert all(len(pairs) for pairs in left)


def test_the_teacher_is_asked_from_the_other_perspectives(given: Given) -> None:
    rows = {row["pair_id"]: row for batch in given.to_ask(batches(PAIRS)) for row in batch.to_pylist()}
    assert PLAN.keys(rows["p1"]) == PLAN.keys(PAIRS[1])[:4], "of the three, the last is given"
    assert PLAN.keys(rows["p3"]) == PLAN.keys(PAIRS[3]) == [ask.key for *_, ask in PLAN.asks(PAIRS[3])]


def test_without_such_judgements_all_pairs_are_asked_about(tmp_path: Path) -> None:
    nothing = Given(tmp_path / "nowhere.parquet", NAMES)
    assert asked(nothing, 2) == {row["pair_id"]: [] for row in PAIRS}
    assert list(nothing.unasked(batches(PAIRS), nobody=False)) == []
