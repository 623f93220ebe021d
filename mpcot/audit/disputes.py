"""Finds the pairs whose gold label the perspectives dispute: all of them are sure of the same other label.

The score is the margin of the perspectives' label over the gold label, as the mean over perspectives. For one judge it
is the normalised margin by which confident learning ranks labels that may be wrong (Northcutt et al. 2021, arXiv
1911.00068), with the opposite sign. Here all perspectives must agree besides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpcot.schemes.scheme import Scheme

CONFIDENT = 0.5  # the least score of a dispute
COLUMNS = ["pair_id", "verdicts", "perspective_soft"]


@dataclass(frozen=True)
class Dispute:
    """A pair, its gold label, and the label that all perspectives give it instead."""

    pair_id: str
    gold: str
    verdict: str
    score: float


@dataclass
class Disputes:
    """Disputes, the surest first, and how many of the judged gold pairs they are among.

    `agreed` counts the pairs on which all perspectives agree, `against` those on which they agree on another label.
    """

    found: list[Dispute] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=lambda: Counter(judged=0, agreed=0, against=0, disputed=0))


def find_disputes(
    judged: Iterable[Mapping[str, Any]], gold: Mapping[str, str | None], scheme: Scheme, least: float = CONFIDENT
) -> Disputes:
    """Return the disputes among judgements whose score is at least `least`. Pairs without a gold label have none.

    Args:
        judged: rows with the `COLUMNS` of a judgement. A perspective that did not answer agrees with nobody.
        gold: the gold label by pair id. Pairs that are not in it are passed over.
    """
    result = Disputes()
    for row in judged:
        label = gold.get(row["pair_id"])
        if label is None:
            continue
        agreed = len(set(row["verdicts"])) == 1 and row["verdicts"][0] is not None
        against = agreed and row["verdicts"][0] != label
        result.counts.update(judged=1, agreed=int(agreed), against=int(against))
        if not against:
            continue
        dispute = Dispute(row["pair_id"], label, row["verdicts"][0], _score(row, label, scheme))
        if dispute.score >= least:
            result.found.append(dispute)
    result.found.sort(key=lambda one: (-one.score, one.pair_id))
    result.counts["disputed"] = len(result.found)
    return result


def _score(row: Mapping[str, Any], label: str, scheme: Scheme) -> float:
    mean = np.mean(row["perspective_soft"], axis=0)
    return float(mean[scheme.index(row["verdicts"][0])] - mean[scheme.index(label)])
