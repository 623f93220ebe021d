"""Writes rationales of one run as seeds for another, such as those of a large model for a small one to learn from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster.base.run_folder import finished_stage, saved_config
from cluster.base.tables import read_table
from cluster.base.whole_files import whole_file
from mpcot.asking.parsing import whole_sentences
from mpcot.filters.config import LabelOnlyFilter, LengthFilter
from mpcot.filters.objections import label_only, length
from mpcot.schemes.scheme import load_scheme

PAIR_COLUMNS = ["pair_id", "query", "product_id", "locale", "split"]
PIECE_ROWS = 4096


def write_seeds(run_dir: Path, path: Path, origin: str | None = None) -> Counter[str]:
    """Write the rationales that a run kept of its training pairs as jsonl, which `source.seeds` reads.

    A rationale that was cut off ends with its last whole sentence. One that then has fewer than five words, or none
    about the pair, is left out.

    Args:
        origin: who wrote them. If left out, it is the last part of the teacher's name.

    Returns:
        How many were written, and how many were left out for each reason.

    Raises:
        UsageError: this is no run folder, or its rationales are not finished.
        UserError: the disk is full, read-only or closed to this user.
    """
    config = saved_config(run_dir)
    stage = finished_stage(run_dir, "2-rationales", upto="rationales")
    origin = origin or Path(config["teacher"]["model"]).name
    scheme = load_scheme(config["labels"]["scheme"])
    objections = (partial(length, LengthFilter()), label_only(LabelOnlyFilter(), scheme))
    pairs = {row["pair_id"]: row for row in read_table(run_dir / "1-pairs" / "pairs.parquet", PAIR_COLUMNS).to_pylist()}
    counts: Counter[str] = Counter(written=0)
    with whole_file(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for kept in _kept(stage / "kept.parquet"):
            pair, rationale = pairs[kept["pair_id"]], whole_sentences(kept["rationale"])
            reason = next((said for objection in objections if (said := objection(rationale))), None)
            if pair["split"] != "train" or reason:
                counts[reason or "not a training pair"] += 1
                continue
            file.write(json.dumps(_seed(pair, kept, rationale, origin), ensure_ascii=False) + "\n")
            counts["written"] += 1
    return counts


def _kept(path: Path) -> Iterator[dict[str, Any]]:
    columns = ["pair_id", "perspective", "rationale", "verdict", "hinted"]
    for batch in pq.ParquetFile(path).iter_batches(PIECE_ROWS, columns=columns):
        yield from batch.to_pylist()


def _seed(pair: Mapping[str, Any], kept: Mapping[str, Any], rationale: str, origin: str) -> dict[str, str]:
    return {
        **{name: pair[name] for name in ("query", "product_id", "locale")},
        **{name: kept[name] for name in ("perspective", "verdict")},
        "rationale": rationale,
        "origin": f"{origin}, hinted" if kept["hinted"] else origin,
    }
