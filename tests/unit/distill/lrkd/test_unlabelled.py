"""Unlabelled pairs: which of them teach, and how much a vote counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.base.tables import read_table, write_table
from distill.lrkd.teaching_rows import StudentRows
from distill.lrkd.unlabelled import surplus, vote_weight
from tests.helpers.student_rows import row_settings
from tests.helpers.tiny_shop import BINARY, YES


def test_unlabelled_pairs_learn_the_vote_weighted_by_how_sure_it_is_on_dev(run_dir: Path) -> None:
    """Every vote has a probability of 3/4. On dev all are right, so that the temperature is the lowest, 0.2."""
    rows = StudentRows(row_settings(run_dir), ("unlabelled",))
    assert len(rows) == 16
    assert [row["weight"] for row in rows] == pytest.approx([3**5 / (3**5 + 1)] * 16, abs=1e-3)
    assert rows.labels() == [row["label"] for row in rows] and rows.labels().count(BINARY.index(YES)) == 4


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
    rows = StudentRows(row_settings(run_dir, unlabelled_balance="gold"), ("train", "unlabelled"))
    assert rows.labels()[32:] == [BINARY.index(YES)] * 4 and len(rows) == 36
    assert (rows.surplus, rows.unusable) == (12, 0)
    assert len(StudentRows(row_settings(run_dir), ("train", "unlabelled"))) == 48


def test_without_a_judged_dev_pair_a_vote_weighs_as_much_as_perspectives_agree() -> None:
    vote = {"vote": YES, "agreement": 0.5, "soft": [0.8, 0.2] if BINARY.index(YES) == 0 else [0.2, 0.8]}
    assert vote_weight(vote, None, BINARY) == 0.5
    # p^(1/T), scaled: at T = 2 the square roots 0.894 and 0.447 make 2/3.
    assert vote_weight(vote, 2.0, BINARY) == pytest.approx(2 / 3)
