"""Which unlabelled pairs teach the student and how much each counts: the teacher's vote stands in for a label."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mpcot.pairs.splits import unit_hash
from mpcot.schemes.scheme import Scheme
from mpcot.temperature import fit_temperature, scaled


def surplus(pairs: Iterable[tuple[str, str | None, str]], votes: Mapping[str, str]) -> set[str]:
    """Return the ids of the unlabelled pairs that are too many of their vote beside the training pairs' labels.

    Of each vote at most n * share stay, where n is the number of judged unlabelled pairs and share is the label's share
    of the training pairs: a frequent vote is cut, and a rare one is kept whole. A hash of the id decides which stay.

    Args:
        pairs: id, label and split of all pairs.
        votes: the teacher's vote by the pair's id.
    """
    gold: Counter[str | None] = Counter()
    voted: dict[str, list[str]] = defaultdict(list)
    for pair_id, label, split in pairs:
        if split == "train":
            gold[label] += 1
        elif split == "unlabelled" and pair_id in votes:
            voted[votes[pair_id]].append(pair_id)
    total = sum(map(len, voted.values()))
    dropped: set[str] = set()
    for vote, ids in voted.items():
        most = round(total * gold[vote] / max(1, gold.total()))
        dropped.update(sorted(ids, key=lambda pair_id: (unit_hash("balance", pair_id), pair_id))[most:])
    return dropped


def dev_temperature(pairs: pa.Table, judgements: pa.Table, scheme: Scheme) -> float | None:
    """Return the temperature at which the teacher's soft labels are as sure as they are often right on dev.

    It is None if no labelled dev pair was judged (see `mpcot.temperature`).
    """
    gold, soft, _ = judged_on_dev(pairs, judgements, scheme)
    return fit_temperature(gold, soft)


def judged_on_dev(pairs: pa.Table, judgements: pa.Table, scheme: Scheme) -> tuple[list[int], np.ndarray, list[str]]:
    """Return label numbers (N), soft labels (NxC) and query ids (N) of the labelled dev pairs that were judged."""
    pairs = pairs.select(["pair_id", "query_id", "label", "split"])  # texts are not made Python objects
    dev = pairs.filter(pc.and_(pc.equal(pairs["split"], "dev"), pc.is_valid(pairs["label"])))
    labelled = {row["pair_id"]: row for row in dev.to_pylist()}
    known = judgements.filter(pc.is_in(judgements["pair_id"], value_set=pa.array([*labelled], pa.string())))
    rows = [labelled[pair_id] for pair_id in known["pair_id"].to_pylist()]
    gold = [scheme.index(row["label"]) for row in rows]
    return gold, np.array(known["soft"].to_pylist()), [row["query_id"] for row in rows]


def vote_weight(judgement: Mapping[str, Any], temperature: float | None, scheme: Scheme) -> float:
    """Return how much a pair with only a vote counts: how probable the vote is, once calibrated on dev.

    Without a temperature it is the share of the perspectives that agree with the vote.
    """
    if temperature is None:
        return float(judgement["agreement"])
    return float(scaled(np.array([judgement["soft"]]), temperature)[0, scheme.index(judgement["vote"])])
