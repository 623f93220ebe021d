from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.base.tables import read_table, write_table
from distill.teaching_rows import RowSettings, StudentRows, combine_targets
from distill.unlabelled import surplus, vote_weight
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
    combined, mask = combine_targets([FIRST, SECOND], [NO, YES], YES, given)
    assert combined.tolist() == expected and mask.tolist() == [True]


@pytest.mark.parametrize(
    ("target", "expected", "present"),
    [("vote", [0, 0], False), ("mean", [1, 0], True), ("concat", [0] * 4, False), ("rules", [0, 0], False)],
)
def test_one_target_when_the_voting_one_is_missing(target: str, expected: list[float], present: bool) -> None:
    given = settings(width=2, per_perspective=False, target=target)
    combined, mask = combine_targets([FIRST, None], [NO, YES], YES, given)
    assert combined[0].tolist() == expected and mask.tolist() == [present]


def test_a_target_per_perspective() -> None:
    combined, mask = combine_targets([None, SECOND], [NO, YES], YES, settings(width=2))
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


def test_unlabelled_pairs_learn_the_vote_weighted_by_how_sure_it_is_on_dev(run_dir: Path) -> None:
    """Every vote has a probability of 3/4. On dev all are right, so that the temperature is the lowest, 0.2."""
    rows = StudentRows(settings(run_dir), ("unlabelled",))
    assert len(rows) == 16
    assert [row["weight"] for row in rows] == pytest.approx([3**5 / (3**5 + 1)] * 16, abs=1e-3)
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


def test_surplus_votes_are_left_out_by_a_hash() -> None:
    # 3 of 4 training labels are A, so that of 8 votes at most 6 may be A and 2 B; C is never a training label.
    gold = [(f"t{n}", "AAAB"[n], "train") for n in range(4)] + [("d", "C", "dev")]
    votes = {f"u{n}": "ABBBBBBC"[n] for n in range(8)}
    open_pairs = [(name, None, "unlabelled") for name in (*votes, "unjudged")]
    dropped = surplus([*gold, *open_pairs], votes)
    assert len(dropped & {f"u{n}" for n in range(1, 7)}) == 4 and dropped >= {"u7"} and len(dropped) == 5
    assert surplus([*reversed(open_pairs), *gold], votes) == dropped


def test_balanced_rows_have_no_more_of_a_vote_than_the_labels_have(run_dir: Path) -> None:
    """Of the shop's training labels, and of its unlabelled votes, one in four is yes; more yes than that are cut."""
    path = run_dir / "7-judgements/judgements.parquet"
    table = read_table(path)
    votes = [YES if own.startswith("4-") else vote for own, vote in
             zip(table["pair_id"].to_pylist(), table["vote"].to_pylist(), strict=True)]  # fmt: skip
    write_table(path, table.set_column(table.column_names.index("vote"), "vote", [votes]))
    rows = StudentRows(settings(run_dir, unlabelled_balance="gold"), ("train", "unlabelled"))
    assert rows.labels()[32:] == [BINARY.index(YES)] * 4 and len(rows) == 36
    assert (rows.surplus, rows.unusable) == (12, 0)
    assert len(StudentRows(settings(run_dir), ("train", "unlabelled"))) == 48


def test_without_a_judged_dev_pair_a_vote_weighs_as_much_as_perspectives_agree() -> None:
    vote = {"vote": YES, "agreement": 0.5, "soft": [0.8, 0.2] if BINARY.index(YES) == 0 else [0.2, 0.8]}
    assert vote_weight(vote, None, BINARY) == 0.5
    # p^(1/T), scaled: at T = 2 the square roots 0.894 and 0.447 make 2/3.
    assert vote_weight(vote, 2.0, BINARY) == pytest.approx(2 / 3)
