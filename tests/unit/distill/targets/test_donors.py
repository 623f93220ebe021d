from __future__ import annotations

from collections import Counter

import numpy as np

from distill.targets.donors import nearest_donors, random_donors, ring_donors

POOL = [("a", 1), ("b", 1), ("c", 1), ("d", 2)]
PLACE = {"a": [1.0, 0.0], "b": [0.9, 0.1], "c": [0.0, 1.0], "d": [1.0, 0.0], "x": [0.1, 5.0]}


def vector(pair_id: str) -> np.ndarray:
    return np.array(PLACE[pair_id])


def test_a_ring_gives_every_row_another_one() -> None:
    ids = [str(n) for n in range(20)]
    found = ring_donors(ids, 1)
    assert sorted(found) == sorted(ids) and all(a != b for a, b in zip(ids, found, strict=True))
    assert found == ring_donors(ids, 1) != ring_donors(ids, 2)


def test_a_random_donor_is_any_other_of_the_group_alike_often() -> None:
    found = Counter(random_donors([("b", 1)] * 3000, POOL, seed=0))
    assert set(found) == {"a", "c"} and abs(found["a"] - 1500) < 150
    outside = Counter(random_donors([("x", 1)] * 3000, POOL, seed=0))
    assert set(outside) == {"a", "b", "c"} and min(outside.values()) > 850


def test_a_pair_alone_in_its_group_has_no_donor() -> None:
    rows = [("d", 2), ("x", 2), ("x", 3)]
    assert random_donors(rows, POOL, seed=0) == [None, "d", None]
    assert nearest_donors(rows, POOL, vector) == [None, "d", None]


def test_the_nearest_donor_is_by_cosine_and_within_the_group() -> None:
    rows = [("a", 1), ("b", 1), ("c", 1), ("x", 1)]
    assert nearest_donors(rows, POOL, vector) == ["b", "a", "b", "c"]
