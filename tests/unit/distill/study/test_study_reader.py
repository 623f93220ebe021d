"""Rationales in the input: a ceiling, and readers that never saw what they teach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.base.errors import UserError
from cluster.base.tables import read_table, write_table
from distill.config import StudentStage
from distill.study import reader
from distill.study.arms import Reading
from distill.study.folds import fold_folder
from distill.study.job import run_one
from distill.study.reader import PAIRS, rationales, read_in_advance, with_rationales
from distill.study.train import study_task
from mpcot.records import PAIR
from tests.helpers.study_run import LABELS, NAMES, TRAIN, planted_run, shop_run, small_job, small_student
from tests.helpers.tiny_bert import tiny_bert

BY_READER = Reading(by="reader", tokens=32)


def stage(encoder: Path, **changes: Any) -> StudentStage:
    return StudentStage(seed=3, labels=LABELS, perspectives=NAMES, student=small_student(encoder, **changes))


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["pair_id"]: row for row in read_table(folder / PAIRS).to_pylist()}


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    return fold_folder(shop_run(tmp_path / "shop"), 1, 3, 13, tmp_path / "fold")


def test_the_rationales_of_all_perspectives_are_one_text(encoder: Path, fold: Path) -> None:
    own = rationales(fold, stage(encoder), Reading(by="reader"))
    assert own["0-lamp-mug"] == "the shopper wants red lamp a the mug is not"
    assert own["0-mug-lamp"] == "the shopper wants red mug", "the second perspective said nothing"
    assert "0-drill-drill" not in own, "the pair was not judged"
    stated = rationales(fold, stage(encoder), Reading(by="reader", text="rationale+verdict"))
    assert stated["0-mug-lamp"].endswith(", confidence 0.10. the shopper wants red mug")


def test_a_pair_that_was_not_judged_keeps_its_title(fold: Path, tmp_path: Path) -> None:
    read = with_rationales(fold, tmp_path / "read", {"0-lamp-mug": "it is a mug"}, {"1-lamp-mug"})
    before, after = rows_of(fold), rows_of(read)
    assert after["0-lamp-mug"] == before["0-lamp-mug"] | {"title": "the mug. it is a mug"}
    assert after["1-lamp-mug"] == before["1-lamp-mug"] | {"split": "test"}
    assert {i: r for i, r in after.items() if i[2:] != "lamp-mug"} == {
        i: r for i, r in before.items() if i[2:] != "lamp-mug"
    }
    assert (read / "8-targets/targets.parquet").samefile(fold / "8-targets/targets.parquet")


def test_no_reader_is_trained_on_a_query_that_it_reads(
    encoder: Path, fold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, read = rows_of(fold), []

    def told(own: StudentStage, folder: Path, chosen: set[str]) -> dict[str, reader.Taught]:
        after = rows_of(folder)
        learnt = {row["query_id"] for row in after.values() if row["split"] == "train"}
        assert learnt and not learnt & {before[pair_id]["query_id"] for pair_id in chosen}
        assert {before[pair_id]["split"] for pair_id in after if after[pair_id]["split"] == "train"} == {"train"}
        # As many steps as the student takes: 2 epochs of its 32 pairs.
        assert (own.student.train.steps, own.student.max_tokens) == (8, 64)
        assert own.student.alignment_weight == own.student.soft_label_weight == 0
        read.extend(chosen)
        return {pair_id: ([0.5, 0.5], [[1.0], [1.0]]) for pair_id in chosen}

    monkeypatch.setattr(reader, "read_part", told)
    read_in_advance(stage(encoder, soft_label_weight=1.0), BY_READER, fold, tmp_path / "read")
    judged = {pair_id for pair_id, row in before.items() if row["split"] != "test"} - {"0-drill-drill"}
    assert len(read) == len(judged) and {*read} == judged


def test_queries_that_are_kept_together_are_read_together(
    encoder: Path, fold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[set[str]] = []

    def told(own: StudentStage, folder: Path, chosen: set[str]) -> dict[str, reader.Taught]:
        parts.append({pair_id[2:] + str(int(pair_id[0]) % 2) for pair_id in chosen})
        return {pair_id: ([0.5, 0.5], [[1.0], [1.0]]) for pair_id in chosen}

    monkeypatch.setattr(reader, "read_part", told)
    read_in_advance(stage(encoder), BY_READER, fold, tmp_path / "read", kept=("text",))
    assert len(parts) == 2 and not parts[0] & parts[1], "turns of the same colour ask in the same words"


@pytest.mark.parametrize("each", [False, True])
def test_the_student_learns_what_the_readers_say(encoder: Path, fold: Path, tmp_path: Path, each: bool) -> None:
    own = stage(encoder, per_perspective=each, use_unlabelled=True)
    given, folder = read_in_advance(own, BY_READER, fold, tmp_path / "read")
    assert given == own, "the student itself reads no rationale"
    task, plain = study_task(given, folder), study_task(own, fold)
    rows, before = task.train_rows(), plain.train_rows()
    assert [row["title"] for row in rows] == [row["title"] for row in before]
    found = {row["pair_id"]: row for row in [*rows, *task.dev_rows()]}
    assert [i for i, row in found.items() if not row["judged"]] == ["0-drill-drill"]
    assert {row["label"] for row in rows} == {0, 1}
    soft = np.array([row["soft"] for row in found.values() if row["judged"]])
    np.testing.assert_allclose(soft.sum(1), 1, atol=1e-6)
    assert len(np.unique(soft.round(5), axis=0)) > 8, "the teacher has two distributions"
    states = np.array([row["targets"] for row in found.values() if row["judged"]])
    assert states.shape[1:] == (2 if each else 1, plain.config.target_width) and np.abs(states).sum() > 0
    np.testing.assert_allclose(states.mean(axis=0), 0, atol=1e-5)
    assert all(row["target_mask"].all() for row in found.values() if row["judged"])
    if each:
        assert not np.allclose(states[:, 0], states[:, 1])


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("wide"), max_positions=128)


def test_a_ceiling_sees_what_only_rationales_tell(wide: Path, tmp_path: Path) -> None:
    """The titles lose the word that decides. A student with rationales in its input has it, another one guesses."""
    run = planted_run(tmp_path / "planted", noise=0)
    rows = read_table(run / PAIRS).to_pylist()
    for row in rows:
        row["title"] = row["title"].replace("red", "the").replace("blue", "the")
    write_table(run / PAIRS, pa.Table.from_pylist(rows, PAIR))
    train = TRAIN.model_copy(update={"epochs": 4, "learning_rate": 3e-3})
    given = {"folds": 1, "fold": 0, "student": small_student(wide, alignment_weight=0, train=train)}
    blind = run_one(small_job(wide, run, **given))
    sees = run_one(small_job(wide, run, **given, reading=Reading(by="student", tokens=64)))
    assert sees["dev"]["accuracy"] > 0.95 and blind["dev"]["accuracy"] < 0.7
    right = {hashed: own for hashed, own in sees["probabilities"].items() if max(own) > 0.9}
    assert len(right) > 0.9 * len(sees["probabilities"]), "it reads them in the tests as well"


def test_the_readers_states_are_learnt_without_rationales(wide: Path, tmp_path: Path) -> None:
    """Here the titles tell as much as the rationales, so the student can give the reader's states without these."""
    train = TRAIN.model_copy(update={"epochs": 4, "learning_rate": 3e-3})
    student = small_student(wide, train=train, alignment="infonce", soft_label_weight=1.0)
    given = {"folds": 1, "fold": 0, "student": student, "reading": Reading(by="reader", tokens=64)}
    run = planted_run(tmp_path / "planted", noise=0)
    found = run_one(small_job(wide, run, **given))
    assert found["dev"]["alignment_skill"] > 0.1 and found["dev"]["accuracy"] > 0.9
    assert found["train_pairs"] == 240 and len(found["probabilities"]) == 160


@pytest.mark.parametrize("by", ["student", "reader"])
def test_where_nothing_was_read_it_is_said(
    encoder: Path, fold: Path, tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a reader is trained, and before a ceiling would be taken for one."""
    monkeypatch.setattr(reader, "rationales", lambda *_: {"not a pair of the fold": "it is a mug"})
    monkeypatch.setattr(reader, "read_part", lambda *_: pytest.fail("a reader was trained on nothing"))
    with pytest.raises(UserError, match="the teacher has written no rationales"):
        read_in_advance(stage(encoder), Reading(by=by), fold, tmp_path / "out")  # type: ignore[arg-type]
