from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder, read_manifest
from cluster.base.tables import read_table
from cluster.config import TrainSettings
from distill.config import MlpExtractor, NoExtractor, StudentSettings, StudentStage
from distill.lrkd import LrkdTask, run, tasks
from distill.student.model import Student
from mpcot.config import PerspectiveSettings
from mpcot.sources.config import LabelSettings

TRAIN = TrainSettings(epochs=1, learning_rate=3e-3, global_batch=8, micro_batch=8, precision="fp32")
Stage = Callable[..., StageFolder]


def config(encoder: Path, **student: Any) -> StudentStage:
    given = {"model": str(encoder), "max_tokens": 32, "train": TRAIN, "extractor": MlpExtractor(hidden=8)}
    return StudentStage(
        seed=3,
        labels=LabelSettings(scheme="binary"),
        perspectives=PerspectiveSettings(names=("intent", "rules")),
        student=StudentSettings(**(given | student)),
    )


def lrkd(encoder: Path, folder: StageFolder, **student: Any) -> LrkdTask:
    return tasks(config(encoder, **student), folder)["lrkd"]


def losses(task: LrkdTask, count: int = 8) -> tuple[float, dict[str, float]]:
    model = task.build().eval()
    total, figures = task.loss(model, task.collate(list(task.train_rows()[:count])))
    return total.item(), figures


def test_the_loss_is_the_sum_of_its_weighted_parts(encoder: Path, stage: Stage) -> None:
    full = lrkd(encoder, stage("9-student"), alignment_weight=0.5, soft_label_weight=2, perspective_verdict_weight=3)
    total, parts = losses(full)
    assert set(parts) == {"ce", "alignment", "soft", "verdicts"} and all(value > 0 for value in parts.values())
    assert total == pytest.approx(sum(parts.values()), rel=1e-5)
    doubled = losses(lrkd(encoder, stage("9-student"), alignment_weight=1.0))[1]
    assert doubled["alignment"] == pytest.approx(2 * parts["alignment"], rel=1e-5)
    assert doubled["ce"] == pytest.approx(parts["ce"], rel=1e-5)


@pytest.mark.parametrize(("schedule", "shares"), [("rise", (0, 0.25, 1)), ("fade", (1, 0.75, 0))])
def test_the_weight_of_the_alignment_follows_its_schedule(
    encoder: Path, stage: Stage, schedule: str, shares: tuple[float, ...]
) -> None:
    constant = losses(lrkd(encoder, stage("9-student"), alignment_weight=0.5))[1]["alignment"]
    task = lrkd(encoder, stage("9-student"), alignment_weight=0.5, alignment_schedule=schedule)
    for progress, share in zip((0.0, 0.25, 1.0), shares, strict=True):
        task.progress = progress
        assert losses(task)[1]["alignment"] == pytest.approx(share * constant, rel=1e-5)
        # Losses on dev are compared over the training, so there lambda does not change.
        seen = task.predict(task.build().eval(), task.collate(list(task.dev_rows()[:4])))
        plain = lrkd(encoder, stage("9-student"), alignment_weight=0.5)
        again = plain.predict(plain.build().eval(), plain.collate(list(plain.dev_rows()[:4])))
        assert [row["alignment"] for row in seen] == pytest.approx([row["alignment"] for row in again])


def test_activations_computed_anew_teach_the_same(encoder: Path, stage: Stage) -> None:
    task, found = lrkd(encoder, stage("9-student")), []
    for again in (False, True):
        model = task.build().train()
        if again:
            model.gradient_checkpointing_enable()  # as the harness asks of every model
            assert model.encoder.is_gradient_checkpointing
        torch.manual_seed(1)  # dropout
        task.loss(model, task.collate(list(task.train_rows()[:8])))[0].backward()
        found.append({name: part.grad for name, part in model.named_parameters() if part.grad is not None})
    plain, recomputed = found
    assert plain.keys() == recomputed.keys() and plain["classifier.weight"].abs().sum() > 0
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_loss_is_a_sum_over_examples(encoder: Path, stage: Stage) -> None:
    task = lrkd(encoder, stage("9-student"))
    model, rows = task.build().eval(), task.train_rows()
    whole = task.loss(model, task.collate(rows[:6]))[0]
    halves = [task.loss(model, task.collate(rows[a:b]))[0] for a, b in ((0, 3), (3, 6))]
    torch.testing.assert_close(whole, halves[0] + halves[1])


def test_without_weight_a_part_is_not_computed(encoder: Path, stage: Stage) -> None:
    parts = losses(lrkd(encoder, stage("9-student"), alignment_weight=0, perspective_verdict_weight=0))[1]
    assert set(parts) == {"ce"}


def test_balanced_labels_weigh_the_rare_one_more(encoder: Path, stage: Stage) -> None:
    # A quarter of the pairs is relevant: n / (2 x count).
    task = lrkd(encoder, stage("9-student"), label_weights="balanced")
    assert task.class_weights == pytest.approx((2.0, 2 / 3))


def test_unlabelled_pairs_join_only_when_asked(encoder: Path, stage: Stage) -> None:
    sizes = [len(lrkd(encoder, stage("9-student"), use_unlabelled=use).train_rows()) for use in (False, True)]
    assert sizes == [32, 48]


@pytest.mark.parametrize("target", ["vote", "mean", "concat", "rules"])
def test_one_latent_vector_trains_on_any_target(encoder: Path, stage: Stage, target: str) -> None:
    task = lrkd(encoder, stage("9-student"), per_perspective=False, target=target)
    assert task.config.target_width == (12 if target == "concat" else 6)
    assert losses(task)[1]["alignment"] > 0


def test_dev_figures_hold_the_ratios(encoder: Path, stage: Stage) -> None:
    task = lrkd(encoder, stage("9-student"), alignment_weight=0.5)
    weak = lrkd(encoder, stage("9-student"), alignment_weight=0.05)
    figures = []
    for one in (task, weak):
        model = one.build().eval()
        with torch.no_grad():
            figures.append(one.summarise(one.predict(model, one.collate(list(one.dev_rows())))))
        assert all(p.grad is None for p in model.parameters())
    assert figures[0]["loss"] == pytest.approx(sum(figures[0][k] for k in ("ce", "alignment", "verdicts")))
    for name in ("alignment_over_ce_loss", "alignment_over_ce_gradient"):
        assert figures[0][name] == pytest.approx(10 * figures[1][name], rel=1e-4) and figures[0][name] > 0


def test_the_gradient_is_that_at_the_encoders_output(encoder: Path, stage: Stage) -> None:
    task = lrkd(encoder, stage("9-student"))
    model, batch = task.build().eval(), task.collate(list(task.dev_rows()[:1]))
    states: list[torch.Tensor] = []

    def keep(module: object, inputs: object, output: Any) -> None:
        output.last_hidden_state.retain_grad()
        states.append(output.last_hidden_state)

    hook = model.encoder.register_forward_hook(keep)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    task.parts(model(**inputs), batch, 1.0)["ce"].sum().backward()
    hook.remove()
    with torch.no_grad():
        record = task.predict(model, batch)[0]
    assert states[0].grad is not None
    assert record["ce_gradient"] == pytest.approx(float(states[0].grad.norm()), rel=1e-4)


def test_the_task_travels_without_tensors(encoder: Path, stage: Stage) -> None:
    task = lrkd(encoder, stage("9-student"))
    task.collate(list(task.train_rows()[:2]))  # loads the tokenizer
    parcel = pickle.dumps(task)
    assert len(parcel) < 20_000
    assert losses(pickle.loads(parcel)) == losses(task)


def test_the_same_seed_builds_the_same_student(encoder: Path, stage: Stage) -> None:
    task = lrkd(encoder, stage("9-student"))
    first, second = task.build().state_dict(), task.build().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


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
    for kind, latents in (("lrkd", 2), ("ce_only", 0)):
        student = Student.load(folder.path / kind / "model")
        found = read_table(folder.path / kind / "predictions.parquet").to_pylist()
        assert student.config.latents == latents
        assert [row["split"] for row in found] == ["dev"] * 16 + ["test"] * 16
        for row in found:
            assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
            best = max(range(2), key=row["probabilities"].__getitem__)
            assert row["label"] == student.config.scheme.codes[best]
            assert (row["verdicts"] is not None) == (latents == 2)
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


def test_margins_join_the_loss_within_queries_or_over_the_batch(encoder: Path, stage: Stage) -> None:
    given = {"extractor": NoExtractor(), "per_perspective": False, "margin_mse_weight": 2.0}
    within, whole, double = (
        losses(lrkd(encoder, stage("9-student"), **given | change), count=12)[1]
        for change in ({}, {"margin_pairs": "batch"}, {"margin_pairs": "batch", "margin_mse_weight": 4.0})
    )
    assert set(within) == {"ce", "margin"} and within["margin"] > 0 and within["margin"] != whole["margin"]
    assert double["margin"] == pytest.approx(2 * whole["margin"])


def test_an_auxiliary_student_is_saved_without_its_head(
    encoder: Path, stage: Stage, trained_without_ray: list[str]
) -> None:
    folder = stage("9-student")
    run(config(encoder, auxiliary=True, baseline=False), folder)
    student = Student.load(folder.path / "lrkd/model")
    assert student.extractor is None and student.config.fingerprint == folder.fingerprint
    found = read_table(folder.path / "lrkd/predictions.parquet").to_pylist()
    assert len(found) == 32 and {row["verdicts"] is None for row in found} == {True}


def test_shuffled_targets_change_what_is_aligned_and_nothing_else(encoder: Path, stage: Stage) -> None:
    plain, shuffled = (losses(lrkd(encoder, stage("9-student"), control=name))[1] for name in ("none", "shuffled"))
    assert shuffled["ce"] == plain["ce"] and shuffled["alignment"] != plain["alignment"]


@pytest.mark.parametrize("setting", [{"auxiliary": True}, {"control": "half"}])
def test_what_needs_latents_is_refused_without(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"student.{next(iter(setting))} has no effect without latent vectors"):
        StudentSettings(extractor=NoExtractor(), **setting)


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
