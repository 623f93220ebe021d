"""What a study consists of, as data: rows, their links, trials, keys."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.base.errors import UserError
from cluster.base.stage_folder import read_json
from distill.config import GatExtractor, MlpExtractor, StudentSettings
from distill.study.arms import Reading, StudyRow, load_rows, primary_rows, student_of
from distill.study.config import Comparison, StudyConfig, StudyWorkers, Tuning
from distill.study.data import HEADER
from distill.study.runs import Run, final_runs, trial_runs, trials_of_training, trials_of_weight, with_training_of

NAMES = ("intent", "rules")
REPOSITORY = Path(__file__).parents[4]


def config(**changes: Any) -> StudyConfig:
    return StudyConfig(**({"data": [{"name": "a", "run": "runs/a"}]} | changes))


def shipped(settings: StudyConfig) -> dict[str, StudyRow]:
    """All shipped rows by name."""
    return {row.name: row for row in load_rows(settings, NAMES, unlabelled=True)}


def test_every_candidate_is_its_twin_with_lambda() -> None:
    settings = config()
    rows = shipped(settings)
    candidates = [row for row in rows.values() if row.role == "candidate"]
    assert len(candidates) >= 5 and len({row.title for row in rows.values()}) == len(rows)
    for row in candidates:
        assert row.twin is not None and "alignment_weight" in row.weights
        twin, own = (student_of(one, settings.student) for one in (rows[row.twin], row))
        assert own.model_copy(update={"alignment": twin.alignment, "target_pairs": "own"}) == twin, row.name


def test_a_control_is_the_row_that_it_controls_with_other_targets() -> None:
    settings = config()
    rows = shipped(settings)
    controls = [row for row in rows.values() if row.role == "control"]
    assert controls
    for row in controls:
        assert row.of is not None and row.weights == rows[row.of].weights
        own, start = (student_of(one, settings.student) for one in (row, rows[row.of]))
        assert {k for k in StudentSettings.model_fields if getattr(own, k) != getattr(start, k)} == {"control"}


def test_a_ceiling_reads_itself_and_rivals_learn_from_a_reader() -> None:
    rows = shipped(config())
    by = {row.name: row.reading.by for row in rows.values() if row.reading is not None}
    assert by == {"reader": "student", "reader_kl": "reader", "crsd": "reader"}
    assert [row.name for row in rows.values() if row.role == "ceiling"] == ["reader"]
    own, twin = (student_of(rows[name], config().student) for name in ("crsd", "reader_kl"))
    assert own == twin.model_copy(update={"alignment": "infonce"}) and rows["crsd"].twin == "reader_kl"


def test_rows_that_learn_from_unlabelled_pairs_need_them() -> None:
    left_out = {*shipped(config())} - {row.name for row in load_rows(config(), NAMES)}
    aligned = {"lrkd_kl_unlabelled", "lrkd_alike_unlabelled", "template_unlabelled", "lrkd_alike_all"}
    assert left_out == aligned | {"kl_unlabelled", "kl_all"}


def test_a_row_for_each_perspective(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        '[plain]\ntitle = "P"\nrole = "baseline"\nchanges = { extractor = { kind = "mlp" } }\n'
        '[one]\ntitle = "{perspective} only"\nrole = "candidate"\ntwin = "plain"\nweights = ["alignment_weight"]\n'
        'each_perspective = true\nchanges = { extractor = { kind = "mlp" }, target = "{perspective}" }\n'
    )
    rows = load_rows(config(rows_file=str(own)), NAMES)
    assert [(row.name, row.title) for row in rows[1:]] == [("one_intent", "intent only"), ("one_rules", "rules only")]
    assert student_of(rows[2], config().student).target == "rules"


def test_trials_are_all_combinations_of_what_is_shared_and_then_one_weight_at_a_time() -> None:
    tuning = Tuning(learning_rate=(1e-4, 2e-4), epochs=(1, 2), alignment_weight=(0.5, 3))
    plain = StudentSettings()
    found = trials_of_training(plain, tuning)
    tried = [(one.train.learning_rate, one.train.epochs) for one in found]
    assert tried == [(1e-4, 1), (1e-4, 2), (2e-4, 1), (2e-4, 2)]
    assert [one.alignment_weight for one in trials_of_weight(plain, "alignment_weight", tuning)] == [0.5, 3]
    taken = with_training_of(StudentSettings(max_tokens=9), found[3])
    assert (taken.max_tokens, taken.train.learning_rate, taken.train.epochs) == (9, 2e-4, 2)


def test_final_runs_are_every_seed_on_every_fold_and_trials_see_the_first_of_both() -> None:
    settings = config(seeds=(4, 5), folds=3)
    row = shipped(settings)["kl"]
    first = trial_runs("a", row, trials_of_training(settings.student, settings.tuning), settings)
    assert {(run.purpose, run.seed, run.fold) for run in first} == {("trial", 4, 0)}
    finals = final_runs("a", row, first[2].student, settings, (4, 5, 6))
    assert [(run.seed, run.fold) for run in finals] == [(s, f) for s in (4, 5, 6) for f in range(3)]
    assert {run.student for run in finals} == {first[2].student}


def test_the_primary_claim_rests_on_the_row_its_references_and_controls() -> None:
    rows = load_rows(config(), NAMES)
    found = primary_rows(rows, Comparison(row="lrkd_kl", against="labels"))
    assert found == {"lrkd_kl", "labels", "kl"} | {row.name for row in rows if row.of == "lrkd_kl"}
    assert primary_rows(rows, None) == set()
    with pytest.raises(UserError, match=r"primary.against: 'best' is not one of the rows labels, cls"):
        primary_rows(rows, Comparison(row="lrkd_kl", against="best"))
    with pytest.raises(UserError, match=r"primary.row: 'reader' cannot be served, so it is in no test"):
        primary_rows(rows, Comparison(row="reader", against="labels"))


def test_a_key_depends_on_all_that_decides_a_run_and_on_nothing_else() -> None:
    settings = config()
    row = shipped(settings)["lrkd"]
    run = trial_runs("a", row, [student_of(row, settings.student)], settings)[0]
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
        other(row="lrkd_kl"),
        other(purpose="final"),
        other(student=student.model_copy(update={"alignment_weight": 0.7})),
        other(student=student.model_copy(update={"extractor": MlpExtractor()})),
        other(student=student.model_copy(update={"extractor": GatExtractor()})),
        other(student=student.model_copy(update={"max_tokens": 63})),
        other(reading=Reading(by="reader")),
        other(reading=Reading(by="student")),
        other(reading=Reading(by="student", text="rationale+verdict")),
        other(reading=Reading(by="student", tokens=64)),
    ]
    assert len({key, *different}) == 1 + len(different)
    same = [
        other(student=student.model_copy(update={"model": "elsewhere/encoder"})),
        run.key(config(workers=StudyWorkers(cpus_per_run=2), bootstrap_resamples=9, name="b"), "data", "model"),
    ]
    assert set(same) == {key}
    assert final_runs("a", shipped(settings)["crsd"], student, settings, (1,))[0].reading == Reading(by="reader")
    # Without folds no query is dealt, so the seed of the dealing decides nothing.
    assert run.key(config(folds=1, seed=1), "d", "m") == run.key(config(folds=1, seed=2), "d", "m")


def test_the_committed_runs_are_still_found_by_their_keys() -> None:
    """A new setting of students or rows must not make runs worthless that took hours."""
    settings = StudyConfig(**tomllib.loads((REPOSITORY / "workflows/configs/study.toml").read_text(encoding="utf-8")))
    found = 0
    for header in (REPOSITORY / settings.records).glob(f"*/{HEADER}"):
        made = read_json(header)
        for path in header.parent.glob("*.jsonl"):
            for record in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
                student = StudentSettings(**record["student"])
                reading = Reading(**record["reading"]) if "reading" in record else None
                place = (header.parent.name, record["row"], record["purpose"])
                run = Run(*place, student, record["seed"], record["fold"], reading)
                assert run.key(settings, made["fingerprint"], made["model"]) == record["key"], path
                found += 1
    assert found


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rows": ["labels", "lrkd_x"]}, "rows: 'lrkd_x' is not in .*arms.toml, which has labels, cls"),
        ({"rows": ["lrkd"]}, "0 of lrkd have the role baseline; give 1 to 1"),
        ({"rows": ["labels", "kl"]}, "0 of labels, kl have the role candidate"),
        ({"rows": ["labels", "lrkd_kl"]}, "row lrkd_kl: twin: 'kl' is not among the rows"),
        ({"rows": ["labels", "lrkd", "shuffled"]}, "row shuffled: of: 'lrkd_kl' is not among the rows"),
        ({"rows": ["labels", "verdicts", "lrkd_verdicts"]}, "row verdicts: weights: .* Add it, such as kl"),
        ({"rows_file": "nowhere.toml"}, "rows_file: nowhere.toml does not describe rows"),
    ],
)
def test_wrong_rows_are_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_rows(config(**changes), NAMES)


PLAIN = '[plain]\ntitle = "P"\nrole = "baseline"\nchanges = { extractor = { kind = "mlp", hidden = 4 } }\n'
MINE = '[mine]\ntitle = "M"\nrole = "candidate"\nweights = ["alignment_weight"]\n'
TWIN = 'twin = "plain"\n'
CEILING = '[c]\ntitle = "C"\nrole = "ceiling"\nreading = { by = "student" }\n'
OF_CEILING = CEILING + '[d]\ntitle = "D"\nrole = "control"\nof = "c"\n'
READS = 'reading = { by = "reader" }\n'


def test_a_row_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        PLAIN
        + MINE
        + TWIN
        + 'changes = { alignment = "infonce", normalise_targets = false, extractor = { kind = "mlp", hidden = 4 } }\n'
    )
    settings = config(rows_file=str(own))
    student = student_of(load_rows(settings, NAMES)[1], settings.student)
    assert student.alignment == "infonce" and student.extractor.kind == "mlp" and student.soft_label_weight == 0


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        (TWIN + "changes = { lambda = 3 }\n", "row mine: lambda: Extra inputs"),
        ("", "row mine: twin: a candidate needs one"),
        (TWIN, "row mine: twin: 'plain' differs in extractor, not in lambda alone"),
        ('twin = "mine"\n', "row mine: twin: 'mine' is tuned in lambda, which must be 0 there"),
        (TWIN + READS, "row mine: twin: 'plain' differs in reading, not in lambda alone"),
        (TWIN + OF_CEILING, "row d: of: 'c' is a ceiling, which has no targets"),
        ('reading = { by = "student" }\n', "the role ceiling and reading = .* need each other"),
        (TWIN + '[c]\ntitle = "C"\nrole = "control"\nof = "c"\n', "row c: of: 'c' is a control itself"),
    ],
)
def test_a_wrong_row_of_ones_own_is_named(tmp_path: Path, rest: str, says: str) -> None:
    own = tmp_path / "own.toml"
    if "[c]" in rest:
        rest = rest.replace("[c]", 'changes = { extractor = { kind = "mlp", hidden = 4 } }\n[c]')
    own.write_text(PLAIN + MINE + rest)
    with pytest.raises(UserError, match=says):
        load_rows(config(rows_file=str(own)), NAMES)


@pytest.mark.parametrize("control", ["permuted", "same_verdicts"])
def test_a_control_of_a_reader_has_the_readers_vectors(tmp_path: Path, control: str) -> None:
    own = tmp_path / "own.toml"
    rows = PLAIN + PLAIN.replace("plain", "mine").replace("baseline", "candidate") + READS + 'twin = "other"\n'
    rows += PLAIN.replace("plain", "other").replace("baseline", "rival") + READS
    own.write_text(rows + f'[c]\ntitle = "C"\nrole = "control"\nof = "mine"\nchanges = {{ control = "{control}" }}\n')
    settings = config(rows_file=str(own))
    if control == "permuted":
        with pytest.raises(UserError, match=r"row c: changes.control: 'permuted' needs vectors of a sentence encoder"):
            load_rows(settings, NAMES)
    else:
        assert load_rows(settings, NAMES)[-1].reading == Reading(by="reader")


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
    row = StudyRow(name="c", title="C", role="rival", changes={"train": {"weight_decay": 0.1}})
    train = student_of(row, base).train
    assert (train.global_batch, train.micro_batch, train.weight_decay) == (64, 16, 0.1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"student": {"alignment_weight": 0.7}}, "student.alignment_weight: the rows set it"),
        ({"student": {"use_unlabelled": False}}, "student.use_unlabelled: the rows set it"),
        ({"student": {"baseline": False}}, "student.baseline: the rows set it"),
        ({"student": {"teacher_smoothing": 0.2}}, "student.teacher_smoothing: the rows set it"),
        ({"student": {"train": {"steps": 9}}, "tuning": {"epochs": [3, 6]}}, "tuning.epochs: .* would all train alike"),
        ({"student": {"train": {"epochs": 9}}}, "student.train.epochs: has no effect in a study"),
        ({"student": {"train": {"zero_stage": 2}}}, "student.train.zero_stage: has no effect"),
        ({"seeds": [1, 1]}, "seeds: .* contains a value twice"),
        ({"data": [{"name": "a", "run": "x", "seeds": [1, 1]}]}, "data.a.seeds: .* contains a value twice"),
        ({"seeds": [1, 2], "primary_seeds": [2, 3]}, r"primary_seeds: \[2, 3\] lacks some of seeds \[1, 2\]"),
        ({"data": [{"name": "a", "run": "x"}, {"name": "a", "run": "y"}]}, "data: .* contains a value twice"),
    ],
)
def test_a_setting_without_effect_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        config(**changes)
