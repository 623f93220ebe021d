"""The command: exit codes, messages with the way out, plans that write nothing, ledgers that balance."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.base.stage_folder import MANIFEST, read_json, read_manifest, write_json
from cluster.training.driver import CHECKPOINTS
from mpcot import rationales
from tests.helpers.command import broadfast, files, text
from workflows.config import load_config
from workflows.runner import STARTED, prepare, stage_folder
from workflows.stages import STAGES, find_stage


@pytest.mark.parametrize(
    "arguments",
    [("run",), ("fly",), ("run", "--speed", "9"), ("verify",), ("models", "fetch")],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    assert broadfast(*arguments).exit_code == 2


def test_a_missing_config_names_it_and_where_others_are(tmp_path: Path) -> None:
    result = broadfast("run", tmp_path / "nowhere.toml")
    assert result.exit_code == 2 and "nowhere.toml" in text(result) and "workflows/configs" in text(result)
    assert "Traceback" not in result.output


def test_wrong_settings_exit_with_2(config_file: Path) -> None:
    result = broadfast("run", config_file, "--set", "sft.train.epoch=2")
    assert result.exit_code == 2 and "Did you mean 'epochs'" in text(result)
    result = broadfast("run", config_file, "--from", "flying", "--out", config_file.parent / "run")
    assert result.exit_code == 2 and "no stage 'flying'" in text(result)
    result = broadfast("run", config_file, "--from", "dpo", "--to", "sft", "--out", config_file.parent / "run")
    assert result.exit_code == 2 and "--from dpo comes after --to sft" in text(result)


def test_a_missing_model_folder_stops_before_anything_runs(
    config_file: Path, tmp_path: Path, without_ray: None
) -> None:
    for section, name in (("teacher", "model"), ("targets", "encoder"), ("student", "model")):
        result = broadfast("run", config_file, "--set", f"{section}.{name}=/no/such/model", "--out", tmp_path / "run")
        assert result.exit_code == 1
        assert f"{section}.{name}: the model folder '/no/such/model' does not exist" in text(result)
        assert not (tmp_path / "run" / "1-pairs").exists()


def test_a_stage_before_its_input(config_file: Path, tmp_path: Path, without_ray: None) -> None:
    result = broadfast("sft", config_file, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "3-sft reads 1-pairs, which has not finished" in text(result) and "--from 1-pairs" in text(result)


def test_finished_stages_are_skipped(config_file: Path, tmp_path: Path, without_ray: None) -> None:
    run_dir = tmp_path / "run"
    first = broadfast("run", config_file, "--to", "rationales", "--out", run_dir, "-v")
    assert first.exit_code == 0, first.output
    before = files(run_dir / "1-pairs") | files(run_dir / "2-rationales")
    again = broadfast("run", config_file, "--to", "rationales", "--out", run_dir, "-v")
    assert again.exit_code == 0 and text(again).count("finished before, skipped") == 2
    assert files(run_dir / "1-pairs") | files(run_dir / "2-rationales") == before
    assert load_config(config_file).model_dump(mode="json") == read_json(run_dir / "config.json")


def test_finished_stages_need_no_resources(config_file: Path, run_dir: Path, without_ray: None) -> None:
    """On a cluster of generation nodes a training that has finished elsewhere is no reason to stop."""
    large = ("--set", "engine.replicas.cpus=64")
    assert broadfast("run", config_file, "--to", "rationales", "--out", run_dir, *large).exit_code == 0
    refused = broadfast("run", config_file, "--from", "rationales", "--to", "rationales", "--out", run_dir, *large)
    assert refused.exit_code == 1 and "2-rationales asks for 64 CPUs and the cluster has 2" in text(refused)
    assert read_manifest(run_dir / "2-rationales"), "it was refused before anything was forgotten"


def test_from_makes_a_stage_and_all_after_it_again(config_file: Path, run_dir: Path, without_ray: None) -> None:
    kept = files(run_dir / "1-pairs")
    answers = files(run_dir / "2-rationales" / "answers")
    result = broadfast("run", config_file, "--from", "rationales", "--to", "rationales", "--out", run_dir, "-v")
    assert result.exit_code == 0, result.output
    assert files(run_dir / "1-pairs") == kept
    # What was paid for is used again; what was made from the old stage counts no longer as finished.
    assert files(run_dir / "2-rationales" / "answers") == answers
    figures = read_json(run_dir / "2-rationales" / MANIFEST)["figures"]
    assert (
        figures["asked"] == 0
        and figures["reused"] == read_json(run_dir / "2-rationales" / MANIFEST)["counts"]["requested"]
    )
    assert all(read_manifest(run_dir / s.name) is None for s in STAGES[2:])


def test_from_goes_on_after_an_interruption_and_makes_it_again_once_it_had_finished(
    config_file: Path, run_dir: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = ("run", config_file, "--from", "pairs", "--to", "rationales", "--out", run_dir, "-v")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rationales, "run_rationales", interrupted)
        assert broadfast(*again).exit_code == 130
        done = read_json(run_dir / "1-pairs" / MANIFEST)
        write_json(run_dir / "1-pairs" / MANIFEST, done | {"fingerprint": "of a file that has changed since"})
        assert broadfast(*again).exit_code == 130, "not refused: it is what is to be made again"
    first = files(run_dir / "1-pairs")
    assert read_json(run_dir / "1-pairs" / MANIFEST)["fingerprint"] == done["fingerprint"]
    assert read_manifest(run_dir / "1-pairs") and read_manifest(run_dir / "2-rationales") is None
    result = broadfast(*again)
    assert result.exit_code == 0 and "finished before, skipped" in text(result)
    assert files(run_dir / "1-pairs") == first and read_manifest(run_dir / "2-rationales")
    assert "skipped" not in text(broadfast(*again))
    other = broadfast(*again, "--set", "rationales.temperature=0.1")
    assert other.exit_code == 0 and "skipped" not in text(other)


def test_a_training_that_other_settings_left_half_done_is_not_thrown_away(
    config_file: Path, run_dir: Path, without_ray: None
) -> None:
    config = load_config(config_file)
    folder = stage_folder(config, run_dir, find_stage("sft"))
    (folder.path / MANIFEST).unlink()
    prepare(folder)
    (folder.path / CHECKPOINTS).mkdir()
    prepare(folder)
    assert (folder.path / CHECKPOINTS).exists()
    result = broadfast("sft", config_file, "--set", "sft.dev_rows=7", "--out", run_dir)
    assert result.exit_code == 1 and "was begun with other settings: sft.dev_rows: 200 -> 7" in text(result)
    assert "--from 3-sft" in text(result) and (folder.path / CHECKPOINTS).exists()


def test_a_stage_before_that_had_other_settings_is_named(config_file: Path, run_dir: Path, without_ray: None) -> None:
    change = ("--set", "rationales.temperature=0.1", "--out", run_dir, "-v")
    result = broadfast("run", config_file, "--from", "samples", "--to", "samples", *change)
    assert "warning: 2-rationales was made with another rationales.temperature: 0.7 -> 0.1" in text(result)
    result = broadfast("run", config_file, "--from", "samples", "--to", "samples", "--out", run_dir, "-v")
    assert result.exit_code == 0 and "warning" not in text(result)


def test_a_folder_made_by_another_config_names_the_setting(config_file: Path, run_dir: Path, without_ray: None) -> None:
    before = files(run_dir / "2-rationales")
    result = broadfast("rationales", config_file, "--set", "rationales.temperature=0.1", "--out", run_dir)
    assert result.exit_code == 1
    assert "was made with other settings: rationales.temperature: 0.7 -> 0.1" in text(result)
    assert "--out" in text(result) and "--from 2-rationales" in text(result)
    assert files(run_dir / "2-rationales") == before
    assert not (run_dir / "config.json").exists(), "it says what a folder was made with, not what was refused"


def test_other_models_and_perspectives_are_other_settings(
    config_file: Path, run_dir: Path, models: Path, tmp_path: Path, without_ray: None
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    shipped = Path(__file__).parents[3] / "mpcot" / "perspectives" / "intent.toml"
    (own / "intent.toml").write_text(shipped.read_text() + "\n")
    elsewhere = ("rationales", config_file, "--set", f"perspectives.folder={own}", "--out", run_dir)
    for same in (broadfast("rationales", config_file, "--out", run_dir), broadfast(*elsewhere)):
        assert same.exit_code == 0, same.output
    (own / "intent.toml").write_text(shipped.read_text().replace("shopper", "customer"))
    result = broadfast(*elsewhere)
    assert result.exit_code == 1 and "perspectives: " in text(result)


def test_resources_are_no_other_settings(config_file: Path, run_dir: Path, without_ray: None) -> None:
    change = ("--set", "engine.replicas.pairs_per_task=9", "--set", "cluster.object_store_mb=200")
    result = broadfast("rationales", config_file, *change, "--out", run_dir, "-v")
    assert result.exit_code == 0 and "skipped" in text(result)


def test_a_run_folder_in_use_is_left_alone(config_file: Path, tmp_path: Path, without_ray: None) -> None:
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        result = broadfast("pairs", config_file, "--out", tmp_path / "run")
    assert result.exit_code == 1 and "is in use by another broadfast run" in text(result)


def test_what_other_settings_left_unfinished_is_removed_but_not_what_was_paid_for(
    config_file: Path, run_dir: Path
) -> None:
    config = load_config(config_file)
    folder = stage_folder(config, run_dir, find_stage("rationales"))
    (folder.path / MANIFEST).unlink()
    write_json(folder.path / STARTED, {"fingerprint": folder.fingerprint})
    prepare(folder)
    assert (folder.path / "kept.parquet").exists()
    write_json(folder.path / STARTED, {"fingerprint": "of other settings"})
    prepare(folder)
    assert sorted(p.name for p in folder.path.iterdir()) == ["answers", STARTED]
    assert list((folder.path / "answers").iterdir())


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    config_file: Path, tmp_path: Path, wide: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    result = broadfast("run", config_file, "--dry-run", "--set", "sft.train.workers.count=4")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert all(any(stage.name in line for line in lines) for stage in STAGES)
    assert "4 of 2" in next(line for line in lines if "3-sft " in line and "4 of 2" in line)
    assert "60 pairs" in next(line for line in lines if "1-pairs" in line) and "a local Ray has 2 CPUs" in result.output
    assert files(tmp_path) == before and not (tmp_path / "runs").exists()


def test_a_dry_run_names_an_engine_that_fits_on_no_node(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.dry_run.available", lambda _: [{"CPU": 8.0, "GPU": 4.0}] * 2)
    engine = 'engine={kind = "vllm", tensor_parallel = 8, replicas = {gpus = 1}}'
    said = text(broadfast("run", config_file, "--dry-run", "--set", engine))
    assert "2-rationales: a single engine takes 8 GPUs" in said and "has 16 CPUs and 8 GPUs" in said


def test_a_dry_run_knows_what_is_done(config_file: Path, run_dir: Path, wide: None) -> None:
    (run_dir / "7-judgements" / MANIFEST).unlink()
    before = files(run_dir)
    lines = broadfast("run", config_file, "--dry-run", "--out", run_dir).output.splitlines()
    cells = [[cell.strip() for cell in line.split("│")] for line in lines if "│" in line]
    states: dict[str, list[str]] = {"finished": [], "begun": [], "new": []}
    for _, stage, _, state, *_ in cells:
        states[state].append(stage)
    assert states["finished"] == [s.name for s in STAGES[:6]]
    assert states["begun"] == ["7-judgements"] and states["new"] == [s.name for s in STAGES[7:]]
    assert files(run_dir) == before
    changed = broadfast("run", config_file, "--dry-run", "--out", run_dir, "--set", "seed=99").output
    assert all("other settings" in line for line in changed.splitlines() if "1-pairs" in line)


def test_more_worked_examples_than_there_are_is_refused(config_file: Path) -> None:
    changes = [f"{section}.few_shot=9" for section in ("rationales", "samples", "judge")]
    result = broadfast("run", config_file, *(word for change in changes for word in ("--set", change)))
    assert result.exit_code == 1 and "rationales.few_shot is 9, and perspective" in text(result)


def test_verify_report_and_inspect_want_a_run_folder(tmp_path: Path) -> None:
    for command in ("verify", "report", "inspect"):
        result = broadfast(command, tmp_path)
        assert result.exit_code == 2 and "is not a run folder" in text(result)


def test_inspect_reads_what_the_stages_left(config_file: Path, run_dir: Path, wide: None) -> None:
    write_json(run_dir / "config.json", load_config(config_file).model_dump(mode="json"))
    result = broadfast("inspect", run_dir, "--samples", 3)
    assert result.exit_code == 0, result.output
    counts = read_json(run_dir / "4-samples" / MANIFEST)["counts"]
    assert f"{counts['kept']} kept, {counts['filtered']} filtered, {counts['failed']} failed." in text(result)
    judged = read_json(run_dir / "7-judgements" / MANIFEST)["counts"]["judged"]
    assert f"{judged * 3} answers on {judged} pairs" in text(result)
    page = (run_dir / "inspect.html").read_text(encoding="utf-8")
    assert page.count("<article") >= 3 * 3


def test_unexpected_failures_are_one_line_with_the_story_in_the_log(
    config_file: Path, tmp_path: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: object, folder: object) -> None:
        raise RuntimeError("first line\nthe last line")

    monkeypatch.setattr("mpcot.pairs.stage.run", fail)
    result = broadfast("pairs", config_file, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "RuntimeError: the last line. The full traceback is in" in text(result) and "Traceback" not in result.output
    assert "Traceback" in (tmp_path / "run" / "broadfast.log").read_text()
    assert read_manifest(tmp_path / "run" / "1-pairs") is None


def test_a_full_disk_is_said_even_where_the_log_cannot_be_written(
    config_file: Path, tmp_path: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def full(self: Path, mode: str = "r", *args: object, **more: object):
        if "w" in mode or "a" in mode:
            raise OSError(28, "No space left on device")
        return real(self, mode, *args, **more)

    run_dir = tmp_path / "run"
    run_dir.mkdir()
    monkeypatch.setattr(Path, "open", full)
    result = broadfast("pairs", config_file, "--out", run_dir, "-v")
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert "the disk is full" in text(result) and "--out" in text(result)


def test_fetching_an_unknown_model_names_those_there_are(tmp_path: Path) -> None:
    result = broadfast("models", "fetch", "gpt-9", "--root", tmp_path)
    assert result.exit_code == 1 and "all-minilm-l6-v2" in text(result)
    listed = broadfast("models", "list")
    assert listed.exit_code == 0 and "smollm2-135m-instruct" in listed.output
