from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder, read_manifest
from cluster.base.tables import read_table, write_table
from cluster.config import TrainSettings
from cluster.training.task import parameter_groups
from distill.config import MlpExtractor, NoExtractor, StudentSettings, StudentStage
from distill.lrkd.stage import run, tasks
from distill.lrkd.task import LrkdTask
from distill.student.model import Student, load_encoder
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


def test_the_counts_are_of_the_student_that_may_learn_from_more_pairs(
    encoder: Path, stage: Stage, trained_without_ray: list[str]
) -> None:
    folder = stage("9-student")
    run(config(encoder, use_unlabelled=True, unlabelled_balance="gold"), folder)
    manifest = read_manifest(folder.path)
    assert manifest is not None and trained_without_ray == ["student lrkd", "student ce_only"]
    counts = manifest["counts"]
    assert counts["train"] == 48 - counts.get("surplus", 0) > 32 and counts["unusable"] == 0


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


def dev_figures(task: LrkdTask) -> dict[str, float]:
    model = task.build().eval()
    with torch.no_grad():
        return task.summarise(task.predict(model, task.collate(list(task.dev_rows()))))


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


def test_the_skill_is_what_is_gained_over_the_best_constant_vectors(encoder: Path, stage: Stage) -> None:
    task = lrkd(encoder, stage("9-student"), alignment_weight=0.5)
    silent = [row["target_mask"].tolist() == [True, False] for row in task.dev_rows()]
    assert sum(silent) == 4
    figures = dev_figures(task)
    assert figures["alignment_skill"] == pytest.approx(1 - figures["alignment"] / 0.5 / task.constant)
    # A constant is right about rules, which says the same wherever it says anything. A pair whose rules are silent
    # counts intent in full, the others by half.
    intent = [row["targets"][0] for row in task.dev_rows()]
    share = [1.0 if alone else 0.5 for alone in silent]
    mean = sum(w * t for w, t in zip(share, intent, strict=True))
    best = mean / (mean @ mean) ** 0.5
    expected = sum(w * (2 - 2 * float(best @ t)) for w, t in zip(share, intent, strict=True)) / 16
    assert task.constant == pytest.approx(expected, rel=1e-5)
    assert "alignment_skill" not in dev_figures(lrkd(encoder, stage("9-student"), alignment_weight=0))


def test_the_skill_of_infonce_is_over_the_log_of_the_candidates(encoder: Path, stage: Stage) -> None:
    task = lrkd(
        encoder, stage("9-student"), alignment="infonce", alignment_weight=2.0, per_perspective=False, target="intent"
    )
    rows = task.collate(list(task.dev_rows()))
    model = task.build().eval()
    records = task.predict(model, rows)
    # Four pairs have the vector of yes and twelve that of no: an own one and those of the other kind are left.
    assert sorted(record["constant"] for record in records) == pytest.approx([math.log(5)] * 12 + [math.log(13)] * 4)
    found = task.summarise(records)
    constant = (12 * math.log(5) + 4 * math.log(13)) / 16
    assert found["alignment_skill"] == pytest.approx(1 - found["alignment"] / 2 / constant)


def test_lower_layers_stay_as_they_were_and_are_saved(
    encoder: Path, stage: Stage, trained_without_ray: list[str]
) -> None:
    folder, start = stage("9-student"), load_encoder(str(encoder)).state_dict()
    run(config(encoder, frozen_layers=1, baseline=False), folder)
    trained = Student.load(folder.path / "lrkd/model").encoder.state_dict()
    same = {name for name in start if torch.equal(start[name], trained[name])}
    assert {name for name in start if name.startswith(("embeddings.", "encoder.layer.0."))} <= same
    assert "encoder.layer.1.attention.self.query.weight" not in same


def test_what_was_frozen_is_not_in_the_state_and_is_saved_none_the_less(
    encoder: Path, stage: Stage, tmp_path: Path
) -> None:
    task = lrkd(encoder, stage("9-student"), frozen_layers=2)
    model = task.build()
    task.save({name: p.detach() for name, p in model.named_parameters() if p.requires_grad}, tmp_path)
    for name, saved in Student.load(tmp_path).named_parameters():
        assert torch.equal(saved, model.get_parameter(name))


def test_more_frozen_layers_than_there_are(encoder: Path, stage: Stage) -> None:
    with pytest.raises(UserError, match=r"student.frozen_layers: 3 is more than the encoder's 2 layers"):
        lrkd(encoder, stage("9-student"), frozen_layers=3)


def test_heads_have_their_own_learning_rate(encoder: Path, stage: Stage) -> None:
    rates = TRAIN.model_copy(update={"learning_rate": 1e-5, "head_learning_rate": 1e-3})
    task = lrkd(encoder, stage("9-student"), train=rates, frozen_layers=1)
    model = task.build()
    encoder_group, heads = parameter_groups(task, model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    in_heads = {names[id(p)].split(".")[0] for p in heads["params"]}
    assert (encoder_group["lr"], heads["lr"]) == (1e-5, 1e-3)
    assert in_heads == {"extractor", "norm", "classifier", "verdicts"}
    in_encoder = {names[id(p)] for p in encoder_group["params"]}
    assert in_encoder == {n for n, p in model.named_parameters() if n.startswith("encoder.encoder.layer.1.")}
    (alone,) = parameter_groups(lrkd(encoder, stage("9-student")), model)
    assert alone["lr"] == TRAIN.learning_rate


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


def test_the_best_weights_by_ndcg(encoder: Path, stage: Stage, trained_without_ray: list[str]) -> None:
    train = TRAIN.model_copy(update={"epochs": 3, "keep": "best", "best_by": "ndcg"})
    task = lrkd(encoder, stage("9-student"), train=train)
    model = task.build().eval()
    with torch.no_grad():
        records = task.predict(model, task.collate(list(task.dev_rows())))
    found = task.summarise(records)["ndcg"]
    # Each of four queries has one relevant product, which ranks r-th: NDCG is 1 / log2(1 + r).
    yes = [record["probabilities"][0] for record in records]
    ranks = []
    for query in range(4):
        own = [p for p, record in zip(yes, records, strict=True) if record["query"] == query]
        (right,) = (r["probabilities"][0] for r in records if r["query"] == query and r["label"] == 0)
        ranks.append(1 + sum(p > right for p in own))
    assert found == pytest.approx(sum(1 / math.log2(1 + rank) for rank in ranks) / 4)


def test_ndcg_needs_queries_whose_products_differ(encoder: Path, stage: Stage, run_dir: Path) -> None:
    pairs = read_table(run_dir / "1-pairs/pairs.parquet")
    alone = pairs.set_column(pairs.column_names.index("query_id"), "query_id", pairs["pair_id"])
    write_table(run_dir / "1-pairs/pairs.parquet", alone)
    train = TRAIN.model_copy(update={"keep": "best", "best_by": "ndcg"})
    with pytest.raises(UserError, match=r"student.train.best_by: 'ndcg' needs dev queries"):
        lrkd(encoder, stage("9-student"), train=train)


def test_an_unknown_target_is_refused_before_anything_is_trained(
    encoder: Path, stage: Stage, trained_without_ray: list[str]
) -> None:
    with pytest.raises(UserError, match=r"student.target: 'intents' is not one of vote, mean, concat, intent, rules"):
        run(config(encoder, target="intents"), stage("9-student"))
    assert not trained_without_ray
