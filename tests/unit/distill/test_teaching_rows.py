from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.base.tables import read_table, write_table
from distill.teaching_rows import RowSettings, StudentRows, combine_targets, voters
from mpcot.schemes.scheme import load_scheme
from tests.helpers.tiny_shop import make_run

BINARY = load_scheme("binary")
YES, NO = BINARY.codes
FIRST, SECOND = np.array([1.0, 0.0], np.float32), np.array([0.0, 3.0], np.float32)


def settings(run_dir: Path = Path(), **changes: Any) -> RowSettings:
    given: dict[str, Any] = {
        "pairs": run_dir / "1-pairs/pairs.parquet",
        "judgements": run_dir / "7-judgements/judgements.parquet",
        "targets": run_dir / "8-targets/targets.parquet",
        "scheme": BINARY,
        "perspectives": ("intent", "rules"),
        "per_perspective": True,
        "target": "vote",
        "width": 6,
    }
    return RowSettings(**(given | changes))


@pytest.mark.parametrize(
    ("target", "expected"),
    [("vote", [[0, 3]]), ("mean", [[0.5, 1.5]]), ("concat", [[1, 0, 0, 3]]), ("intent", [[1, 0]])],
)
def test_one_target_of_two(target: str, expected: list[list[float]]) -> None:
    given = settings(width=2, per_perspective=False, target=target)
    combined, mask = combine_targets([FIRST, SECOND], [1], given)
    assert combined.tolist() == expected and mask.tolist() == [True]


@pytest.mark.parametrize(
    ("target", "expected", "present"),
    [("vote", [0, 0], False), ("mean", [1, 0], True), ("concat", [0] * 4, False), ("rules", [0, 0], False)],
)
def test_one_target_when_the_voting_one_is_missing(target: str, expected: list[float], present: bool) -> None:
    given = settings(width=2, per_perspective=False, target=target)
    combined, mask = combine_targets([FIRST, None], [1], given)
    assert combined[0].tolist() == expected and mask.tolist() == [present]


def test_the_surest_perspective_speaks_for_the_vote() -> None:
    said: dict[str, Any] = {"vote": YES, "verdicts": [YES, NO, YES, None, YES]}
    shares = [[0.6, 0.4], [0.0, 1.0], [0.9, 0.1], None, [0.7, 0.3]]
    order = voters("p", said | {"perspective_soft": shares}, BINARY)
    assert order == [2, 4, 0]
    given = settings(width=2, per_perspective=False, perspectives=tuple("abcde"))
    combined, mask = combine_targets([FIRST, FIRST, None, None, SECOND], order, given)
    assert combined.tolist() == [[0, 3]] and mask.tolist() == [True], "the surest one that has a vector"


def test_equally_sure_perspectives_take_turns_by_pair() -> None:
    said: dict[str, Any] = {"vote": YES, "verdicts": [YES] * 3, "perspective_soft": [[0.9, 0.1]] * 3}
    first = [voters(f"p{n}", said, BINARY)[0] for n in range(600)]
    assert [voters(f"p{n}", said, BINARY)[0] for n in range(600)] == first
    assert all(150 < first.count(place) < 250 for place in range(3))


def test_a_target_per_perspective() -> None:
    combined, mask = combine_targets([None, SECOND], [1], settings(width=2))
    assert combined.tolist() == [[0, 0], [0, 3]] and mask.tolist() == [False, True]


def test_rows_join_pairs_with_what_the_teacher_said(run_dir: Path) -> None:
    rows = StudentRows(settings(run_dir), ("train",))
    assert len(rows) == 32 and len(rows.labels()) == 32
    silent = next(row for row in rows if row["pair_id"] == "0-mug-mug")
    assert silent["label"] == BINARY.index(YES) and silent["weight"] == 1 and silent["judged"]
    assert silent["verdicts"] == [BINARY.index(YES), -1] and silent["target_mask"].tolist() == [True, False]
    assert silent["targets"][0].tolist() == np.eye(6)[BINARY.index(YES)].tolist()


def test_rows_of_a_run_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    path, before = run_dir / "1-pairs/pairs.parquet", StudentRows(settings(run_dir), ("train",))[0]
    write_table(path, read_table(path).drop_columns(["bullets", "attributes"]))
    row = StudentRows(settings(run_dir), ("train",))[0]
    assert (row["title"], row["bullets"]) == (before["title"], None)


def test_a_pair_that_nobody_judged_still_teaches_its_label(run_dir: Path) -> None:
    row = StudentRows(settings(run_dir), ("train",))[0]
    assert row["label"] == BINARY.index(YES) and not row["judged"]
    assert row["verdicts"] == [-1, -1] and not row["target_mask"].any()


def test_unlabelled_pairs_learn_the_vote_weighted_by_agreement(run_dir: Path) -> None:
    rows = StudentRows(settings(run_dir), ("unlabelled",))
    assert len(rows) == 16 and {row["weight"] for row in rows} == {0.5}
    assert rows.labels() == [row["label"] for row in rows] and rows.labels().count(BINARY.index(YES)) == 4


def test_shuffled_rows_get_another_pairs_reasoning_and_keep_their_label(run_dir: Path) -> None:
    own, shuffled, again, other = (StudentRows(settings(run_dir, shuffle=seed), ("train",)) for seed in (None, 1, 1, 2))
    assert shuffled.sources == again.sources != other.sources
    assert sorted(shuffled.sources) == sorted(own.sources)
    assert all(a != b for a, b in zip(shuffled.sources, own.sources, strict=True))
    at = {row["pair_id"]: row for row in own}
    for row, source in zip(shuffled, shuffled.sources, strict=True):
        mine, given = at[row["pair_id"]], at[source]
        assert [row[k] for k in ("query", "label", "judged", "soft")] == [
            mine[k] for k in ("query", "label", "judged", "soft")
        ]
        assert row["verdicts"] == given["verdicts"] and row["targets"].tolist() == given["targets"].tolist()
        assert row["target_mask"].tolist() == given["target_mask"].tolist()


def test_rows_are_a_sequence(run_dir: Path) -> None:
    rows = StudentRows(settings(run_dir), ("dev", "test"))
    assert rows[-1]["pair_id"] == rows[31]["pair_id"] and len(rows[2:5]) == 3
    with pytest.raises(IndexError):
        rows[32]
