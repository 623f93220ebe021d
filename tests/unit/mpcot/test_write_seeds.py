"""Kept rationales of one run as seed rationales of another: what is written, what is left out, and that it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.base.errors import UsageError
from cluster.base.stage_folder import StageFolder
from cluster.base.tables import write_table
from mpcot.records import SORTED
from mpcot.sources.clean_rows import Cleaning
from mpcot.sources.files import SEED_COLUMNS, _to_seeds
from mpcot.write_seeds import whole_sentences, write_seeds
from tests.helpers.command import broadfast, text
from tests.helpers.inspect_run import write_run

SAID = "The lamp in the title is what the shopper named."


def kept(pair_id: str, rationale: str, verdict: str = "E", **more: Any) -> dict[str, Any]:
    row = {"key": f"{pair_id}{rationale}", "pair_id": pair_id, "perspective": "intent", "sample": 0, "hinted": False}
    return row | {"rationale": rationale, "verdict": verdict, "weight": 1.0} | more


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write_run(tmp_path / "run")
    rows = [
        kept("p0", SAID),
        kept("p1", f"{SAID} But it misses the", "S", hinted=True),
        kept("p2", "It is cut off before any sentence en", "C"),
        kept("p3", "Irrelevant to the query, so the verdict is I.", "I"),
        kept("p7", SAID, weight=0.5),
    ]
    folder = StageFolder(tmp_path / "run", "2-rationales", {"rationales": {}})
    write_table(folder.path / "kept.parquet", pa.Table.from_pylist(rows, SORTED))
    folder.finish({"requested": len(rows)})
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("One. Two", "One."),
        ("One. Two!", "One. Two!"),
        ("A 5.5 inch case (black). A sec", "A 5.5 inch case (black)."),
        ("Wie? 'So.' Und", "Wie? 'So.'"),
        ("no end", ""),
        ("", ""),
    ],
)
def test_a_text_is_cut_back_to_its_last_whole_sentence(text: str, whole: str) -> None:
    assert whole_sentences(text) == whole


def test_what_is_written_and_what_is_left_out(run_dir: Path, tmp_path: Path) -> None:
    counts = write_seeds(run_dir, tmp_path / "seeds.jsonl")
    assert counts == {"written": 2, "length: too few words": 1, "names the label only": 1, "not a training pair": 1}
    rows = [json.loads(line) for line in (tmp_path / "seeds.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["product_id"], row["verdict"], row["rationale"], row["origin"]) for row in rows] == [
        ("x0", "E", SAID, "tiny"),
        ("x1", "S", SAID, "tiny, hinted"),
    ]


def test_a_source_reads_them(run_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "seeds.jsonl"
    said = broadfast("seeds", run_dir, path, "--origin", "large")
    assert said.exit_code == 0 and "2 written" in text(said)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert set(SEED_COLUMNS) < set(rows[0])
    read = _to_seeds(rows, Cleaning(tuple("ESCI"), {}, "us")).to_pylist()
    assert [(row["locale"], row["verdict"], row["origin"]) for row in read] == [
        ("us", "E", "large"),
        ("us", "S", "large, hinted"),
    ]
    # What is written is in the scheme's codes, one of which the source may use for another label.
    cleaning = Cleaning(tuple("ESCI"), {"E": "I", "exact": "E"}, "us")
    found = _to_seeds([*rows, rows[0] | {"verdict": "exact"}], cleaning).to_pylist()
    assert [row["verdict"] for row in found] == ["E", "S", "E"]


def test_a_run_without_rationales_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run folder"):
        write_seeds(tmp_path, tmp_path / "seeds.jsonl")
    write_run(tmp_path / "run")
    (tmp_path / "run" / "2-rationales" / "manifest.json").unlink()
    with pytest.raises(UsageError, match="2-rationales is not finished"):
        write_seeds(tmp_path / "run", tmp_path / "seeds.jsonl")
    assert not (tmp_path / "seeds.jsonl").exists()
