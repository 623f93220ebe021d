"""Asks once more about training pairs that got no right answer, this time with the gold label as a hint.

This is the rationalisation of STaR (Zelikman et al. 2022, arXiv 2203.14465, section 3.2). Without it, the teacher would
never learn from what it gets wrong. Later prompts do not have the hint.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from cluster.base.id_sets import IdSet
from cluster.base.tables import batches_of
from mpcot.asking.answers import Answers
from mpcot.asking.generate import generate
from mpcot.asking.join_answers import AnsweredPairs
from mpcot.asking.missing_requests import PAIRS_PER_TASK
from mpcot.asking.plan import GenerationPlan


def ask_with_hint(
    plan: GenerationPlan, plain: Answers, pairs: Path, folder: Path, label: str
) -> tuple[Answers, int] | None:
    """Ask once from each perspective about the pairs to which `plain` has only wrong answers.

    `max_failed_share` applies to both rounds together.

    Returns:
        The answers and the number of pairs, or None if there are no such pairs.

    Raises:
        UserError: see `generate` and `Answers.by_pair`.
    """
    failed = 0

    def wrong() -> Iterator[list[str]]:
        nonlocal failed
        for joined in plain.by_pair(again=True):
            failed += len(joined.answers) - joined.answers["reason"].null_count
            yield all_wrong(joined)

    ids = IdSet(wrong())
    if not len(ids):
        return None
    asked = len(ids) * len(plan.perspectives)
    room = (plan.ask.max_failed_share * (plain.requested + asked) - failed) / asked
    once = plan.ask.model_copy(update={"samples": 1, "max_failed_share": min(1.0, room)})
    hinted = replace(plan, hinted=True, ask=once)
    return generate(hinted, _pairs_in(pairs, ids), folder, f"{label} with a hint"), len(ids)


def all_wrong(joined: AnsweredPairs) -> list[str]:
    """Return the labelled training pairs that have verdicts, but none that is the gold label."""
    columns = (joined.pairs[name].to_pylist() for name in ("pair_id", "label", "split"))
    gold = {pair_id: label for pair_id, label, split in zip(*columns, strict=True) if split == "train" and label}
    columns = (joined.answers[name].to_pylist() for name in ("pair_id", "verdict", "reason"))
    said = [(pair_id, verdict) for pair_id, verdict, reason in zip(*columns, strict=True) if reason is None]
    right = {pair_id for pair_id, verdict in said if gold.get(pair_id) == verdict}
    return sorted({pair_id for pair_id, _ in said if pair_id in gold} - right)


def _pairs_in(pairs: Path, ids: IdSet) -> Iterator[pa.RecordBatch]:
    for batch in batches_of(pairs, batch=PAIRS_PER_TASK):
        yield batch.filter(pa.array(ids.has(batch["pair_id"].to_pylist())))
