"""Writes the table of candidates that `source.candidates` reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.base.errors import UsageError, UserError
from cluster.base.run_folder import finished_stage
from cluster.base.tables import table_writer
from cluster.models.folders import model_to_load
from distill.candidates.mine import Mined, Mining, mine
from distill.candidates.order import doubts_of, ordered, verdicts_of
from distill.candidates.shop import Shop, from_results, open_shop
from distill.config import TargetSettings
from distill.student.model import read_student_config
from mpcot.records import ATTRIBUTES, texts
from mpcot.sources.clean_rows import Cleaning

ROWS_AT_A_TIME = 4096
# `rank` counts from 1 within a query; `origin` is encoder, bm25, random or results.
CANDIDATE = pa.schema(
    [
        *texts("query", "product_id", "locale", "title", "brand?", "description?", "bullets?"),
        ATTRIBUTES,
        *texts("origin"),
        pa.field("rank", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Wish:
    """What the user asks for: how many candidates per query, where from, and in which order."""

    per_query: int
    random_share: float = 0.2
    seed: int = 13
    results: Path | None = None
    products: Path | None = None
    unsure_by: Path | None = None
    judged: Path | None = None


def write_candidates(
    run_dir: Path,
    path: Path,
    wish: Wish,
    cleaning: Cleaning,
    encoder: TargetSettings,
    ray: Callable[[], AbstractContextManager[Any]],
) -> tuple[Counter[str], Counter[str]]:
    """Write pairs of the run's training queries with products that nobody has judged for them.

    Args:
        encoder: the frozen sentence encoder that finds the nearest products.
        ray: connects to Ray, which only mining needs.

    Returns: how many pairs each origin gave, and why rows of `wish.results` were left out, counted.

    Raises:
        UsageError: this is no run folder, or its pairs are not finished.
        UserError: a given file or folder cannot be used, or no pair is left to write.
    """
    if wish.judged and not wish.unsure_by:
        raise UsageError("--judged says where others contradict a student: name the student with --unsure-by")
    if wish.unsure_by is not None:
        read_student_config(wish.unsure_by)  # before anything is mined
    pairs = finished_stage(run_dir, "1-pairs", upto="pairs") / "pairs.parquet"
    shop = open_shop(pairs, wish.products, cleaning)
    left_out: Counter[str] = Counter()
    if wish.results is not None:
        found, left_out = from_results(wish.results, shop, wish.per_query, cleaning)
        mined = [(query, key, rank, "results") for query, key, rank in found]
    else:
        local = encoder.model_copy(update={"encoder": model_to_load("targets.encoder", encoder.encoder)})
        with ray():
            mined = list(mine(shop, Mining(wish.per_query, wish.random_share, wish.seed, local, run_dir)))
    if not mined:
        raise UserError(
            f"{run_dir}: the run has every training query judged with every product of its shop. Give more products "
            "with --products"
        )
    doubts = None
    if wish.unsure_by is not None:
        verdicts = verdicts_of(wish.judged, cleaning) if wish.judged else {}
        doubts = doubts_of(mined, shop, wish.unsure_by, verdicts)
    _write(path, ordered(mined, doubts), shop)
    return Counter(origin for *_, origin in mined), left_out


def _write(path: Path, mined: Sequence[Mined], shop: Shop) -> None:
    with table_writer(path, CANDIDATE) as writer:
        for start in range(0, len(mined), ROWS_AT_A_TIME):
            rows = [
                shop.products[key] | {"query": query.text, "origin": origin, "rank": rank + 1}
                for query, key, rank, origin in mined[start : start + ROWS_AT_A_TIME]
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=CANDIDATE))
