"""Pairs joined with what the teacher said of them, and its soft labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cluster.base.tables import read_table, write_table
from distill.lrkd.teaching_rows import StudentRows, with_calibrated_labels
from mpcot.records import JUDGEMENT
from tests.helpers.student_rows import row_settings
from tests.helpers.tiny_shop import BINARY, YES, make_run


def test_rows_join_pairs_with_what_the_teacher_said(run_dir: Path) -> None:
    rows = StudentRows(row_settings(run_dir), ("train",))
    assert len(rows) == 32 and len(rows.labels()) == 32
    silent = next(row for row in rows if row["pair_id"] == "0-mug-mug")
    assert silent["label"] == BINARY.index(YES) and silent["weight"] == 1 and silent["judged"]
    assert silent["verdicts"] == [BINARY.index(YES), -1] and silent["target_mask"].tolist() == [True, False]
    assert silent["targets"][0].tolist() == np.eye(6)[BINARY.index(YES)].tolist()


def test_rows_of_a_run_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    path, before = run_dir / "1-pairs/pairs.parquet", StudentRows(row_settings(run_dir), ("train",))[0]
    write_table(path, read_table(path).drop_columns(["bullets", "attributes"]))
    row = StudentRows(row_settings(run_dir), ("train",))[0]
    assert (row["title"], row["bullets"]) == (before["title"], None)


def test_a_pair_that_nobody_judged_still_teaches_its_label(run_dir: Path) -> None:
    row = StudentRows(row_settings(run_dir), ("train",))[0]
    assert row["label"] == BINARY.index(YES) and not row["judged"]
    assert row["verdicts"] == [-1, -1] and not row["target_mask"].any()


def test_soft_labels_are_calibrated(run_dir: Path) -> None:
    plain, sharp = (
        StudentRows(row_settings(run_dir, **fit), ("train",))[1]
        for fit in ({}, {"soft_temperature": 0.5, "soft_bias": (0.0, float(np.log(3)))})
    )
    assert plain["soft"] == [0.25, 0.75] and sharp["soft"] == pytest.approx([1 / 28, 27 / 28], abs=1e-6)


def test_soft_labels_are_fitted_to_the_gold_labels_of_dev(run_dir: Path) -> None:
    path = run_dir / "7-judgements/judgements.parquet"
    said = read_table(path).to_pylist()
    for row in said:
        row["soft"] = [0.5, 0.5] if row["pair_id"].startswith("2-") else [0.9, 0.1]  # the third turn is dev
    write_table(path, pa.Table.from_pylist(said, JUDGEMENT))
    fitted = with_calibrated_labels(row_settings(run_dir))
    # 4 of the 16 dev pairs are relevant: an undecided teacher gets the shares of the labels.
    assert fitted.soft_bias[1] - fitted.soft_bias[0] == pytest.approx(np.log(3), abs=1e-3)
    assert StudentRows(fitted, ("dev",))[0]["soft"] == pytest.approx([0.25, 0.75], abs=1e-3)


def test_without_judged_dev_pairs_soft_labels_stay_raw(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_dir / "7-judgements/judgements.parquet"
    table = read_table(path)
    write_table(path, table.filter(pc.invert(pc.starts_with(table["pair_id"], "2-"))))
    given = row_settings(run_dir)
    assert with_calibrated_labels(given) == given
    assert "no labelled dev pair was judged" in capsys.readouterr().out


def test_rows_are_a_sequence(run_dir: Path) -> None:
    rows = StudentRows(row_settings(run_dir), ("dev", "test"))
    assert rows[-1]["pair_id"] == rows[31]["pair_id"] and len(rows[2:5]) == 3
    with pytest.raises(IndexError):
        rows[32]
