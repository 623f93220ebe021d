"""Reads the answers of a finished stage into one table, in the same form for every stage.

Of the texts only the lengths are kept, so that millions of answers fit into memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.base.tables import read_table
from mpcot.records import NOT_GOLD

OUTCOMES = ("kept", "filtered", "failed")
JUDGEMENTS = "7-judgements"
COLUMNS = ["pair_id", "perspective", "sample", "verdict", "reason"]


def read_answers(folder: Path, perspectives: Sequence[str]) -> pd.DataFrame:
    """Return one row per answer of a finished stage 2, 4 or 7.

    Returns:
        pair_id, perspective, sample, verdict, reason, chars (of the rationale), outcome, label, split, hinted.
    """
    if folder.name == JUDGEMENTS:
        frames = _judgements(folder, perspectives)
    else:
        frames = [_file(folder / f"{outcome}.parquet", outcome) for outcome in OUTCOMES]
    frame = pd.concat(frames, ignore_index=True)
    pairs = read_table(folder.parent / "1-pairs" / "pairs.parquet", ["pair_id", "label", "split"]).to_pandas()
    frame = frame.merge(pairs, on="pair_id", how="left")
    if folder.name == JUDGEMENTS:
        wrong = frame["label"].notna() & (frame["outcome"] == "kept") & (frame["verdict"] != frame["label"])
        frame.loc[wrong, ["outcome", "reason"]] = ["filtered", NOT_GOLD]
    return frame[frame["perspective"].isin(perspectives)]


def _file(path: Path, outcome: str) -> pd.DataFrame:
    with pq.ParquetFile(path) as file:
        columns = [*COLUMNS, *(c for c in ("hinted",) if c in file.schema_arrow.names)]
        small = [
            pa.Table.from_batches([batch.select(columns)]).append_column("chars", pc.utf8_length(batch["rationale"]))
            for batch in file.iter_batches(columns=[*columns, "rationale"])
        ]
    frame: pd.DataFrame = pa.concat_tables(small).to_pandas() if small else pd.DataFrame(columns=[*columns, "chars"])
    if "hinted" not in columns:
        frame["hinted"] = False
    return frame.assign(outcome=outcome)


def _judgements(folder: Path, perspectives: Sequence[str]) -> list[pd.DataFrame]:
    """Return one answer per judged pair and perspective, and the failed answers."""
    found = [_file(folder / "failed.parquet", "failed")]
    with pq.ParquetFile(folder / "judgements.parquet") as file:
        for batch in file.iter_batches(columns=["pair_id", "verdicts", "rationales"]):
            width = len(perspectives)
            verdicts = batch["verdicts"].flatten()
            rows = {
                "pair_id": np.repeat(batch["pair_id"].to_numpy(zero_copy_only=False), width),
                "perspective": np.tile(np.asarray(perspectives, dtype=object), len(batch)),
                "sample": 0,
                "verdict": verdicts.to_numpy(zero_copy_only=False),
                "reason": None,
                "chars": pc.utf8_length(batch["rationales"].flatten()).to_numpy(zero_copy_only=False),
                "hinted": False,
                "outcome": "kept",
            }
            found.append(pd.DataFrame(rows)[pc.is_valid(verdicts).to_numpy(zero_copy_only=False)])
    return found


def texts_of(folder: Path, perspectives: Sequence[str], pair_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return the answers to some pairs with their rationales, but none to a prompt with a hint."""
    wanted = pc.field("pair_id").isin(list(pair_ids))
    if folder.name == JUDGEMENTS:
        rows = pq.read_table(folder / "judgements.parquet", filters=wanted).to_pylist()
        return [
            {"pair_id": row["pair_id"], "perspective": name, "sample": 0, "verdict": verdict, "rationale": text}
            for row in rows
            for name, verdict, text in zip(perspectives, row["verdicts"], row["rationales"], strict=True)
        ]
    columns = [*COLUMNS, "rationale"]
    found: list[dict[str, Any]] = []
    for outcome in OUTCOMES:
        rows = pq.read_table(folder / f"{outcome}.parquet", filters=wanted).to_pylist()
        found += [{c: row[c] for c in columns} | {"outcome": outcome} for row in rows if not row.get("hinted")]
    return found
