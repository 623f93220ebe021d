"""Manifests and fingerprints: what says that a stage is done, and by which settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest

from cluster.base.errors import UserError
from cluster.base.stage_folder import (
    MANIFEST,
    StageFolder,
    changed_settings,
    digest,
    read_json,
    read_manifest,
    result_settings,
    write_json,
)
from cluster.config import Fields, Settings, TrainSettings, Workers
from mpcot.config import Replicas, ScriptedEngine, VllmEngine


def folder_of(root: Path, settings: object, **inputs: str) -> StageFolder:
    return StageFolder(root, "3-sft", {"train": result_settings(settings)}, inputs)


def test_a_folder_is_finished_by_its_manifest_alone(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, TrainSettings())
    folder.path.mkdir()
    (folder.path / "kept.txt").write_text("rows")
    assert folder.manifest() is None
    (folder.path / "deep").mkdir()
    (folder.path / "deep" / "more.txt").write_text("more rows")
    folder.finish({"kept": 2}, {"loss": 0.5})
    manifest = read_manifest(folder.path)
    assert manifest is not None
    assert manifest["files"] == {"kept.txt": 4, "deep/more.txt": 9}
    assert manifest["counts"] == {"kept": 2} and manifest["figures"] == {"loss": 0.5}
    assert manifest["fingerprint"] == folder.fingerprint
    assert manifest["versions"]["torch"] and manifest["versions"]["python"]


def test_a_crash_while_the_manifest_is_written_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, TrainSettings())
    folder.path.mkdir()

    def power_cut(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cluster.base.stage_folder.os.fsync", power_cut)
    with pytest.raises(KeyboardInterrupt):
        folder.finish({})
    assert folder.manifest() is None


def test_where_and_how_fast_work_runs_is_not_in_the_fingerprint(tmp_path: Path) -> None:
    plain = TrainSettings()
    elsewhere = plain.model_copy(
        update={
            "workers": Workers(count=4, gpus_per_worker=1),
            "checkpoint_every_steps": 7,
            "gradient_checkpointing": True,
        }
    )
    assert folder_of(tmp_path, plain).fingerprint == folder_of(tmp_path, elsewhere).fingerprint
    assert result_settings(ScriptedEngine(delay_s=3, replicas=Replicas(max=9))) == result_settings(ScriptedEngine())
    fast = VllmEngine(max_num_seqs=4, enforce_eager=True, tensor_parallel=8, gpu_memory_utilization=0.5)
    assert result_settings(fast) == result_settings(VllmEngine())


class Inner(Settings):
    precision: str = "auto"
    epochs: int = 1


class Section(Settings):
    length: int = 8
    rows: int = 100
    train: Inner = Inner()


class Narrow(Settings):
    reads_only: ClassVar[Fields] = {"section": ("length", "train.precision")}

    section: Section = Section()
    other: Section = Section()


def test_of_a_section_only_what_is_read_makes_the_fingerprint() -> None:
    found = result_settings(Narrow())
    assert found["section"] == {"length": 8, "train": {"precision": "auto"}}
    assert found["other"] == result_settings(Section())
    same = Narrow(section=Section(rows=7, train=Inner(epochs=9)))
    assert result_settings(same) == found
    assert result_settings(Narrow(section=Section(train=Inner(precision="fp32")))) != found


@pytest.mark.parametrize("change", [{"epochs": 4}, {"learning_rate": 1e-3}, {"zero_stage": 3}, {"precision": "fp32"}])
def test_what_changes_a_result_changes_the_fingerprint(tmp_path: Path, change: dict[str, object]) -> None:
    changed = TrainSettings().model_copy(update=change)
    assert folder_of(tmp_path, TrainSettings()).fingerprint != folder_of(tmp_path, changed).fingerprint


def test_other_inputs_make_another_fingerprint(tmp_path: Path) -> None:
    prints = {folder_of(tmp_path, None, pairs=made).fingerprint for made in ("aa", "bb")}
    assert len(prints) == 2


def test_settings_survive_json_so_that_a_manifest_can_be_compared() -> None:
    settings = result_settings({"engine": ScriptedEngine(), "train": TrainSettings(), "path": Path("a/b")})
    assert json.loads(json.dumps(settings)) == settings
    assert digest(settings) == digest(json.loads(json.dumps(settings)))
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_changed_settings_are_named_by_their_path() -> None:
    old = {"sft": {"train": {"epochs": 3}, "max_tokens": 64}, "seed": 1}
    new = {"sft": {"train": {"epochs": 4}, "max_tokens": 64}, "seed": 1, "labels": {"scheme": "esci"}}
    assert changed_settings(old, new) == ["labels: None -> {'scheme': 'esci'}", "sft.train.epochs: 3 -> 4"]
    assert changed_settings(old, old) == []


@pytest.mark.parametrize("damage", [b'{"stage": "3-sft", "cou', b"\xff\xfe\x00", b""])
def test_a_damaged_manifest_is_named_with_a_way_out(tmp_path: Path, damage: bytes) -> None:
    folder = folder_of(tmp_path, None)
    folder.path.mkdir()
    (folder.path / MANIFEST).write_bytes(damage)
    with pytest.raises(UserError, match=r"manifest\.json is damaged.*Delete its folder"):
        folder.manifest()


def test_json_is_the_old_file_or_the_whole_new_one(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}


def test_reading_an_undeclared_stage_is_a_bug(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, None, **{"1-pairs": "aa"})
    assert folder.input("1-pairs") == tmp_path / "1-pairs"
    with pytest.raises(AssertionError, match="does not declare"):
        folder.input("2-rationales")


def test_clear_removes_the_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, None)
    (folder.path / "deep").mkdir(parents=True)
    folder.clear()
    assert not folder.path.exists()
    folder.clear()
