"""Judgements from elsewhere beside pairs and perspectives: each is kept once, or fails with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder
from mpcot.config import GivenPairsStage, PerspectiveSettings
from mpcot.pairs.given_judgements import FAILED, GIVEN
from mpcot.pairs.ids import pair_id
from mpcot.pairs.stage import run
from mpcot.records import FAILED_ROW, GIVEN_JUDGEMENT
from mpcot.sources.config import TableSource
from tests.unit.mpcot.pairs.test_pairs import GOOD, write

OF = {"query": "Query 1", "product_id": "p3", "perspective": "intent", "rationale": "It fits.", "verdict": "S"}
ROWS: list[dict[str, Any]] = [
    OF | {"confidence": 0.7, "origin": "people"},
    OF | {"perspective": "rules", "rationale": None},
    OF | {"product_id": "nowhere"},
    OF | {"perspective": "winter"},
    OF | {"rationale": "Again."},
    OF | {"product_id": "p4", "verdict": "E"},
    OF | {"product_id": "p4", "verdict": "C"},
    OF | {"product_id": "p5", "verdict": "X"},
    OF | {"product_id": "p5", "confidence": 2},
]
REASONS = {
    2: "no such pair",
    3: "unknown perspective: 'winter', the run has intent, rules",
    4: "duplicate: of row 0",
    5: "two judgements of one perspective: C, E",
    6: "two judgements of one perspective: C, E",
    7: "verdict outside the scheme: 'X', which has E, S, C, I",
    8: "confidence outside 0 to 1: '2'",
}


def stage(tmp_path: Path, rows: list[dict[str, Any]]) -> StageFolder:
    pairs, given = write(tmp_path / "pairs.jsonl", GOOD), write(tmp_path / "given.jsonl", rows)
    folder = StageFolder(tmp_path / "run", "1-pairs")
    names = PerspectiveSettings(names=("intent", "rules"))
    run(GivenPairsStage(source=TableSource(path=str(pairs), judgements=str(given)), perspectives=names), folder)
    return folder


def test_every_row_is_kept_or_fails_with_a_reason(tmp_path: Path) -> None:
    folder = stage(tmp_path, ROWS)
    kept, failed = pq.read_table(folder.path / GIVEN), pq.read_table(folder.path / FAILED)
    assert kept.schema.equals(GIVEN_JUDGEMENT) and failed.schema.equals(FAILED_ROW)
    expected = {"pair_id": pair_id("us", "query 1", "p3"), "verdict": "S"}
    first, second = kept.to_pylist()
    assert first == expected | {
        "perspective": "intent", "rationale": "It fits.", "origin": "people",
        "probabilities": pytest.approx([0.1, 0.7, 0.1, 0.1]),
    }  # fmt: skip
    assert second == expected | {"perspective": "rules", "rationale": None, "origin": "file", "probabilities": None}
    assert {row["source_row"]: row["reason"] for row in failed.to_pylist()} == REASONS
    assert json.loads(failed.to_pylist()[0]["row"])["product_id"] == "nowhere"
    manifest = folder.manifest()
    assert manifest is not None
    assert (manifest["counts"]["judgements"], manifest["counts"]["judgements_failed"]) == (2, 7)
    assert manifest["figures"]["judgements"]["origins"] == {"people": 1, "file": 1}
    assert manifest["figures"]["judgements"]["failed_reasons"]["two judgements of one perspective"] == 2


def test_a_file_of_which_nothing_fits_stops_the_stage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of the 1 rows can be used \\(no such pair: 1\\)"):
        stage(tmp_path, ROWS[2:3])


def test_a_judgement_of_the_pair_as_a_whole_counts_where_no_perspective_has_one(tmp_path: Path) -> None:
    whole = {"query": "Query 1", "product_id": "p3", "verdict": "I", "confidence": 0.7}
    folder = stage(tmp_path, [OF, whole, whole | {"product_id": "p4"}, whole | {"product_id": "p5", "rationale": "R"}])
    kept, failed = (pq.read_table(folder.path / name).to_pylist() for name in (GIVEN, FAILED))
    assert [(row["perspective"], row["verdict"], row["rationale"]) for row in kept] == [
        ("intent", "S", "It fits."), (None, "I", None),
    ]  # fmt: skip
    assert kept[1]["pair_id"] == pair_id("us", "query 1", "p4")
    reasons = {row["source_row"]: row["reason"] for row in failed}
    assert reasons == {1: "perspectives have judged this pair", 3: "rationale without a perspective"}
