"""What a study consists of, as data: rows, trials of the same number for each, keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.base.errors import UserError
from distill.config import GatExtractor, PolyExtractor, StudentSettings
from distill.study.arms import StudyRow, based_on, load_rows, student_of
from distill.study.config import StudyConfig, StudyWorkers, Tuning
from distill.study.runs import final_runs, trial_runs, trials

NAMES = ("intent", "rules")


def config(**changes: Any) -> StudyConfig:
    return StudyConfig(**({"data": [{"name": "a", "run": "runs/a"}]} | changes))


def shipped(settings: StudyConfig) -> dict[str, StudyRow]:
    """The shipped rows by name, the last two on top of LRKD with one code per perspective."""
    rows = load_rows(settings, NAMES)
    best = next(row for row in rows if row.name == "lrkd_per_perspective")
    return {row.name: based_on(row, best) if row.of_best else row for row in rows}


def test_the_shipped_rows_are_those_of_a_result_table() -> None:
    rows = shipped(config())
    assert list(rows) == [
        *("ce_only", "kl", "margin_mse", "auxiliary", "lrkd_mlp", "lrkd_poly", "lrkd_gat", "lrkd_per_perspective"),
        *("lrkd_infonce", "lrkd_soft", "lrkd_fade"),
        *("lrkd_only_intent", "lrkd_only_rules", "shuffled", "lambda_zero"),
    ]
    assert len({row.title for row in rows.values()}) == len(rows)


def test_rows_that_learn_the_vote_need_unlabelled_pairs() -> None:
    rows = {row.name: row for row in load_rows(config(), NAMES, unlabelled=True)}
    assert set(rows) - {row.name for row in load_rows(config(), NAMES)} == {"ce_votes", "lrkd_votes"}
    plain = student_of(rows["lrkd_poly"], config().student)
    assert student_of(rows["lrkd_votes"], config().student) == plain.model_copy(update={"use_unlabelled": True})


def test_every_row_is_a_student_on_labels_only_and_what_it_is_named_for() -> None:
    settings = config(student=StudentSettings(max_tokens=64, label_weights="balanced"))
    plain = settings.student.plain()
    found = {name: trials(row, settings)[0] for name, row in shipped(settings).items()}
    own = {
        name: {k for k in StudentSettings.model_fields if getattr(s, k) != getattr(plain, k)} - {"train"}
        for name, s in found.items()
    }
    latent = {"extractor", "alignment_weight"}
    normal = {name: fields - {"normalise_targets"} for name, fields in own.items()}
    assert normal == {
        "ce_only": set(),
        "kl": {"soft_label_weight"},
        "margin_mse": {"margin_mse_weight", "margin_pairs"},
        "auxiliary": latent | {"auxiliary"},
        "lrkd_mlp": latent,
        "lrkd_poly": latent,
        "lrkd_gat": latent,
        "lrkd_per_perspective": latent | {"per_perspective", "perspective_verdict_weight"},
        "lrkd_infonce": latent | {"alignment"},
        "lrkd_soft": latent | {"soft_label_weight"},
        "lrkd_fade": latent | {"alignment_schedule"},
        "lrkd_only_intent": latent | {"target"},
        "lrkd_only_rules": latent | {"target"},
        "shuffled": latent | {"per_perspective", "perspective_verdict_weight", "control"},
        "lambda_zero": {"extractor", "per_perspective"},
    }
    assert found["lrkd_only_rules"].target == "rules" and found["lrkd_only_rules"].max_tokens == 64


def test_every_row_has_the_same_budget_of_different_trials() -> None:
    settings = config(tuning=Tuning(trials=4))
    for row in shipped(settings).values():
        drawn = trials(row, settings)
        assert len(drawn) == 4 and len({s.model_dump_json() for s in drawn}) == 4, row.name
        assert {s.train.learning_rate for s in drawn} <= set(settings.tuning.learning_rate)
        assert {s.train.epochs for s in drawn} <= set(settings.tuning.epochs)


def test_rows_with_the_same_knobs_get_the_same_trials() -> None:
    settings = config(tuning=Tuning(trials=3))
    rows = shipped(settings)

    def knobs(name: str) -> list[tuple[Any, ...]]:
        found = trials(rows[name], settings)
        return [(s.train.learning_rate, s.train.epochs, s.alignment_weight, s.normalise_targets) for s in found]

    assert knobs("lrkd_mlp") == knobs("lrkd_gat") == knobs("shuffled") == knobs("auxiliary")
    assert [k[:2] for k in knobs("ce_only")] == [k[:2] for k in knobs("lambda_zero")]


def test_normalisation_is_no_knob_where_it_has_no_effect() -> None:
    tuning = Tuning(trials=2, learning_rate=(1e-4,), epochs=(1,), teacher_weight=(1.0,))
    row = shipped(config())["lrkd_mlp"]
    assert {s.normalise_targets for s in trials(row, config(tuning=tuning))} == {True, False}
    with pytest.raises(UserError, match="1 combinations"):
        trials(row, config(tuning=tuning, student=StudentSettings(alignment="cosine")))


def test_a_row_that_cannot_be_tuned_as_much_as_others_is_refused() -> None:
    settings = config(tuning=Tuning(trials=7))
    with pytest.raises(UserError, match=r"tuning.trials: 7 is more than the 6 combinations .* row ce_only"):
        trials(shipped(settings)["ce_only"], settings)


def test_final_runs_are_every_seed_on_every_fold_and_trials_see_the_first_of_both() -> None:
    settings = config(seeds=(4, 5), folds=3)
    row = shipped(settings)["kl"]
    first = trial_runs("a", row, settings)
    assert {(run.purpose, run.seed, run.fold) for run in first} == {("trial", 4, 0)}
    finals = final_runs("a", row, first[2].student, settings)
    assert [(run.seed, run.fold) for run in finals] == [(s, f) for s in (4, 5) for f in range(3)]
    assert {run.student for run in finals} == {first[2].student}


def test_a_key_depends_on_all_that_decides_a_run_and_on_nothing_else() -> None:
    settings = config()
    run = trial_runs("a", shipped(settings)["lrkd_mlp"], settings)[0]
    key = run.key(settings, "data", "model")
    student = run.student

    def other(**changes: Any) -> str:
        return replace(run, **changes).key(settings, "data", "model")

    different = [
        run.key(settings, "other data", "model"),
        run.key(settings, "data", "other model"),
        run.key(config(seed=14), "data", "model"),
        run.key(config(folds=4), "data", "model"),
        other(seed=9),
        other(fold=1),
        other(row="lrkd_gat"),
        other(purpose="final"),
        other(student=student.model_copy(update={"alignment_weight": 0.7})),
        other(student=student.model_copy(update={"extractor": PolyExtractor()})),
        other(student=student.model_copy(update={"extractor": GatExtractor()})),
        other(student=student.model_copy(update={"max_tokens": 63})),
    ]
    assert len({key, *different}) == 1 + len(different)
    same = [
        other(student=student.model_copy(update={"model": "elsewhere/encoder"})),
        run.key(config(workers=StudyWorkers(cpus_per_run=2), bootstrap_resamples=9, name="b"), "data", "model"),
    ]
    assert set(same) == {key}
    # Without folds no query is dealt, so the seed of the dealing decides nothing.
    assert run.key(config(folds=1, seed=1), "d", "m") == run.key(config(folds=1, seed=2), "d", "m")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rows": ["ce_only", "lrkd"]}, "rows: 'lrkd' is not in .*arms.toml, which has ce_only, kl"),
        ({"rows": ["lrkd_mlp"]}, "0 of lrkd_mlp have the role baseline; give 1 to 1"),
        ({"rows": ["ce_only", "kl"]}, "0 of ce_only, kl have the role candidate"),
        ({"rows_file": "nowhere.toml"}, "rows_file: nowhere.toml does not describe rows"),
    ],
)
def test_wrong_rows_are_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_rows(config(**changes), NAMES)


def test_a_row_of_ones_own_and_its_wrong_change(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    text = '[plain]\ntitle = "P"\nrole = "baseline"\n[mine]\ntitle = "M"\nrole = "candidate"\n'
    own.write_text(text + 'changes = { alignment = "infonce", extractor = { kind = "mlp", hidden = 4 } }\n')
    settings = config(rows_file=str(own))
    student = student_of(load_rows(settings, NAMES)[1], settings.student)
    assert student.alignment == "infonce" and student.extractor.kind == "mlp" and student.soft_label_weight == 0
    own.write_text(text + "changes = { lambda = 3 }\n")
    with pytest.raises(UserError, match="row mine: lambda: Extra inputs"):
        student_of(load_rows(settings, NAMES)[1], settings.student)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "another"}, "row mine: model: all rows start from student.model"),
        ({"train": {"keep": "best", "best_by": "loss"}}, "row mine: train.keep has no effect in a study"),
        ({"train": {"epochs": 7}}, "row mine: train.epochs has no effect in a study"),
        ({"train": "long"}, "row mine: train: Input should be"),
    ],
)
def test_what_a_row_cannot_change(changes: dict[str, Any], says: str) -> None:
    row = StudyRow(name="mine", title="M", role="candidate", changes=changes)
    with pytest.raises(UserError, match=says):
        student_of(row, config().student)


def test_a_change_of_training_leaves_the_rest_of_it() -> None:
    base = config(student={"train": {"global_batch": 64, "micro_batch": 16}}).student
    best = StudyRow(name="best", title="B", role="candidate", changes={"train": {"warmup_ratio": 0.2}})
    control = StudyRow(name="c", title="C", role="control", of_best=True, changes={"train": {"weight_decay": 0.1}})
    train = student_of(based_on(control, best), base).train
    assert (train.global_batch, train.micro_batch, train.warmup_ratio, train.weight_decay) == (64, 16, 0.2, 0.1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"student": {"alignment_weight": 0.7}}, "student.alignment_weight: the rows set it"),
        ({"student": {"use_unlabelled": True}}, "student.use_unlabelled: the rows set it"),
        ({"student": {"baseline": False}}, "student.baseline: the rows set it"),
        ({"student": {"train": {"epochs": 9}}}, "student.train.epochs: has no effect in a study"),
        ({"student": {"train": {"zero_stage": 2}}}, "student.train.zero_stage: has no effect"),
        ({"seeds": [1, 1]}, "seeds: .* contains a value twice"),
        ({"data": [{"name": "a", "run": "x"}, {"name": "a", "run": "y"}]}, "data: .* contains a value twice"),
    ],
)
def test_a_setting_without_effect_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        config(**changes)
