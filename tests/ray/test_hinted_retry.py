"""The hinted retry on Ray Data with the scripted engine: asked once, marked, in the ledger."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from cluster.base.stage_folder import StageFolder, read_manifest
from cluster.base.tables import read_table
from mpcot.config import (
    PerspectiveSettings,
    RationaleSettings,
    RationaleStage,
    Replicas,
    ScriptedEngine,
    TeacherSettings,
)
from mpcot.pairs import stage as pairs_stage
from mpcot.rationales import run_rationales
from mpcot.sources.config import CatalogueSource, LabelSettings, PairsStage
from workflows.verify import verify_run

NAMES = PerspectiveSettings().names


@pytest.fixture
def shop(local_ray: None, tmp_path: Path) -> Path:
    """A run folder with the pairs of a small catalogue, and a Ray to work on them."""
    source = CatalogueSource(pairs=90, products_per_query=3)
    pairs_stage.run(PairsStage(seed=3, source=source), StageFolder(tmp_path, "1-pairs"))
    return tmp_path


def run(run_dir: Path, model: Path, log: Path, **asked: Any) -> dict[str, Any]:
    """Run stage 2 and return its manifest. Of the scripted answers 30 % are right, with a hint too."""
    replicas = Replicas(pairs_per_task=8, flush_rows=16)
    config = RationaleStage(
        seed=1,
        labels=LabelSettings(),
        perspectives=PerspectiveSettings(),
        teacher=TeacherSettings(model=str(model)),
        engine=ScriptedEngine(accuracy=0.3, failure_share=0.03, log=str(log), replicas=replicas),
        rationales=RationaleSettings(**{"retries": 0, **asked}),
    )
    made = read_manifest(run_dir / "1-pairs")
    assert made is not None
    run_rationales(config, StageFolder(run_dir, "2-rationales", {}, {"1-pairs": made["fingerprint"]}))
    manifest = read_manifest(run_dir / "2-rationales")
    assert manifest is not None and [wrong for *_, wrong in verify_run(run_dir)] == [[], []]
    return manifest


def outcome(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        n: read_table(run_dir / "2-rationales" / f"{n}.parquet").to_pylist() for n in ("kept", "filtered", "failed")
    }


def test_pairs_that_were_all_wrong_are_asked_once_more_with_a_hint(shop: Path, llama_folder: Path) -> None:
    log = shop / "asked.log"
    first = run(shop, llama_folder, log, hinted_retry=True)
    found = outcome(shop)
    rows = [row for part in found.values() for row in part]
    hinted = [row for row in rows if row["hinted"]]
    pairs = {p["pair_id"]: p for p in read_table(shop / "1-pairs" / "pairs.parquet").to_pylist()}
    plain = [row for row in rows if not row["hinted"] and row["verdict"] is not None]
    right = {row["pair_id"] for row in plain if row["verdict"] == pairs[row["pair_id"]]["label"]}
    wrong = {row["pair_id"] for row in plain} - right
    assert len(wrong) > 5 < len(right)
    assert Counter((r["pair_id"], r["perspective"]) for r in hinted) == dict.fromkeys(product(wrong, NAMES), 1)
    kept = [row for row in found["kept"] if row["hinted"]]
    assert kept and all(row["verdict"] == pairs[row["pair_id"]]["label"] for row in kept)
    assert first["figures"]["hinted"] == {"pairs": len(wrong), "requested": len(hinted), "kept": len(kept)}
    assert first["counts"]["requested"] == first["figures"]["asked"] == len(rows)

    asked = log.read_text().splitlines()
    assert sorted(asked) == sorted({row["key"] for row in rows})
    second = run(shop, llama_folder, log, hinted_retry=True)
    assert second["figures"]["asked"] == 0 and second["counts"] == first["counts"] and outcome(shop) == found

    without = run(shop, llama_folder, log)
    assert without["figures"]["asked"] == 0 and "hinted" not in without["figures"]
    assert without["counts"]["requested"] == len(rows) - len(hinted)
    assert log.read_text().splitlines() == asked, "nothing is asked twice"
