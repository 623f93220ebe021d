"""A run folder of eight pairs whose every figure can be worked out by hand: what the tests of `inspect` read.

Pairs p0 to p7 have the labels E, S, C, I, E, S, C, I; p7 has lost its label. `intent` is right on all but C,
where it says E; `rules` says E always, loops on p4 and fails on p5. Rationales have 10 characters times n + 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.base.stage_folder import StageFolder, write_json
from cluster.base.tables import write_table
from mpcot.records import ANSWER, JUDGEMENT, NOT_GOLD, PAIR

NAMES = ("intent", "rules")
SCRIPT = "<script>alert(1)</script>"
CONFIG = {
    "name": "made-up",
    "teacher": {"model": "models/tiny"},
    "labels": {"scheme": "esci"},
    "perspectives": {"names": list(NAMES)},
}


def pairs() -> list[dict[str, Any]]:
    """Eight pairs; a title is markup, another one very long."""
    fixed: dict[str, Any] = {"locale": "us", "brand": None, "attributes": {"shade": SCRIPT}}
    titles = {0: SCRIPT, 1: "a lamp with a very long name " * 12}
    return [
        fixed
        | {"pair_id": f"p{n}", "query_id": f"q{n}", "product_id": f"x{n}", "query": f"[red]case[/red] {n}"}
        | {"title": titles.get(n, f"lamp {n}"), "label": None if n == 7 else "ESCI"[n % 4]}
        | {"split": "unlabelled" if n == 7 else "train"}
        for n in range(8)
    ]


def answers() -> list[dict[str, Any]]:
    """Both perspectives' answers, with an `outcome` beside the columns of an answer."""
    rows = []
    for n, pair in enumerate(pairs()):
        gold = pair["label"]
        for name in NAMES:
            verdict = "E" if name == "rules" or gold == "C" else gold or "I"
            row: dict[str, Any] = {"key": f"{n}{name}", "pair_id": pair["pair_id"], "perspective": name, "sample": 0}
            row |= {"rationale": f"{SCRIPT if n == 3 else 'Some words':<10.10}" * (n + 1), "verdict": verdict}
            row |= {"reason": None, "outcome": "kept"}
            if name == "rules" and n == 4:
                row |= {"reason": "repetition", "outcome": "filtered"}
            elif name == "rules" and n == 5:
                row |= {"reason": f"engine error: {SCRIPT}", "outcome": "failed", "verdict": None, "rationale": None}
            elif gold not in (None, verdict):
                row |= {"reason": NOT_GOLD, "outcome": "filtered"}
            rows.append(row)
    return rows


def write_stage(run_dir: Path, stage: str, section: str, rows: list[dict[str, Any]], **settings: Any) -> None:
    """Write stage 2 or 4 as finished."""
    folder = StageFolder(run_dir, stage, {section: settings})
    for outcome in ("kept", "filtered", "failed"):
        own = [{k: v for k, v in row.items() if k != "outcome"} for row in rows if row["outcome"] == outcome]
        write_table(folder.path / f"{outcome}.parquet", pa.Table.from_pylist(own, ANSWER))
    folder.finish({"requested": len(rows)})


def write_judgements(run_dir: Path) -> None:
    """Stage 7 with the same verdicts; the answer that failed is in `failed`."""
    said = {(row["pair_id"], row["perspective"]): row for row in answers()}
    rows = []
    for pair in pairs():
        mine = [said[pair["pair_id"], name] for name in NAMES]
        row = {"pair_id": pair["pair_id"], "vote": mine[0]["verdict"], "agreement": 0.5, "soft": [0.25] * 4}
        row |= {"verdicts": [m["verdict"] for m in mine], "rationales": [m["rationale"] for m in mine]}
        rows.append(row | {"perspective_soft": [[0.25] * 4 if m["verdict"] else None for m in mine]})
    folder = StageFolder(run_dir, "7-judgements", {"judge": {}})
    write_table(folder.path / "judgements.parquet", pa.Table.from_pylist(rows, JUDGEMENT))
    failed = [{k: v for k, v in row.items() if k != "outcome"} for row in answers() if row["outcome"] == "failed"]
    write_table(folder.path / "failed.parquet", pa.Table.from_pylist(failed, ANSWER))
    folder.finish({"requested": 8})


def write_run(run_dir: Path) -> Path:
    """Write the config, the pairs and stage 2, and return the run folder."""
    write_table(run_dir / "1-pairs" / "pairs.parquet", pa.Table.from_pylist(pairs(), PAIR))
    write_json(run_dir / "config.json", CONFIG)
    write_stage(run_dir, "2-rationales", "rationales", answers(), min_chars=15, max_chars=60)
    return run_dir
