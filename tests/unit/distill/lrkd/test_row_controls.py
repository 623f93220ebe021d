"""Controls: whose vectors a pair gets in place of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.base.errors import UserError
from cluster.base.tables import read_table, write_table
from distill.lrkd.teaching_rows import StudentRows, voters
from mpcot.records import JUDGEMENT, TARGET
from tests.helpers.student_rows import controlled, embedded, row_settings
from tests.helpers.tiny_shop import BINARY, NO


def test_shuffled_rows_get_another_pairs_reasoning_and_keep_their_label(run_dir: Path) -> None:
    own = StudentRows(row_settings(run_dir), ("train",))
    shuffled, again, other = (controlled(run_dir, "shuffled", seed=seed) for seed in (1, 1, 2))
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


def filled(vectors: list[Any]) -> list[Any]:
    return [[0.0] * 6 if v is None else list(v) for v in vectors]


@pytest.mark.parametrize("control", ["same_verdicts", "nearest_title"])
@pytest.mark.parametrize("split", ["train", "dev", "test", "unlabelled"])
def test_a_matched_donor_is_another_training_pair_with_the_same_label_and_verdicts(
    run_dir: Path, control: str, split: str
) -> None:
    said = embedded(run_dir)
    pairs = {row["pair_id"]: row for row in read_table(run_dir / "1-pairs/pairs.parquet").to_pylist()}
    judged = {row["pair_id"]: row for row in read_table(run_dir / "7-judgements/judgements.parquet").to_pylist()}
    rows, own = controlled(run_dir, control, split), StudentRows(row_settings(run_dir), (split,))
    donors = 0
    for row, mine, source in zip(rows, own, rows.sources, strict=True):
        assert {k: v for k, v in row.items() if not k.startswith("target")} == {
            k: v for k, v in mine.items() if not k.startswith("target")
        }
        if source is None:
            assert not row["target_mask"].any()
            continue
        donors += 1
        assert source != row["pair_id"] and pairs[source]["split"] in ("train", "unlabelled")
        assert pairs[source]["label"] == pairs[row["pair_id"]]["label"]
        assert judged[source]["verdicts"] == judged[row["pair_id"]]["verdicts"]
        assert row["targets"].tolist() == filled(said[source]["vectors"])
    assert donors == len(rows) - rows.without_donor - (split == "train")  # one train pair was not judged
    if control == "nearest_title" and split == "train":
        check_nearest(rows, said)


def test_the_pair_itself_says_which_perspective_speaks_for_the_vote(run_dir: Path) -> None:
    """Equally sure perspectives take turns by the pair's id, and not by that of the donor of its vectors."""
    path = run_dir / "7-judgements/judgements.parquet"
    judged = read_table(path).to_pylist()
    for row in judged:
        row |= {"vote": NO, "verdicts": [NO, NO], "perspective_soft": [[0.1, 0.9]] * 2}
    write_table(path, pa.Table.from_pylist(judged, JUDGEMENT))
    path = run_dir / "8-targets/targets.parquet"
    targets = [{"pair_id": row["pair_id"], "vectors": np.eye(6)[:2].tolist()} for row in judged]
    write_table(path, pa.Table.from_pylist(targets, TARGET))
    rows = controlled(run_dir, "same_verdicts", per_perspective=False)
    taught = [row for row in rows if row["target_mask"].any()]
    assert len(taught) > 20
    for row in taught:
        first = voters(row["pair_id"], judged[0], BINARY)[0]
        assert row["targets"][0].argmax() == first
    mixed = controlled(run_dir, "shuffled", per_perspective=False)
    for row, source in zip(mixed, mixed.sources, strict=True):
        if source is not None and row["target_mask"].any():
            assert row["targets"][0].argmax() == voters(source, judged[0], BINARY)[0]


@pytest.mark.parametrize("split", ["train", "dev", "unlabelled"])
def test_pairs_that_are_alike_learn_the_mean_of_their_training_pairs(run_dir: Path, split: str) -> None:
    said = embedded(run_dir)
    pairs = {row["pair_id"]: row for row in read_table(run_dir / "1-pairs/pairs.parquet").to_pylist()}
    judged = {row["pair_id"]: row for row in read_table(run_dir / "7-judgements/judgements.parquet").to_pylist()}
    taught = [i for i in said if pairs[i]["split"] in ("train", "unlabelled")]
    rows = StudentRows(row_settings(run_dir, alike=True), (split,))
    found = 0
    for row in rows:
        own = row["pair_id"]
        if own not in said:
            assert not row["target_mask"].any()
            continue
        alike = [
            i
            for i in taught
            if (pairs[i]["label"], judged[i]["verdicts"]) == (pairs[own]["label"], judged[own]["verdicts"])
        ]
        for place in range(2):
            vectors = [v for i in alike if (v := said[i]["vectors"][place]) is not None]
            assert row["target_mask"][place] == bool(vectors)
            if vectors:
                found += len(vectors) > 1
                np.testing.assert_allclose(row["targets"][place], np.mean(vectors, axis=0), rtol=1e-5, atol=1e-6)
    assert found


def check_nearest(rows: StudentRows, said: dict[str, dict[str, Any]]) -> None:
    pool = dict(rows._matched(rows._teachable()))
    unit = {i: np.array(row["title"]) / np.linalg.norm(row["title"]) for i, row in said.items()}
    for row, source in zip(rows, rows.sources, strict=True):
        pair_id = row["pair_id"]
        others = [i for i, group in pool.items() if i != pair_id and pair_id in pool and group == pool[pair_id]]
        if source is not None:
            assert source == max(others, key=lambda i: float(unit[i] @ unit[pair_id]))


def test_half_of_the_rows_keep_their_own_vectors(run_dir: Path) -> None:
    embedded(run_dir)
    rows = controlled(run_dir, "half", seed=4)
    own = [row["pair_id"] == source for row, source in zip(rows, rows.sources, strict=True)]
    assert len(own) == 32 and sum(own) == 16
    assert rows.sources == controlled(run_dir, "half", seed=4).sources != controlled(run_dir, "half", seed=5).sources


@pytest.mark.parametrize("control", ["permuted", "template"])
def test_a_control_may_have_vectors_of_its_own(run_dir: Path, control: str) -> None:
    said = embedded(run_dir)
    rows = controlled(run_dir, control)
    for row in rows[1:]:
        assert row["targets"].tolist() == filled(said[row["pair_id"]][control])
    assert rows.sources == [row["pair_id"] for row in rows]


def test_query_and_title_in_place_of_every_perspective(run_dir: Path) -> None:
    said = embedded(run_dir)
    row = next(row for row in controlled(run_dir, "query_title") if row["pair_id"] == "0-drill-lamp")
    both = np.array(said["0-drill-lamp"]["query"]) + np.array(said["0-drill-lamp"]["title"])
    np.testing.assert_allclose(row["targets"], [both / np.linalg.norm(both)] * 2, rtol=1e-5)
    silent = next(row for row in controlled(run_dir, "query_title") if row["pair_id"] == "0-mug-lamp")
    assert silent["target_mask"].tolist() == [True, False]


@pytest.mark.parametrize("control", ["permuted", "template", "query_title", "nearest_title"])
def test_a_control_without_its_vectors(run_dir: Path, control: str) -> None:
    with pytest.raises(UserError, match=f"student.control: 8-targets has no vectors for '{control}'"):
        controlled(run_dir, control)
