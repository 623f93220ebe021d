"""Sets of ids by digest."""

from __future__ import annotations

from cluster.base.id_sets import BYTES_PER_ID, IdSet


def test_members_are_known_by_digest_in_the_order_asked() -> None:
    some = IdSet([["b", "a"], [], ["ä", "c" * 1000]])
    assert some.has(["a", "x", "c" * 1000, "ä", ""]).tolist() == [True, False, True, True, False]
    assert len(some) == 4 and some.held.nbytes == 4 * BYTES_PER_ID
    assert IdSet().has(["a"]).tolist() == [False] and not len(IdSet([[]]))
