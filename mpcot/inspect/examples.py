"""Chooses pairs and answers to show: label by label, then by pair id, which is a hash, so that no choice is made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.base.tables import rows_of
from mpcot.asking.prompts import EVERYTHING, pair_text
from mpcot.details import details
from mpcot.inspect.read_answers import texts_of

Row = dict[str, Any]
REASONS_SHOWN = 8
ANSWERS_PER_REASON = 2
PAIRS_LOOKED_AT = 500  # for what is not grounded


def in_turn(pairs: pd.DataFrame, wanted: int) -> list[str]:
    """Return pair ids: the first of each label, then the second of each, and so on."""
    one_each = pairs.drop_duplicates("pair_id").sort_values("pair_id")
    groups = [group["pair_id"].tolist() for _, group in one_each.groupby("label", dropna=False)]
    turns = chain.from_iterable(zip_longest(*groups))
    return [pair_id for pair_id in turns if pair_id is not None][:wanted]


def in_conflict(answers: pd.DataFrame) -> pd.DataFrame:
    """Return the first samples of pairs on which the perspectives differ and at least one is right."""
    first = answers[answers["verdict"].notna() & answers["label"].notna()].sort_values("sample")
    first = first.drop_duplicates(["pair_id", "perspective"])
    right = first["verdict"] == first["label"]
    by_pair = first.assign(right=right).groupby("pair_id").agg(verdicts=("verdict", "nunique"), right=("right", "any"))
    chosen = by_pair.index[(by_pair["verdicts"] > 1) & by_pair["right"]]
    return first[first["pair_id"].isin(chosen)]


def removed(answers: pd.DataFrame) -> dict[str, list[tuple[str, str, int]]]:
    """Return a few answers that were not kept for each frequent reason, as (pair, perspective, sample)."""
    gone = answers[answers["outcome"] != "kept"].sort_values(["pair_id", "perspective", "sample"])
    frequent = gone["reason"].value_counts().index[:REASONS_SHOWN]
    keys = ["pair_id", "perspective", "sample"]
    picked = {
        str(reason): gone[gone["reason"] == reason].drop_duplicates("pair_id")[:ANSWERS_PER_REASON]
        for reason in frequent
    }
    return {reason: list(rows[keys].itertuples(index=False, name=None)) for reason, rows in picked.items()}


def examples(answers: pd.DataFrame, folder: Path, perspectives: Sequence[str], wanted: int) -> dict[str, Any]:
    """Return up to `wanted` pairs each as `samples` and `conflicts`, and answers by reason as `removed`, with texts."""
    chosen = {"samples": in_turn(answers, wanted), "conflicts": in_turn(in_conflict(answers), wanted)}
    gone = removed(answers)
    ids = {*chain(*chosen.values()), *(place[0] for places in gone.values() for place in places)}
    pairs = {
        row["pair_id"]: row for row in rows_of(folder.parent / "1-pairs" / "pairs.parquet") if row["pair_id"] in ids
    }
    said: dict[str, list[Row]] = defaultdict(list)
    for row in texts_of(folder, perspectives, sorted(ids)):
        said[row["pair_id"]].append(row)
    found: dict[str, Any] = {
        name: [_pair(pairs[i], said[i], perspectives) for i in ids_] for name, ids_ in chosen.items()
    }
    texts = {(r["pair_id"], r["perspective"], r["sample"]): r for rows in said.values() for r in rows}
    found["removed"] = {
        reason: [_shown(pairs[place[0]]) | texts[place] for place in places if place in texts]
        for reason, places in gone.items()
    }
    return found


def looked_at(answers: pd.DataFrame, folder: Path, perspectives: Sequence[str]) -> tuple[list[Row], dict[str, str]]:
    """Return the answers about some pairs, with texts, and all that is known of these pairs, by their ids."""
    ids = sorted(answers["pair_id"].unique())[:PAIRS_LOOKED_AT]
    rows = pq.read_table(folder.parent / "1-pairs" / "pairs.parquet", filters=pc.field("pair_id").isin(ids))
    known = {row["pair_id"]: pair_text(row, EVERYTHING) for row in rows.to_pylist()}
    return texts_of(folder, perspectives, ids), known


def _shown(pair: Row) -> Row:
    plain = {name: pair[name] for name in ("pair_id", "query", "title", "brand", "label", "split")}
    return plain | {"details": details(pair)}


def _pair(pair: Row, answers: list[Row], perspectives: Sequence[str]) -> Row:
    """Return a pair with its first answer from each perspective, and how many of the samples are right."""
    views = []
    for name in perspectives:
        own = sorted((a for a in answers if a["perspective"] == name), key=lambda a: a["sample"])
        first = own[0] if own else {"verdict": None, "rationale": None}
        right = sum(a["verdict"] == pair["label"] for a in own)
        reason = first.get("reason")
        views.append(
            {"name": name, "verdict": first["verdict"], "rationale": first["rationale"], "reason": reason}
            | {"right": right, "samples": len(own)}
        )
    return _shown(pair) | {"views": views}
