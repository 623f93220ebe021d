"""A small shop whose labels can be learnt, with a teacher's judgements, as finished stage folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.base.stage_folder import StageFolder
from cluster.base.tables import write_table
from mpcot.records import JUDGEMENT, PAIR, TARGET
from mpcot.schemes.scheme import load_scheme

Row = dict[str, Any]
PERSPECTIVES = ("intent", "rules")
COLOURS, THINGS = ("red", "blue"), ("drill", "lamp", "mug", "case")
TARGET_WIDTH = 6
BINARY = load_scheme("binary")
YES, NO = BINARY.codes


def shop() -> list[dict[str, Any]]:
    """Every thing asked for, every thing shown: relevant if they are the same. Split by colour and turn."""
    splits = ("train", "train", "dev", "test", "unlabelled")
    rows = []
    for turn, split in enumerate(splits):
        for asked in THINGS:
            for shown in THINGS:
                rows.append(
                    {
                        "pair_id": f"{turn}-{asked}-{shown}",
                        "query_id": f"{turn}-{asked}",
                        "product_id": f"{turn}-{shown}",
                        "locale": "us",
                        "query": f"{COLOURS[turn % 2]} {asked}",
                        "title": f"the {shown}",
                        "brand": None,
                        "description": None,
                        "label": None if split == "unlabelled" else (YES if asked == shown else NO),
                        "split": split,
                    }
                )
    return rows


def judgement(pair: dict[str, Any]) -> dict[str, Any]:
    """The first perspective is always right, the second never gives an answer for mugs and else says no."""
    right = YES if pair["query"].split()[1] == pair["title"].split()[1] else NO
    silent = "mug" in pair["query"]
    return {
        "pair_id": pair["pair_id"],
        "vote": right,
        "agreement": 0.5,
        "soft": [0.75, 0.25] if right == YES else [0.25, 0.75],
        "verdicts": [right, None if silent else NO],
        "rationales": [f"the shopper wants {pair['query']}", None if silent else f"a {pair['title']} is not"],
        "perspective_soft": [[0.9, 0.1], None if silent else [0.1, 0.9]],
    }


def vectors(said: dict[str, Any]) -> list[list[float] | None]:
    """One direction per perspective and verdict."""
    found: list[list[float] | None] = []
    for p, verdict in enumerate(said["verdicts"]):
        found.append(None if verdict is None else np.eye(TARGET_WIDTH)[2 * p + BINARY.index(verdict)].tolist())
    return found


def make_run(run_dir: Path) -> Path:
    """Write folders 1-pairs, 7-judgements and 8-targets, finished; one train pair was not judged."""
    pairs = shop()
    judged = [judgement(pair) for pair in pairs[1:]]
    targets = [{"pair_id": said["pair_id"], "vectors": vectors(said)} for said in judged]
    write_stages(run_dir, pairs, judged, targets)
    return run_dir


ENCODED = {"targets": {"text": "rationale"}, "content": {"targets.encoder": "tiny"}}


def write_stages(run_dir: Path, pairs: list[Row], judged: list[Row], targets: list[Row]) -> None:
    """Write what a student learns from as the finished folders 1-pairs, 7-judgements and 8-targets."""
    for stage, name, rows, schema, settings, figures in (
        ("1-pairs", "pairs", pairs, PAIR, {}, {}),
        ("7-judgements", "judgements", judged, JUDGEMENT, {}, {}),
        ("8-targets", "targets", targets, TARGET, ENCODED, {"width": TARGET_WIDTH}),
    ):
        folder = StageFolder(run_dir, stage, settings)
        write_table(folder.path / f"{name}.parquet", pa.Table.from_pylist(rows, schema))
        folder.finish({"ok": len(rows)}, figures)


def stage_folder(run_dir: Path, name: str, **settings: Any) -> StageFolder:
    """Return the folder of a stage that may read all the stages of `make_run` and 9-student."""
    stages = ("1-pairs", "7-judgements", "8-targets", "9-student")
    return StageFolder(run_dir, name, settings, {done: "made" for done in stages if done != name})
