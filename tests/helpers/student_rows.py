"""Rows that teach a student on the small shop, with vectors of their own for every pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.base.tables import read_table, write_table
from distill.lrkd.teaching_rows import RowSettings, StudentRows
from mpcot.records import TARGET
from tests.helpers.tiny_shop import BINARY


def row_settings(run_dir: Path = Path(), **changes: Any) -> RowSettings:
    """Return settings of rows with a target per perspective, as `tiny_shop.make_run` writes them."""
    given: dict[str, Any] = {
        "pairs": run_dir / "1-pairs/pairs.parquet",
        "judgements": run_dir / "7-judgements/judgements.parquet",
        "targets": run_dir / "8-targets/targets.parquet",
        "scheme": BINARY,
        "perspectives": ("intent", "rules"),
        "per_perspective": True,
        "target": "vote",
        "width": 6,
    }
    return RowSettings(**(given | changes))


def controlled(run_dir: Path, control: str, split: str = "train", **changes: Any) -> StudentRows:
    """Return the rows of a split under a control."""
    return StudentRows(row_settings(run_dir, control=control, **changes), (split,))


def embedded(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Give every pair vectors of its own, in all columns; return them by pair."""
    path = run_dir / "8-targets/targets.parquet"
    draw = np.random.default_rng(3)
    rows = read_table(path).to_pylist()
    for row in rows:
        for name in ("vectors", "permuted", "template"):
            row[name] = [None if v is None else draw.normal(size=6).astype(np.float32).tolist() for v in row["vectors"]]
        row |= {name: draw.normal(size=6).astype(np.float32).tolist() for name in ("query", "title")}
    write_table(path, pa.Table.from_pylist(rows, TARGET))
    return {row["pair_id"]: row for row in rows}
