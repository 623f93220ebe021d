"""Stage 2 on Ray Data with the scripted engine: every request answered once, nothing paid for twice."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from cluster.base.errors import UserError
from cluster.base.stage_folder import MANIFEST, StageFolder, read_json
from cluster.base.tables import read_table
from mpcot import rationales
from mpcot.asking import join_answers
from mpcot.config import (
    JudgeSettings,
    PerspectiveSettings,
    RationaleSettings,
    RationaleStage,
    Replicas,
    ScriptedEngine,
    TeacherSettings,
    UntunedJudgeStage,
)
from mpcot.judgements import run_untuned
from mpcot.pairs import stage as pairs_stage
from mpcot.rationales import run_rationales
from mpcot.records import ANSWER, SORTED
from mpcot.schemes.scheme import load_scheme
from mpcot.sources.config import CatalogueSource, LabelSettings, PairsStage
from tests.helpers.generation_run import PATIENCE_S, workers

pytestmark = pytest.mark.usefixtures("local_ray")
NAMES = PerspectiveSettings().names
REPLICAS = Replicas(pairs_per_task=8, flush_rows=16)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the pairs of a small catalogue."""
    root = tmp_path_factory.mktemp("shop")
    source = CatalogueSource(pairs=90, products_per_query=3)
    pairs_stage.run(PairsStage(seed=3, source=source), StageFolder(root, "1-pairs"))
    return root


def stage(model: Path, engine: dict[str, Any] | None = None, **asked: Any) -> RationaleStage:
    return RationaleStage(
        seed=1,
        labels=LabelSettings(),
        perspectives=PerspectiveSettings(),
        teacher=TeacherSettings(model=str(model)),
        engine=ScriptedEngine(**{"accuracy": 0.6, "replicas": REPLICAS, **(engine or {})}),
        rationales=RationaleSettings(**{"samples": 2, **asked}),
    )


def run(config: RationaleStage, shop: Path, run_dir: Path) -> dict[str, Any]:
    """Run the stage in `run_dir`, beside the pairs; return its manifest."""
    if not (run_dir / "1-pairs").exists():
        shutil.copytree(shop / "1-pairs", run_dir / "1-pairs")
    folder = StageFolder(run_dir, "2-rationales", {}, {"1-pairs": "made"})
    run_rationales(config, folder)
    return read_json(folder.path / MANIFEST)


@pytest.fixture(scope="module")
def done(shop: Path, llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("done")
    run(stage(llama_folder), shop, root)
    return root


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    """The finished run as an interrupted one: answers, but no manifest and no results."""
    root = Path(shutil.copytree(done, tmp_path / "run"))
    for item in (root / "2-rationales").iterdir():
        if item.name != "answers":
            item.unlink()
    return root


def outcome(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        n: read_table(run_dir / "2-rationales" / f"{n}.parquet").to_pylist() for n in ("kept", "filtered", "failed")
    }


def parts(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "2-rationales" / "answers").glob("*.parquet"))


def test_every_pair_perspective_and_sample_is_answered_exactly_once(done: Path) -> None:
    pairs = {p["pair_id"]: p for p in read_table(done / "1-pairs" / "pairs.parquet").to_pylist()}
    train = [i for i, p in pairs.items() if p["split"] == "train"]
    found = outcome(done)
    places = Counter((r["pair_id"], r["perspective"], r["sample"]) for rows in found.values() for r in rows)
    assert set(places) == {(i, name, sample) for i in train for name in NAMES for sample in (0, 1)}
    assert set(places.values()) == {1} and len(train) > 20
    assert read_table(done / "2-rationales" / "kept.parquet").schema.equals(SORTED)
    counts = read_json(done / "2-rationales" / MANIFEST)["counts"]
    assert counts == {"requested": len(train) * 6} | {name: len(rows) for name, rows in found.items()}
    assert not (done / "2-rationales" / "todo").exists()


def test_kept_are_the_gold_verdicts_and_the_rest_has_reasons(done: Path) -> None:
    pairs = {p["pair_id"]: p for p in read_table(done / "1-pairs" / "pairs.parquet").to_pylist()}
    found = outcome(done)
    assert found["kept"] and found["filtered"]
    for row in found["kept"]:
        assert row["verdict"] == pairs[row["pair_id"]]["label"] and row["reason"] is None
        assert pairs[row["pair_id"]]["query"] in row["rationale"]
        assert len(row["logprobs"]) == 4
        assert max(row["logprobs"]) == row["logprobs"][load_scheme("esci").index(row["verdict"])]
    assert {r["reason"] for r in found["filtered"]} == {"verdict is not gold"}
    share = len(found["kept"]) / (len(found["kept"]) + len(found["filtered"]))
    assert share == pytest.approx(0.6, abs=0.12)


def test_a_rerun_asks_for_nothing(copy: Path, shop: Path, llama_folder: Path, done: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in parts(copy)}
    manifest = run(stage(llama_folder), shop, copy)
    assert manifest["figures"]["asked"] == 0 and manifest["figures"]["reused"] == manifest["counts"]["requested"]
    assert {p: p.stat().st_mtime_ns for p in parts(copy)} == before
    assert outcome(copy) == outcome(done)


def test_many_pairs_are_sorted_in_tasks_as_few_are_here(
    copy: Path, shop: Path, llama_folder: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sorted_here = []
    own = rationales.sort_out
    monkeypatch.setattr(rationales, "sort_out", lambda joined, **how: sorted_here.append(joined) or own(joined, **how))
    monkeypatch.setattr(join_answers, "SORTED_PAIRS", 1)
    run(stage(llama_folder), shop, copy)
    assert outcome(copy) == outcome(done)
    assert not sorted_here, "all went to workers"


def test_many_pairs_are_judged_in_tasks_as_few_are_here(
    shop: Path, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = stage(llama_folder)
    named = {name: getattr(asked, name) for name in ("seed", "labels", "perspectives", "teacher", "engine")}
    config = UntunedJudgeStage(**named, judge=JudgeSettings(fit=True))
    found = []
    for batch in (join_answers.SORTED_PAIRS, 1):
        monkeypatch.setattr(join_answers, "SORTED_PAIRS", batch)
        run_dir = tmp_path / str(batch)
        shutil.copytree(shop / "1-pairs", run_dir / "1-pairs")
        folder = StageFolder(run_dir, "7-judgements", {}, {"1-pairs": "made"})
        run_untuned(config, folder)
        manifest = read_json(folder.path / MANIFEST)
        figures = {name: manifest["figures"][name] for name in ("quality", "origins", "fit")}
        found.append((read_table(folder.path / "judgements.parquet").to_pylist(), manifest["counts"], figures))
    assert found[0] == found[1] and len(found[0][0]) == manifest["counts"]["judged"] > 50


def test_a_half_done_stage_asks_only_for_what_is_missing(
    copy: Path, shop: Path, llama_folder: Path, done: Path
) -> None:
    """One part is gone, one is cut off by a kill, one was written twice by a worker that died after it."""
    lost, cut, doubled = parts(copy)[:3]
    missing = len(read_table(lost)) + len(read_table(cut))
    lost.unlink()
    cut.with_name(cut.name + ".partial").write_bytes(cut.read_bytes()[:50])
    cut.unlink()
    shutil.copy(doubled, doubled.with_name("another-000000.parquet"))
    other = stage(llama_folder, {"replicas": Replicas(pairs_per_task=3, max=2, flush_rows=2)})
    manifest = run(other, shop, copy)
    assert manifest["figures"]["asked"] == missing
    assert manifest["figures"]["reused"] == manifest["counts"]["requested"] - missing
    assert outcome(copy) == outcome(done)


def test_more_samples_keep_those_that_were_paid_for(copy: Path, shop: Path, llama_folder: Path, done: Path) -> None:
    manifest = run(stage(llama_folder, samples=3), shop, copy)
    assert manifest["figures"]["reused"] == 2 * manifest["figures"]["asked"]
    kept = {(r["key"], r["rationale"]) for r in outcome(copy)["kept"]}
    assert {(r["key"], r["rationale"]) for r in outcome(done)["kept"]} <= kept


def test_failures_have_a_reason_and_retries_help(shop: Path, llama_folder: Path, tmp_path: Path) -> None:
    counts = {}
    for retries in (0, 2):
        config = stage(llama_folder, {"failure_share": 0.4}, retries=retries, max_failed_share=1.0)
        manifest = run(config, shop, tmp_path / str(retries))
        rows = outcome(tmp_path / str(retries))["failed"]
        assert {r["reason"] for r in rows} == {"unparsable: no verdict line"} and len(rows) > 0
        assert all(r["verdict"] is None and r["pair_id"] for r in rows)
        assert manifest["figures"]["reasons"]["unparsable: no verdict line"] == len(rows)
        counts[retries] = manifest["counts"]["failed"] / manifest["counts"]["requested"]
    assert counts[0] == pytest.approx(0.4, abs=0.08) and counts[2] == pytest.approx(0.4**3, abs=0.05)


def test_too_many_failures_stop_the_stage_and_keep_the_answers(shop: Path, llama_folder: Path, tmp_path: Path) -> None:
    config = stage(llama_folder, {"failure_share": 0.5}, retries=0)
    with pytest.raises(UserError, match=r"\d\d% of the answers failed.*max_failed_share 20%: \d+ x unparsable") as said:
        run(config, shop, tmp_path)
    assert "rationales" in str(said.value)
    assert not (tmp_path / "2-rationales" / MANIFEST).exists()
    assert read_table(tmp_path / "2-rationales" / "answers").num_rows > 0
    assert not psutil.wait_procs(workers(), timeout=PATIENCE_S)[1], "they keep their place on the cluster"


def test_an_empty_split_says_so(shop: Path, llama_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rationales: no pairs in the splits unlabelled"):
        run(stage(llama_folder, splits=("unlabelled",)), shop, tmp_path)
    assert not (tmp_path / "2-rationales" / MANIFEST).exists()


def test_parts_hold_no_more_than_they_may(done: Path) -> None:
    sizes = [len(read_table(path)) for path in parts(done)]
    assert max(sizes) <= REPLICAS.flush_rows and sum(sizes) == sum(len(rows) for rows in outcome(done).values())
    assert all(pq.read_schema(path).equals(ANSWER) for path in parts(done))
