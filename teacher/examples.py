"""What SFT learns from: the rationales that were kept and the seeds, each with the prompt that it answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.base.sql import database, quoted
from cluster.base.tables import conformed, table_of
from cluster.training.driver import Row
from mpcot.asking.prompts import answer, messages
from mpcot.asking.rendering import render
from mpcot.config import SampleSettings
from mpcot.perspectives.perspective import Perspective, load_perspectives
from mpcot.records import PAIR, SEED
from mpcot.schemes.scheme import Scheme, load_scheme
from teacher.config import SftStage
from teacher.fitting import Fitting

EXAMPLE = pa.schema(
    [(name, pa.string()) for name in ("pair_id", "query_id", "perspective", "prompt", "answer", "verdict", "origin")]
    + [("weight", pa.float32())]
)
KEPT_COLUMNS = ["pair_id", "perspective", "sample", "rationale", "verdict", "hinted", "weight"]
VOTE = "vote"  # origin of the teacher's rationales for pairs without a gold label


def collect_examples(config: SftStage, pairs_folder: Path, rationales: Path, fitting: Fitting) -> pa.Table:
    """Return one example per kept rationale and per seed of the training split, in a fixed order.

    Prompts are shortened to what fits, and what cannot fit is left out; `fitting` counts both. With
    `sft.use_unlabelled` the examples of unlabelled pairs are added, with their pair's agreement as `weight`.
    """
    rows = islice(_examples(config, pairs_folder, rationales, fitting), config.sft.max_rows)
    return table_of(rows, EXAMPLE)


def _examples(config: SftStage, pairs_folder: Path, rationales: Path, fitting: Fitting) -> Iterator[Row]:
    """Yield the examples pair by pair, of which only some are in memory."""
    splits = ("train", "unlabelled") if config.sft.use_unlabelled else ("train",)
    perspectives = {p.name: p for p in load_perspectives(config.perspectives)}
    write = partial(prompt_of, fitting.tokenizer, load_scheme(config.labels.scheme), config.samples)
    with database(pairs_folder.parent) as data:
        pairs = data.in_order([pairs_folder / "pairs.parquet"], "pair_id", PAIR.names, f"split IN ({quoted(splits)})")
        kept = data.in_order([rationales / "kept.parquet"], "pair_id", KEPT_COLUMNS)
        seeds = data.in_order([pairs_folder / "seeds.parquet"], "pair_id", SEED.names)
        for batches, last in pairs.chunks():
            known = {pair["pair_id"]: pair for pair in conformed(batches, PAIR).to_pylist()}
            found = _usable(config, known, _rows_of(kept.upto(last)), _rows_of(seeds.upto(last)))
            rows = [row for row in found if row["perspective"] in perspectives]
            rows.sort(key=lambda r: (r["pair_id"], r["perspective"], r["origin"], r["sample"]))
            for pair_id, of_pair in groupby(rows, key=itemgetter("pair_id")):
                own = list(of_pair)
                asked = [(row["answer"], partial(write, perspectives[row["perspective"]])) for row in own]
                prompts = fitting.prompts(known[pair_id], asked)
                yield from (
                    row | {"prompt": prompt} for row, prompt in zip(own, prompts, strict=True) if prompt is not None
                )


def _rows_of(batches: Iterable[pa.RecordBatch]) -> list[Row]:
    return [row for batch in batches for row in batch.to_pylist()]


def _usable(config: SftStage, pairs: Mapping[str, Row], kept: list[Row], seeds: list[Row]) -> Iterator[Row]:
    """Yield the rationales of the wanted origins about these pairs, with what an example needs beside the prompt."""
    found: list[Row] = []
    if "teacher" in config.sft.origins:
        found += [row | {"origin": "hinted" if row["hinted"] else "teacher"} for row in kept]
    if "seed" in config.sft.origins:
        found += [row | {"sample": 0, "weight": 1.0} for row in seeds]
    for row in found:
        pair = pairs.get(row["pair_id"])
        if pair is None:
            continue
        if pair["label"] is None:
            if row["origin"] != "teacher":  # a seed would give away the label that was held back
                continue
            row["origin"] = VOTE
        yield row | {"query_id": pair["query_id"], "answer": answer(row["rationale"], row["verdict"])}


def prompt_of(
    tokenizer: Any, scheme: Scheme, form: SampleSettings, perspective: Perspective, pair: Mapping[str, Any]
) -> str:
    """Return the prompt about a pair as the teacher reads it in training."""
    return render(tokenizer, messages(pair, perspective, scheme, form))
