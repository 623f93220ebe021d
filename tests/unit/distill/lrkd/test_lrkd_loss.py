"""The parts of the student's loss, and what weighs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster.base.stage_folder import StageFolder
from distill.config import NoExtractor
from tests.helpers.lrkd_tasks import dev_figures, losses, lrkd

Stage = Callable[..., StageFolder]


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


@pytest.mark.parametrize("target", ["vote", "mean", "concat", "rules"])
def test_one_latent_vector_trains_on_any_target(encoder: Path, stage: Stage, target: str) -> None:
    task = lrkd(encoder, stage("9-student"), per_perspective=False, target=target)
    assert task.config.target_width == (12 if target == "concat" else 6)
    assert losses(task)[1]["alignment"] > 0


def test_margins_join_the_loss_within_queries_or_over_the_batch(encoder: Path, stage: Stage) -> None:
    given = {"extractor": NoExtractor(), "per_perspective": False, "margin_mse_weight": 2.0}
    within, whole, double = (
        losses(lrkd(encoder, stage("9-student"), **given | change), count=12)[1]
        for change in ({}, {"margin_pairs": "batch"}, {"margin_pairs": "batch", "margin_mse_weight": 4.0})
    )
    assert set(within) == {"ce", "margin"} and within["margin"] > 0 and within["margin"] != whole["margin"]
    assert double["margin"] == pytest.approx(2 * whole["margin"])


def test_shuffled_targets_change_what_is_aligned_and_nothing_else(encoder: Path, stage: Stage) -> None:
    plain, shuffled = (losses(lrkd(encoder, stage("9-student"), control=name))[1] for name in ("none", "shuffled"))
    assert shuffled["ce"] == plain["ce"] and shuffled["alignment"] != plain["alignment"]


def test_an_unlabelled_pair_weighs_as_much_in_all_parts_and_in_the_mean(encoder: Path, stage: Stage) -> None:
    given = {"use_unlabelled": True, "soft_label_weight": 1.0, "alignment_weight": 1.0}
    full, half = (lrkd(encoder, stage("9-student"), **given, unlabelled_weight=w) for w in (1.0, 0.5))
    votes = [i for i, row in enumerate(full.train_rows()) if not row["gold"]][:4]
    golds = [i for i, row in enumerate(full.train_rows()) if row["gold"]][1:4]
    found = []
    for task in (full, half):
        model, rows = task.build().eval(), task.train_rows()
        found.append(
            [task.loss(model, task.collate([rows[i] for i in own]))[1] for own in (votes, golds, votes + golds)]
        )
        sure = sum(full.train_rows()[i]["weight"] for i in votes)
        units = task.collate([rows[i] for i in votes + golds])["units"]
        assert 0 < sure < 4 and units == pytest.approx(sure * task.student.unlabelled_weight + 3)
    assert set(found[0][0]) == {"ce", "alignment", "soft", "verdicts"}
    for name, whole in found[0][0].items():
        assert found[1][0][name] == pytest.approx(whole / 2, rel=1e-5)
        assert found[1][1][name] == pytest.approx(found[0][1][name], rel=1e-5)
        assert found[1][2][name] == pytest.approx(whole / 2 + found[0][1][name], rel=1e-4)


def test_the_label_is_smoothed_in_training_and_not_on_dev(encoder: Path, stage: Stage) -> None:
    plain, smooth = (lrkd(encoder, stage("9-student"), teacher_smoothing=share) for share in (0.0, 0.25))
    assert dev_figures(plain)["ce"] == dev_figures(smooth)["ce"]
    batch = plain.collate(list(plain.train_rows()[:6]))
    assert batch["judged"].tolist() == [False] + [True] * 5
    model = plain.build().eval()
    logs = model(**{n: batch[n] for n in ("input_ids", "attention_mask", "token_type_ids")}).logits.log_softmax(-1)
    expected = -logs[0, batch["label"][0]]
    for log, label in zip(logs[1:], batch["label"][1:], strict=True):
        # The teacher gives .75 to the gold label of every pair.
        expected = expected - (0.75 + 0.25 * 0.75) * log[label] - 0.25 * 0.25 * log[1 - label]
    assert smooth.loss(model, batch)[1]["ce"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["ranknet", "lambdaloss", "listnet"])
def test_ranking_orders_the_products_of_a_query(
    encoder: Path, stage: Stage, trained_without_ray: list[str], kind: str
) -> None:
    task = lrkd(encoder, stage("9-student"), ranking=kind, ranking_weight=2.0)
    rows = task.train_rows()
    groups = task.groups(rows)
    assert groups is not None and len(set(groups)) == 8 and groups[:5] == [0, 0, 0, 0, 1]
    total, parts = losses(task)
    assert parts["ranking"] > 0 and total == pytest.approx(sum(parts.values()), rel=1e-5)
    once = losses(lrkd(encoder, stage("9-student"), ranking=kind, ranking_weight=1.0))[1]
    assert parts["ranking"] == pytest.approx(2 * once["ranking"], rel=1e-5)
    assert lrkd(encoder, stage("9-student")).groups(rows) is None
