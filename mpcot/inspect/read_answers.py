"""Reads the answers of a finished stage into one table, in the same form for every stage.

Of the texts only the lengths are kept, and of more than a million answers those about some of the pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mpcot.records import NOT_GOLD

OUTCOMES = ("kept", "filtered", "failed")
JUDGEMENTS = "7-judgements"
COLUMNS = ["pair_id", "perspective", "sample", "verdict", "reason"]
MOST = 1_000_000  # answers that are read, about 300 MB
EVERY = chr(0x10FFFF)  # above all ids


def read_answers(folder: Path, perspectives: Sequence[str], most: int = MOST) -> tuple[pd.DataFrame, int]:
    """Return one row per answer of a finished stage 2, 4 or 7, and how many answers there are.

    Of more than about `most` answers it is those about some pairs: the ones with the least ids, which are hashes.

    Returns:
        pair_id, perspective, sample, verdict, reason, chars (of the rationale), outcome, label, split, hinted.
    """
    judged = folder.name == JUDGEMENTS
    files = ["judgements.parquet", "failed.parquet"] if judged else [f"{outcome}.parquet" for outcome in OUTCOMES]
    rows = {name: pq.read_metadata(folder / name).num_rows for name in files}
    total = sum(count * (len(perspectives) if name == "judgements.parquet" else 1) for name, count in rows.items())
    below = EVERY if total <= most else f"{most * 16**8 // total:08x}"
    if judged:
        frames = _judgements(folder, perspectives, below)
    else:
        frames = [_file(folder / f"{outcome}.parquet", outcome, below) for outcome in OUTCOMES]
    frame = pd.concat(frames, ignore_index=True)
    of_pairs = folder.parent / "1-pairs" / "pairs.parquet"
    pairs = pq.read_table(of_pairs, columns=["pair_id", "label", "split"], filters=pc.field("pair_id") < below)
    frame = frame.merge(pairs.to_pandas(), on="pair_id", how="left")
    if folder.name == JUDGEMENTS:
        wrong = frame["label"].notna() & (frame["outcome"] == "kept") & (frame["verdict"] != frame["label"])
        frame.loc[wrong, ["outcome", "reason"]] = ["filtered", NOT_GOLD]
    frame = frame[frame["perspective"].isin(perspectives)]
    return frame, total if total > most else len(frame)


def _file(path: Path, outcome: str, below: str) -> pd.DataFrame:
    with pq.ParquetFile(path) as file:
        columns = [*COLUMNS, *(c for c in ("hinted",) if c in file.schema_arrow.names)]
        small = [
            pa.Table.from_batches([batch.select(columns)]).append_column("chars", pc.utf8_length(batch["rationale"]))
            for batch in _batches(file, [*columns, "rationale"], below)
        ]
    frame: pd.DataFrame = pa.concat_tables(small).to_pandas() if small else pd.DataFrame(columns=[*columns, "chars"])
    if "hinted" not in columns:
        frame["hinted"] = False
    return frame.assign(outcome=outcome)


def _batches(file: pq.ParquetFile, columns: list[str], below: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows about pairs with ids below a text."""
    for batch in file.iter_batches(columns=columns):
        yield batch.filter(pc.less(batch["pair_id"], below))


def _judgements(folder: Path, perspectives: Sequence[str], below: str) -> list[pd.DataFrame]:
    """Return one answer per judged pair and perspective, and the failed answers."""
    found = [_file(folder / "failed.parquet", "failed", below)]
    with pq.ParquetFile(folder / "judgements.parquet") as file:
        for batch in _batches(file, ["pair_id", "verdicts", "rationales"], below):
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
