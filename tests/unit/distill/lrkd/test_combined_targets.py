"""The vectors of several perspectives as the targets of a student, and which perspective speaks for the vote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.base.errors import UserError
from cluster.base.tables import read_table
from distill.config import TargetSettings
from distill.lrkd.teaching_rows import StudentRows, combine_targets, voters
from distill.targets.linear_map import MAP, fit_maps, save_maps, training_pairs
from tests.helpers.student_rows import controlled, embedded, row_settings
from tests.helpers.tiny_shop import BINARY, NO, YES

RESIDUAL = TargetSettings(transform="residual", dimensions=3)
FIRST, SECOND = np.array([1.0, 0.0], np.float32), np.array([0.0, 3.0], np.float32)


@pytest.mark.parametrize(
    ("target", "expected"),
    [("vote", [[0, 3]]), ("mean", [[0.5, 1.5]]), ("concat", [[1, 0, 0, 3]]), ("intent", [[1, 0]])],
)
def test_one_target_of_two(target: str, expected: list[list[float]]) -> None:
    given = row_settings(width=2, per_perspective=False, target=target)
    combined, mask = combine_targets([FIRST, SECOND], [1], given)
    assert combined.tolist() == expected and mask.tolist() == [True]


@pytest.mark.parametrize(
    ("target", "expected", "present"),
    [("vote", [0, 0], False), ("mean", [1, 0], True), ("concat", [0] * 4, False), ("rules", [0, 0], False)],
)
def test_one_target_when_the_voting_one_is_missing(target: str, expected: list[float], present: bool) -> None:
    given = row_settings(width=2, per_perspective=False, target=target)
    combined, mask = combine_targets([FIRST, None], [1], given)
    assert combined[0].tolist() == expected and mask.tolist() == [present]


def test_the_surest_perspective_speaks_for_the_vote() -> None:
    said: dict[str, Any] = {"vote": YES, "verdicts": [YES, NO, YES, None, YES]}
    shares = [[0.6, 0.4], [0.0, 1.0], [0.9, 0.1], None, [0.7, 0.3]]
    order = voters("p", said | {"perspective_soft": shares}, BINARY)
    assert order == [2, 4, 0]
    given = row_settings(width=2, per_perspective=False, perspectives=tuple("abcde"))
    combined, mask = combine_targets([FIRST, FIRST, None, None, SECOND], order, given)
    assert combined.tolist() == [[0, 3]] and mask.tolist() == [True], "the surest one that has a vector"


def test_equally_sure_perspectives_take_turns_by_pair() -> None:
    said: dict[str, Any] = {"vote": YES, "verdicts": [YES] * 3, "perspective_soft": [[0.9, 0.1]] * 3}
    first = [voters(f"p{n}", said, BINARY)[0] for n in range(600)]
    assert [voters(f"p{n}", said, BINARY)[0] for n in range(600)] == first
    assert all(150 < first.count(place) < 250 for place in range(3))


def test_a_target_per_perspective() -> None:
    combined, mask = combine_targets([None, SECOND], [1], row_settings(width=2))
    assert combined.tolist() == [[0, 0], [0, 3]] and mask.tolist() == [False, True]


@pytest.mark.parametrize(
    ("target", "per_perspective", "places", "width"),
    [
        ("vote", True, 2, 3),
        ("vote", False, 1, 3),
        ("mean", False, 1, 3),
        ("concat", False, 1, 6),
        ("rules", False, 1, 3),
    ],
)
def test_transformed_vectors_are_combined_as_others_are(
    run_dir: Path, target: str, per_perspective: bool, places: int, width: int
) -> None:
    said = embedded(run_dir)["0-drill-lamp"]
    path = run_dir / "8-targets/targets.parquet"
    maps = fit_maps(path, training_pairs(run_dir / "1-pairs/pairs.parquet"), RESIDUAL)
    save_maps(path.parent / MAP, maps)
    given = row_settings(run_dir, width=3, target=target, per_perspective=per_perspective)
    row = next(row for row in StudentRows(given, ("train",)) if row["pair_id"] == "0-drill-lamp")
    assert row["targets"].shape == (places, width) and row["target_mask"].tolist() == [True] * places
    features = np.array(said["query"] + said["title"], np.float32)
    first, second = maps["vectors"].apply(said["vectors"], features)
    assert first is not None and second is not None
    judged = next(row for row in read_table(given.judgements).to_pylist() if row["pair_id"] == "0-drill-lamp")
    made = {
        "vote": [(first, second)[voters("0-drill-lamp", judged, given.scheme)[0]]],
        "mean": [(first + second) / 2],
        "concat": [np.concatenate([first, second])],
        "rules": [second],
    }
    np.testing.assert_allclose(row["targets"], [first, second] if per_perspective else made[target], rtol=1e-4)


def test_centred_vectors_of_the_training_pairs_have_mean_0(run_dir: Path) -> None:
    embedded(run_dir)
    path = run_dir / "8-targets/targets.parquet"
    centred = TargetSettings(transform="centred", controls=("template",))
    save_maps(path.parent / MAP, fit_maps(path, training_pairs(run_dir / "1-pairs/pairs.parquet"), centred))
    for control in ("none", "template"):
        rows = controlled(run_dir, control)
        there = np.array([row["target_mask"] for row in rows])
        vectors = np.array([row["targets"] for row in rows])
        np.testing.assert_allclose(vectors.sum(0) / there.sum(0)[:, None], np.zeros((2, 6)), atol=1e-5)
    with pytest.raises(UserError, match=r"no vectors for 'permuted'"):
        controlled(run_dir, "permuted")
