"""Sets of ids by digest: what is lost, unknown and doubled in a ledger."""

from __future__ import annotations

import pytest

from cluster.base import id_sets as ids_module
from cluster.base.id_sets import BYTES_PER_ID, IdSet


@pytest.fixture(params=[2, 65536], autouse=True)
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids_module, "CHUNK", request.param)


def texts(found: IdSet, *batches: list[str]) -> list[str]:
    return found.first(batches, 100)


def test_members_are_known_by_digest_in_the_order_asked() -> None:
    some = IdSet([["b", "a"], [], ["ä", "c" * 1000]])
    assert some.has(["a", "x", "c" * 1000, "ä", ""]).tolist() == [True, False, True, True, False]
    assert len(some) == 4 and some.held.nbytes == 4 * BYTES_PER_ID
    assert IdSet().has(["a"]).tolist() == [False] and not len(IdSet([[]]))


def test_differences_and_repeats_count_each_id_once() -> None:
    left, right = ["a", "b", "b", "c", "d", "d", "d"], ["b", "d", "e"]
    first, second = IdSet([left]), IdSet([right])
    assert len(first.minus(second)) == 2 and texts(first.minus(second), left) == ["a", "c"]
    assert texts(first.both(second), left) == ["b", "d"] and len(first.both(second)) == 2
    assert texts(first.repeated(), left) == ["b", "d"] and len(first.repeated()) == 2
    assert not len(first.minus(first)) and not len(second.repeated())
    assert len(first.minus(IdSet())) == 4 and not len(IdSet().minus(first))


def test_the_first_ids_are_found_in_the_batches() -> None:
    some = IdSet([[f"{n:03d}" for n in range(100)]])
    batches = [[f"{n:03d}" for n in range(start, start + 10)] for start in range(190, -1, -10)]
    assert some.first([*batches, *batches], 3) == ["000", "001", "002"]
    assert some.first([["x", "007"]], 3) == ["007"]
