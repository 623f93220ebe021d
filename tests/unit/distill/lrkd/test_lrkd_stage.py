"""Stage 9 as a whole: what it trains, writes, counts, and takes over from an interrupted run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder, read_manifest
from cluster.base.tables import read_table
from distill.lrkd.stage import run
from distill.student.model import Student
from tests.helpers.lrkd_tasks import TRAIN, config, lrkd

Stage = Callable[..., StageFolder]


def test_the_counts_are_of_the_student_that_may_learn_from_more_pairs(
    encoder: Path, stage: Stage, trained_without_ray: list[str]
) -> None:
    folder = stage("9-student")
    run(config(encoder, use_unlabelled=True, unlabelled_balance="gold"), folder)
    manifest = read_manifest(folder.path)
    assert manifest is not None and trained_without_ray == ["student lrkd", "student ce_only"]
    counts = manifest["counts"]
    assert counts["train"] == 48 - counts.get("surplus", 0) > 32 and counts["unusable"] == 0


def test_training_aligns_the_latents_and_teaches_the_verdicts(
    encoder: Path, stage: Stage, trained_without_ray: list[str]
) -> None:
    folder = stage("9-student")
    train = TRAIN.model_copy(update={"epochs": 15})
    run(config(encoder, train=train, alignment_weight=1.0, perspective_verdict_weight=1.0), folder)
    manifest = read_manifest(folder.path)
    assert manifest is not None
    before, after = (manifest["figures"]["lrkd"][f"dev_{when}"] for when in ("before", "after"))
    assert after["alignment"] < 0.3 * before["alignment"] and after["verdicts"] < before["verdicts"]
    assert after["ce"] < before["ce"]


def test_the_stage_writes_two_students_and_their_predictions(
    encoder: Path, stage: Stage, trained_without_ray: list[str]
) -> None:
    folder = stage("9-student")
    run(config(encoder), folder)
    assert trained_without_ray == ["student lrkd", "student ce_only"]
    for kind in ("lrkd", "ce_only"):
        student = Student.load(folder.path / kind / "model")
        found = read_table(folder.path / kind / "predictions.parquet").to_pylist()
        assert student.config.latents == 2
        # The heads of the second student have learnt nothing, so it has none.
        assert student.config.verdicts == student.config.aligned == (kind == "lrkd")
        assert [row["split"] for row in found] == ["dev"] * 16 + ["test"] * 16
        for row in found:
            assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
            best = max(range(2), key=row["probabilities"].__getitem__)
            assert row["label"] == student.config.scheme.codes[best]
            assert (row["verdicts"] is not None) == (kind == "lrkd")
    manifest = read_manifest(folder.path)
    assert manifest is not None
    assert manifest["counts"] == {"train": 32, "unusable": 0, "predicted_dev": 16, "predicted_test": 16}


def test_without_baseline_only_one_student_is_trained(
    encoder: Path, stage: Stage, trained_without_ray: list[str]
) -> None:
    run(config(encoder, baseline=False), stage("9-student"))
    assert trained_without_ray == ["student lrkd"]


def test_an_interrupted_stage_trains_only_what_is_missing(
    encoder: Path, stage: Stage, trained_without_ray: list[str]
) -> None:
    folder = stage("9-student")
    run(config(encoder), folder)
    (folder.path / "manifest.json").unlink()
    (folder.path / "ce_only/model/student.json").unlink()
    (folder.path / "lrkd/predictions.parquet").unlink()
    trained_without_ray.clear()
    run(config(encoder), folder)
    assert trained_without_ray == ["student ce_only"]
    assert (folder.path / "lrkd/predictions.parquet").exists()


def test_a_student_of_other_settings_is_not_taken_for_finished(
    encoder: Path, stage: Stage, trained_without_ray: list[str]
) -> None:
    run(config(encoder, baseline=False), stage("9-student"))
    run(config(encoder, baseline=False), stage("9-student", seed=4))
    assert trained_without_ray == ["student lrkd"] * 2


def test_an_auxiliary_student_is_saved_without_its_head(
    encoder: Path, stage: Stage, trained_without_ray: list[str]
) -> None:
    folder = stage("9-student")
    run(config(encoder, auxiliary=True, baseline=False), folder)
    student = Student.load(folder.path / "lrkd/model")
    assert student.extractor is None and student.config.fingerprint == folder.fingerprint
    found = read_table(folder.path / "lrkd/predictions.parquet").to_pylist()
    assert len(found) == 32 and {row["verdicts"] is None for row in found} == {True}


def test_soft_labels_are_calibrated_when_asked(encoder: Path, stage: Stage, trained_without_ray: list[str]) -> None:
    """The teacher says .75 of the true label and is always right, so that it may be surer."""
    folder = stage("9-student")
    assert lrkd(encoder, folder).train_rows()[1]["soft"] == [0.25, 0.75]
    assert lrkd(encoder, folder, soft_labels="calibrated").train_rows()[1]["soft"][1] > 0.95
    run(config(encoder, soft_labels="calibrated", control="half", baseline=False), folder)
    manifest = read_manifest(folder.path)
    assert manifest is not None
    figures = manifest["figures"]["lrkd"]
    assert figures["soft_labels"]["temperature"] < 1 and len(figures["soft_labels"]["bias"]) == 2
    assert manifest["counts"]["train"] == 32


def test_an_unknown_target_is_refused_before_anything_is_trained(
    encoder: Path, stage: Stage, trained_without_ray: list[str]
) -> None:
    with pytest.raises(UserError, match=r"student.target: 'intents' is not one of vote, mean, concat, intent, rules"):
        run(config(encoder, target="intents"), stage("9-student"))
    assert not trained_without_ray
