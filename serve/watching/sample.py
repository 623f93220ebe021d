"""Draws a sample of the logged answers: each pair of texts once, all of them alike, the same ones for the same seed."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from xxhash import xxh3_64_intdigest

from cluster.base.errors import UserError
from cluster.base.stage_folder import digest
from mpcot.pairs.ids import pair_id, query_id
from mpcot.records import PAIR
from mpcot.sources.clean_rows import Cleaning, make_row, reason_of
from serve.parts.part_log import undisturbed
from serve.watching.answer_log import PRODUCT, open_answers

Row = dict[str, Any]
SAMPLE = "sample.parquet"

# RUN_DIR/watch/*/sample.parquet -> `broadfast watch`, `broadfast roll --judge`. Pairs as the teacher gets them, with
# the model that answered and the label that it gave.
SAMPLED = pa.schema([*PAIR, pa.field("model", pa.string()), pa.field("served", pa.string())])


@dataclass(frozen=True)
class Wish:
    """What to draw: how many pairs, of which hours and of which model; of all models if `model` is None."""

    pairs: int
    since: datetime
    model: str | None = None
    seed: str = ""


def draw_sample(log: Path, wish: Wish, cleaning: Cleaning) -> tuple[pa.Table, Counter[str]]:
    """Return `SAMPLED` rows, and how many rows were left out by reason.

    Raises:
        UserError: the folder holds no answers, or none of this time and model, or none that can be judged.
    """
    wanted = pc.field("at") >= wish.since
    if wish.model is not None:
        wanted &= pc.field("model") == wish.model
    kept, seen = undisturbed(lambda: lowest(_rows(open_answers(log, wish.since), wanted), wish.pairs, wish.seed))
    if not kept:
        of = f" of {wish.model}" if wish.model else ""
        raise UserError(
            f"{log} holds no logged answers{of} since {wish.since:%Y-%m-%d %H:%M} UTC. Name a longer time with --hours,"
            " or see to it that the service keeps a sample (serve.answer_log)."
        )
    left_out = Counter({"drawn from": seen})
    rows = []
    for key, row in sorted(kept.items()):
        # The label is that of the model, and only looked at here: a served label is no gold label.
        made = make_row(0, row | {"product_id": key}, cleaning)
        if made["error"]:
            left_out[reason_of(made["error"])] += 1
        else:
            rows.append(_pair(made) | {"model": row["model"], "served": row["label"]})
    if not rows:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in left_out.items())
        raise UserError(f"{log}: none of the logged answers that were drawn can be judged ({reasons}).")
    return pa.Table.from_pylist(rows, SAMPLED), left_out


def newest_model(log: Path, since: datetime) -> str | None:
    """Return the model that gave the latest logged answer since then; None if there is none."""
    recent = pc.field("at") >= since
    found = undisturbed(lambda: open_answers(log, since).to_table(columns=["model", "at"], filter=recent))
    if not len(found):
        return None
    return found["model"][pc.index(found["at"], pc.max(found["at"])).as_py()].as_py()


def _rows(answers: pads.Dataset, wanted: pc.Expression) -> Iterable[Row]:
    columns = ["model", "at", "query", *PRODUCT, "label"]
    for batch in answers.to_batches(columns=columns, filter=wanted):
        yield from batch.to_pylist()


def lowest(rows: Iterable[Row], count: int, seed: str) -> tuple[dict[str, Row], int]:
    """Return `count` of the distinct pairs of query and product texts, by a digest of these, and the number of rows.

    Those with the lowest hashes are drawn, which is a uniform sample in one pass and in the memory of `count` rows,
    whatever the order of the rows. Of a pair that was answered several times the latest answer counts.
    """
    kept: dict[str, Row] = {}
    order: list[tuple[int, str]] = []  # the highest hash first
    seen = 0
    for row in rows:
        seen += 1
        key = _key(row)
        if key in kept:
            kept[key] = max(kept[key], row, key=lambda each: each["at"])
            continue
        rank = -xxh3_64_intdigest(f"{seed}/{key}".encode())
        if len(order) < count:
            heapq.heappush(order, (rank, key))
        elif rank > order[0][0]:
            kept.pop(heapq.heapreplace(order, (rank, key))[1])
        else:
            continue
        kept[key] = row
    return kept, seen


def _key(row: Mapping[str, Any]) -> str:
    return digest([row["query"], *(row[name] for name in PRODUCT)])


def _pair(row: Row) -> Row:
    ids = {
        "pair_id": pair_id(row["locale"], row["query"], row["product_id"]),
        "query_id": query_id(row["locale"], row["query"]),
    }
    return {name: row.get(name) for name in PAIR.names} | ids | {"label": None, "split": "unlabelled"}
