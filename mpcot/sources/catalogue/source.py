"""Reads the catalogue as a source of pairs, with a seed rationale for each pair and perspective."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from cluster.base.errors import UserError
from mpcot.sources.catalogue.make_pairs import MIX, Pair, make_pairs
from mpcot.sources.catalogue.write_rationales import ORIGIN, PERSPECTIVES, rationale
from mpcot.sources.clean_rows import SOURCE_SEED, Cleaning, SourceRows, make_row, rows_table
from mpcot.sources.config import CatalogueSource

LOCALE = "us"


def read_catalogue(source: CatalogueSource, cleaning: Cleaning) -> SourceRows:
    """Return the catalogue's pairs as rows, and a rationale for every pair and perspective.

    Raises:
        UserError: the label scheme lacks codes for the catalogue's labels E, S, C and I.
    """
    missing = sorted({cleaning.label_map.get(label, label) for label in MIX} - set(cleaning.codes))
    if missing:
        raise UserError(
            f"source.kind: the catalogue's labels E, S, C, I do not fit the scheme, which has "
            f"{', '.join(cleaning.codes)}. Set labels.scheme to esci, or source.label_map, say "
            f"{{E = {cleaning.codes[0]!r}, ...}}"
        )
    pairs = make_pairs(source.pairs, source.products_per_query, source.hard_share, source.world_seed, source.categories)
    rows = (make_row(i, _raw(pair), cleaning) for i, pair in enumerate(pairs))
    seeds = [_seed(pair, name, cleaning) for pair in pairs for name in PERSPECTIVES]
    return SourceRows([rows_table(rows)], pa.Table.from_pylist(seeds, schema=SOURCE_SEED))


def _raw(pair: Pair) -> dict[str, Any]:
    return {
        "query": pair.query.text,
        "product_id": pair.product.product_id,
        "title": pair.product.title,
        "brand": pair.product.brand,
        "description": pair.product.description,
        "attributes": pair.product.shown,
        "label": pair.judgement.label,
        "locale": LOCALE,
    }


def _seed(pair: Pair, perspective: str, cleaning: Cleaning) -> dict[str, str]:
    label = pair.judgement.label
    return {
        "query": pair.query.text,
        "product_id": pair.product.product_id,
        "locale": LOCALE,
        "perspective": perspective,
        "rationale": rationale(pair, perspective),
        "verdict": cleaning.label_map.get(label, label),
        "origin": ORIGIN,
    }
