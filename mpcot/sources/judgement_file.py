"""Reads the file of `source.judgements`: verdicts and rationales that exist already.

Each is of one pair and perspective or, without a perspective, of the pair as a whole; then it has no rationale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from mpcot.records import texts
from mpcot.schemes.scheme import filled_up
from mpcot.sources.clean_rows import SOURCE_SEED, Cleaning, failed_json
from mpcot.sources.clean_texts import clean_text
from mpcot.sources.delimited import PARSE_ERROR
from mpcot.sources.filesets import collect, find

NEEDED = ("query", "product_id", "verdict")
TOLERANCE = 0.01  # of a sum of probabilities that somebody rounded

# `probabilities` are in the order of the scheme, or null. `error` and `raw` are as in the rows of a source.
SOURCE_JUDGEMENT = pa.schema(
    [*SOURCE_SEED, pa.field("probabilities", pa.list_(pa.float64())), *texts("error?"), *texts("raw")]
)


def read_judgements(path: str, cleaning: Cleaning, field: str = "source.judgements") -> pa.Table:
    """Return the rows of the file as `SOURCE_JUDGEMENT`, in its order.

    Raises:
        UserError: the file cannot be read (see `filesets.find`), or a column is missing.
    """
    files = find(path, field=field)
    files.need(NEEDED, field)
    columns = [*SOURCE_SEED.names, "confidence", "probabilities"]
    return collect(files, partial(_to_judgements, cleaning=cleaning), columns)


def _to_judgements(batch: list[dict[str, Any]], cleaning: Cleaning) -> pa.Table:
    return pa.Table.from_pylist([make_judgement(raw, cleaning) for raw in batch], schema=SOURCE_JUDGEMENT)


def make_judgement(raw: Mapping[str, Any], cleaning: Cleaning) -> dict[str, Any]:
    """Return a row of the schema `SOURCE_JUDGEMENT`."""
    row: dict[str, Any] = {name: clean_text(raw.get(name)) for name in SOURCE_SEED.names}
    row["locale"] = (row["locale"] or cleaning.default_locale).lower()
    row["origin"] = row["origin"] or "file"
    row["verdict"] = cleaning.verdict_of(row["verdict"])
    row["raw"] = failed_json(raw)
    try:
        _check(raw, row, cleaning)
        row["probabilities"] = probabilities(raw.get("confidence"), raw.get("probabilities"), row["verdict"], cleaning)
    except ValueError as error:
        row["error"] = str(error)
    return row


def _check(raw: Mapping[str, Any], row: Mapping[str, Any], cleaning: Cleaning) -> None:
    if raw.get(PARSE_ERROR):
        raise ValueError(raw[PARSE_ERROR])
    if missing := [name for name in NEEDED if not row[name]]:
        raise ValueError(f"{missing[0]} missing")
    if row["rationale"] and not row["perspective"]:
        raise ValueError("rationale without a perspective")
    if row["verdict"] not in cleaning.codes:
        raise ValueError(f"verdict outside the scheme: {row['verdict'][:50]!r}, which has {', '.join(cleaning.codes)}")


def probabilities(confidence: Any, by_label: Any, verdict: str, cleaning: Cleaning) -> list[float] | None:
    """Return one probability per label in the order of the scheme, or None if the writer gave none.

    Labels that are not named share equally what is left of 1.

    Args:
        confidence: the probability of the verdict.
        by_label: a map from labels to probabilities, which goes before `confidence`.

    Raises:
        ValueError: a number is none or outside 0 to 1, a label is unknown, or they sum to something else than 1.
    """
    given = dict(by_label or {}) if isinstance(by_label, Mapping | list | None) else {verdict: by_label}
    named = {cleaning.verdict_of(clean_text(label)): share for label, share in given.items() if share is not None}
    if not named:
        if clean_text(confidence) is None:
            return None
        named = {verdict: confidence}
    if unknown := [label for label in named if label not in cleaning.codes]:
        raise ValueError(f"probability of a label outside the scheme: {str(unknown[0])[:50]!r}")
    what = "probability" if given else "confidence"
    shares = {str(label): _share(share, what) for label, share in named.items()}
    total = sum(shares.values())
    if total > 1 + TOLERANCE or (len(shares) == len(cleaning.codes) and total < 1 - TOLERANCE):
        raise ValueError(f"probabilities do not sum to 1: {total:g}")
    return filled_up(shares, cleaning.codes)


def _share(value: Any, what: str) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = math.nan
    if not 0 <= share <= 1:
        raise ValueError(f"{what} outside 0 to 1: {str(value)[:50]!r}")
    return share
