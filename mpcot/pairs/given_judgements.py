"""Checks judgements from elsewhere against pairs and perspectives. Stage 1 writes them, stage 7 takes them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.base.errors import UserError
from cluster.base.tables import write_table
from mpcot.pairs.ids import pair_id
from mpcot.records import FAILED_ROW, GIVEN_JUDGEMENT
from mpcot.sources.clean_rows import reason_of

Row = dict[str, Any]
GIVEN, FAILED = "judgements.parquet", "failed_judgements.parquet"


def settle(judgements: pa.Table, pairs: Collection[str], perspectives: Collection[str]) -> tuple[list[Row], list[Row]]:
    """Return the rows that can be used, with their `pair_id`, and the others, with an `error`; both with `source_row`.

    Of equal verdicts on one pair and perspective the first counts. Verdicts that differ all fail. A judgement of the
    pair as a whole, which names no perspective, counts only where no perspective has one.

    Args:
        pairs: the ids of the pairs.
    """
    rows = [row | {"source_row": place} for place, row in enumerate(judgements.to_pylist())]
    spoken: dict[tuple[str, str | None], list[Row]] = defaultdict(list)
    for row in rows:
        if row["error"]:
            continue
        row["pair_id"] = pair_id(row["locale"], row["query"], row["product_id"])
        if row["pair_id"] not in pairs:
            row["error"] = "no such pair"
        elif row["perspective"] is not None and row["perspective"] not in perspectives:
            row["error"] = f"unknown perspective: {row['perspective'][:50]!r}, the run has {', '.join(perspectives)}"
        else:
            spoken[row["pair_id"], row["perspective"]].append(row)
    by_perspective = {pair for pair, name in spoken if name is not None}
    for pair in [pair for pair, name in spoken if name is None and pair in by_perspective]:
        for row in spoken.pop((pair, None)):
            row["error"] = "perspectives have judged this pair"
    for first, *others in spoken.values():
        verdicts = sorted({row["verdict"] for row in (first, *others)})
        for row in (first, *others) if len(verdicts) > 1 else ():
            row["error"] = f"two judgements of one perspective: {', '.join(verdicts)}"
        for row in others if len(verdicts) == 1 else ():
            row["error"] = f"duplicate: of row {first['source_row']}"
    return [row for row in rows if not row["error"]], [row for row in rows if row["error"]]


def write_given(
    judgements: pa.Table, pairs: Collection[str], perspectives: Collection[str], folder: Path
) -> tuple[dict[str, int], Mapping[str, Any]]:
    """Write `judgements.parquet` and `failed_judgements.parquet`, and return what the manifest says of them.

    Raises:
        UserError: no row can be used.
    """
    kept, failed = settle(judgements, pairs, perspectives)
    reasons = dict(Counter(reason_of(row["error"]) for row in failed).most_common())
    failures = [{"source_row": row["source_row"], "reason": row["error"], "row": row["raw"]} for row in failed]
    write_table(folder / FAILED, pa.Table.from_pylist(failures, schema=FAILED_ROW))
    if not kept:
        said = "; ".join(f"{reason}: {count}" for reason, count in reasons.items())
        raise UserError(
            f"source.judgements: none of the {len(failed)} rows can be used ({said}). See {FAILED}; correct the file, "
            "or take the setting out"
        )
    write_table(folder / GIVEN, pa.Table.from_pylist(kept, schema=GIVEN_JUDGEMENT))
    counts = {"judgements": len(kept), "judgements_failed": len(failed)}
    return counts, {"origins": dict(Counter(row["origin"] for row in kept)), "failed_reasons": reasons}
