"""`teacher.tuning` decides which stages a run has, and everything that walks the stages walks those."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from cluster.base.errors import UsageError
from cluster.base.stage_folder import MANIFEST, digest, read_json, read_manifest, result_settings, write_json
from cluster.base.tables import read_table
from tests.helpers.command import broadfast, text
from tests.unit.workflows.conftest import make
from tests.unit.workflows.test_run_config import LEAST
from workflows.config import RunConfig, load_config
from workflows.runner import select
from workflows.stages import STAGES, find_stage, stages_of

TUNINGS = {
    "sft+dpo": ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [1, 6]),
    "sft": ([1, 2, 3, 7, 8, 9, 10, 11], [1, 3]),
    "none": ([1, 7, 8, 9, 10, 11], [1]),
}
EACH = pytest.mark.parametrize("tuning", TUNINGS)


def number(name: str) -> int:
    return int(name.partition("-")[0])


def tuned(tuning: str, **more: object) -> RunConfig:
    return RunConfig(**LEAST | {"teacher": {"model": "m", "tuning": tuning}} | more)


@EACH
def test_the_table_follows_from_the_tuning(tuning: str) -> None:
    table = stages_of(tuned(tuning))
    numbers, judging = TUNINGS[tuning]
    assert [number(stage.name) for stage in table] == numbers
    reads = {number(stage.name): [number(name) for name in stage.reads] for stage in table}
    assert reads[7] == judging and reads[11] == numbers[:-1]
    for place, stage in enumerate(table):
        assert set(stage.reads) <= {other.name for other in table[:place]}
        assert next(iter(inspect.signature(stage.run()).parameters.values())).annotation == stage.config.__name__
        stage.settings(tuned(tuning))


def test_all_trainings_are_the_default_and_their_table_is_the_whole_one() -> None:
    assert stages_of(RunConfig(**LEAST)) == STAGES


def test_the_judge_is_the_model_of_the_last_training() -> None:
    models = [find_stage("judgements", stages_of(tuned(tuning))).need(tuned(tuning)).model for tuning in TUNINGS]
    assert models == ["6-dpo", "3-sft", "m"]


def test_the_tuning_changes_no_fingerprint_of_a_stage_that_stays() -> None:
    before, after = (
        {stage.name: digest(result_settings(stage.settings(tuned(tuning)))) for stage in stages_of(tuned(tuning))}
        for tuning in ("sft+dpo", "sft")
    )
    assert after.items() <= before.items()


def test_a_stage_that_the_run_does_not_have_is_named() -> None:
    table = stages_of(tuned("none"))
    with pytest.raises(
        UsageError, match=r"no stage 'dpo' in a run with this teacher.tuning; its stages are pairs, judg"
    ):
        select("dpo", None, table)
    assert [stage.short for stage in select("pairs", "targets", table)] == ["pairs", "judgements", "targets"]


def test_without_tuning_the_prompts_need_not_be_those_of_a_training() -> None:
    tuned("none", judge={"few_shot": 1}, samples={"splits": ["dev"]}, sft={"use_unlabelled": True})
    with pytest.raises(ValueError, match=r"judge.few_shot is 1"):
        tuned("sft", judge={"few_shot": 1})


@EACH
def test_a_run_balances_and_its_answers_are_shown(
    tuning: str, config_file: Path, tmp_path: Path, models: Path, without_ray: None, wide: None
) -> None:
    change = f"teacher.tuning={tuning}"
    config, run_dir = load_config(config_file, [change]), tmp_path / "run"
    table = stages_of(config)
    upto = [stage.name for stage in select(None, "judgements", table)]
    for name in upto:
        make(config, run_dir, name, models)
    write_json(run_dir / "config.json", config.model_dump(mode="json"))
    assert broadfast("verify", run_dir).output.count("yes") == len(upto)
    shown = text(broadfast("inspect", run_dir))
    title = {"sft+dpo": "after DPO", "sft": "after SFT", "none": ""}[tuning]
    assert f"Judgements {title}".strip() in shown and "has not been run" not in shown
    assert ("First rationales" in shown) is (tuning != "none")
    lines = broadfast("run", config_file, "--set", change, "--dry-run", "--out", run_dir).output.splitlines()
    cells = [[cell.strip() for cell in line.split("│")] for line in lines if "│" in line]
    assert [cell[1] for cell in cells] == [stage.name for stage in table]
    assert [cell[3] for cell in cells] == ["finished"] * len(upto) + ["new"] * 4


def test_another_tuning_does_not_pass_for_the_same_judgements(
    config_file: Path, run_dir: Path, without_ray: None, wide: None
) -> None:
    refused = broadfast("judgements", config_file, "--out", run_dir, "--set", "teacher.tuning=sft")
    assert refused.exit_code == 1 and "7-judgements was made with other settings" in text(refused)
    again = broadfast(
        "run",
        config_file,
        "--out",
        run_dir,
        "--set",
        "teacher.tuning=sft",
        "--from",
        "judgements",
        "--to",
        "judgements",
    )
    assert again.exit_code == 0, again.output
    manifest = read_manifest(run_dir / "7-judgements")
    assert manifest is not None and list(manifest["inputs"]) == ["1-pairs", "3-sft"]
    assert read_table(run_dir / "7-judgements" / "judgements.parquet").num_rows == manifest["counts"]["judged"]


def test_making_pairs_again_forgets_the_stages_of_every_tuning(
    config_file: Path, run_dir: Path, without_ray: None
) -> None:
    assert read_json(run_dir / "3-sft" / MANIFEST)
    done = broadfast(
        "run", config_file, "--out", run_dir, "--set", "teacher.tuning=none", "--from", "pairs", "--to", "judgements"
    )
    assert done.exit_code == 0, done.output
    assert read_manifest(run_dir / "3-sft") is None and read_manifest(run_dir / "7-judgements") is not None
