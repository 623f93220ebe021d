"""What each further thousand of judged unlabelled pairs brought, in the order in which they come in 1-pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpcot.schemes.scheme import Scheme

THOUSAND = 1000


def by_thousand(
    pairs: Mapping[str, Mapping[str, Any]], judged: Mapping[str, Mapping[str, Any]], scheme: Scheme
) -> list[dict[str, Any]]:
    """Return a row for each thousand of the unlabelled pairs that were judged.

    Returns: `first` and `last` count pairs from 1, `labels` has the share of each vote, `confidence` is the mean
        probability of the vote, and `unanimous` the share of the pairs on which all perspectives agree, of those that
        two or more have judged; it is None if there are none.
    """
    asked = [judged[own] for own, pair in pairs.items() if pair["split"] == "unlabelled" and own in judged]
    return [_row(start, asked[start : start + THOUSAND], scheme) for start in range(0, len(asked), THOUSAND)]


def _row(start: int, rows: Sequence[Mapping[str, Any]], scheme: Scheme) -> dict[str, Any]:
    votes = Counter(row["vote"] for row in rows)
    spoken = [said for row in rows if len(said := [v for v in row["verdicts"] if v is not None]) > 1]
    return {
        "first": start + 1,
        "last": start + len(rows),
        "labels": {code: votes[code] / len(rows) for code in scheme.codes},
        "confidence": float(np.mean([row["soft"][scheme.index(row["vote"])] for row in rows])),
        "unanimous": float(np.mean([len(set(said)) == 1 for said in spoken])) if spoken else None,
    }
