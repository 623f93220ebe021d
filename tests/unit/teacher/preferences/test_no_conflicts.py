"""A teacher that answers everything alike leaves nothing to prefer: said clearly, or DPO is skipped."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder, read_manifest
from cluster.base.tables import read_table, write_table
from mpcot.config import PerspectiveSettings, SampleSettings
from mpcot.records import NOT_GOLD, PAIR, SEED, SORTED
from mpcot.sources.config import LabelSettings
from teacher import dpo
from teacher.config import DpoSettings, DpoStage, PreferenceSettings, PreferenceStage
from teacher.preferences import stage as reference

INPUTS = {name: "x" for name in ("1-pairs", "2-rationales", "3-sft", "4-samples", "5-preferences")}


@pytest.fixture
def run_dir(tmp_path: Path, llama_folder: Path) -> Path:
    pair = {"pair_id": "p", "query_id": "q", "product_id": "1", "locale": "us", "query": "drill", "title": "a drill"}
    right = {"key": "k", "pair_id": "p", "perspective": "intent", "sample": 0, "rationale": "It fits.", "verdict": "E"}
    right |= {"hinted": False}
    pairs = pa.Table.from_pylist([pair | {"label": "E", "split": "train"}], PAIR)
    write_table(tmp_path / "1-pairs/pairs.parquet", pairs)
    write_table(tmp_path / "1-pairs/seeds.parquet", pa.Table.from_pylist([], SEED))
    for stage in ("2-rationales", "4-samples"):
        write_table(tmp_path / stage / "kept.parquet", pa.Table.from_pylist([right], SORTED))
        write_table(tmp_path / stage / "filtered.parquet", pa.Table.from_pylist([], SORTED))
    (tmp_path / "3-sft").mkdir()
    (tmp_path / "3-sft/model").symlink_to(llama_folder)
    return tmp_path


def stage(when_empty: str, **changes: object) -> PreferenceStage:
    preferences = PreferenceSettings.model_validate({"when_empty": when_empty, **changes})
    parts = {
        "labels": LabelSettings(),
        "perspectives": PerspectiveSettings(),
        "samples": SampleSettings(guide="short", description_chars=0),
    }
    return PreferenceStage(seed=1, preferences=preferences, dpo=DpoSettings(), **parts)


def test_no_conflict_samples_say_what_there_was_and_the_way_out(run_dir: Path) -> None:
    folder = StageFolder(run_dir, "5-preferences", {}, INPUTS)
    with pytest.raises(UserError, match=r"there is nothing to prefer: 1 of 1 answers are right.*when_empty"):
        reference.run(stage("stop"), folder)
    assert read_manifest(folder.path) is None


def test_a_right_answer_comes_from_elsewhere_only_if_it_may(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one sample is wrong, the first rationale is right; a hinted wrong answer is no rejected one."""
    wrong = {"key": "k", "pair_id": "p", "perspective": "rules", "sample": 0, "rationale": "A case.", "verdict": "C"}
    samples = [wrong | {"reason": NOT_GOLD, "hinted": hinted} for hinted in (False, True)]
    write_table(run_dir / "4-samples/kept.parquet", pa.Table.from_pylist([], SORTED))
    write_table(run_dir / "4-samples/filtered.parquet", pa.Table.from_pylist(samples, SORTED))
    folder = StageFolder(run_dir, "5-preferences", {}, INPUTS)
    monkeypatch.setattr(reference, "score_preferences", lambda table, *_: table)
    reference.run(stage("stop"), folder)
    manifest = read_manifest(folder.path)
    assert manifest is not None and manifest["counts"]["preferences"] == 1
    assert manifest["figures"]["labels"] == {"E": 1}
    assert manifest["figures"]["chosen_perspectives"] == {"intent": 1}
    assert manifest["figures"]["rejected_perspectives"] == {"rules": 1}
    with pytest.raises(UserError, match="there is nothing to prefer"):
        reference.run(stage("stop", fallback=["seeds"]), folder)


def test_a_seed_is_chosen_unless_it_is_of_another_perspective(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"key": "k", "pair_id": "p", "perspective": "rules", "sample": 0, "rationale": "A case.", "verdict": "C"}
    write_table(run_dir / "4-samples/kept.parquet", pa.Table.from_pylist([], SORTED))
    samples = [wrong | {"reason": NOT_GOLD, "hinted": False}]
    write_table(run_dir / "4-samples/filtered.parquet", pa.Table.from_pylist(samples, SORTED))
    seed = {"rationale": "It is what they want.", "verdict": "E", "origin": "people"}
    rows = [seed | {"pair_id": pair, "perspective": name} for pair in "opq" for name in ("winter", "intent")]
    write_table(run_dir / "1-pairs/seeds.parquet", pa.Table.from_pylist(rows, SEED))
    folder = StageFolder(run_dir, "5-preferences", {}, INPUTS)
    monkeypatch.setattr(reference, "score_preferences", lambda table, *_: table)
    reference.run(stage("stop", fallback=["seeds"]), folder)
    found = read_table(folder.path / "preferences.parquet").to_pylist()
    assert [(row["pair_id"], row["chosen_perspective"]) for row in found] == [("p", "intent")]
    assert found[0]["chosen"].startswith("It is what they want.")


@pytest.mark.parametrize(("rows", "most", "kept"), [(0, 5, 0), (3, 5, 3), (6, 5, 5), (250, 200, 200)])
def test_as_many_held_out_preferences_are_watched_as_may_be(rows: int, most: int, kept: int) -> None:
    found = dpo.evenly_spaced(pa.table({"n": list(range(rows))}), most)["n"].to_pylist()
    assert len(found) == len(set(found)) == kept and found[:1] == [0][:kept]


def test_dpo_is_skipped_where_the_config_says_so(run_dir: Path, llama_folder: Path) -> None:
    reference.run(stage("skip"), StageFolder(run_dir, "5-preferences", {}, INPUTS))
    dpo.run(DpoStage(seed=1, dpo=DpoSettings()), StageFolder(run_dir, "6-dpo", {}, INPUTS))
    manifest = read_manifest(run_dir / "6-dpo")
    assert manifest is not None and "skipped" in manifest["figures"]
    same = (run_dir / "6-dpo/model/model.safetensors").read_bytes()
    assert same == (llama_folder / "model.safetensors").read_bytes()
    assert (run_dir / "6-dpo/model/model.safetensors").samefile(run_dir / "3-sft/model/model.safetensors")


def test_a_model_that_cannot_be_linked_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(18, "Invalid cross-device link")

    (tmp_path / "a").write_text("weights", encoding="utf-8")
    (tmp_path / "b").write_text("older", encoding="utf-8")
    monkeypatch.setattr("os.link", refuse)
    dpo.link_or_copy(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_text(encoding="utf-8") == "weights"


def test_a_disputed_pair_has_no_rejected_answers_if_that_is_wanted(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most samples of every perspective say C. The gold label E came up once, and is the chosen one."""
    names = PerspectiveSettings().names
    wrong = {"key": "k", "pair_id": "p", "rationale": "A case.", "verdict": "C", "reason": NOT_GOLD, "hinted": False}
    samples = [wrong | {"perspective": name, "sample": n} for name in names for n in (1, 2)]
    monkeypatch.setattr(reference, "score_preferences", lambda table, *_: table)

    def made(logprobs: list[float], **changes: object) -> tuple[int, int]:
        rows = pa.Table.from_pylist([sample | {"logprobs": logprobs} for sample in samples], SORTED)
        write_table(run_dir / "4-samples/filtered.parquet", rows)
        folder = StageFolder(run_dir, "5-preferences", {}, INPUTS)
        reference.run(stage("skip", **changes), folder)
        manifest = read_manifest(folder.path)
        assert manifest is not None
        return manifest["counts"]["preferences"], manifest["figures"]["disputed_pairs"]

    sure, unsure = [-3.0, -4.0, -0.1, -5.0], [-1.0, -4.0, -0.9, -5.0]
    assert made(sure) == (4, 0)
    assert made(sure, skip_disputed=True) == (0, 1)
    assert made(unsure, skip_disputed=True) == (4, 0), "a dispute without confidence is none"
