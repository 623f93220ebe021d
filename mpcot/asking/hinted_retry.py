"""Hinted retry: training pairs whose every answer was wrong are asked once more, with the gold label as a hint.

This is the rationalisation of STaR (Zelikman et al. 2022, arXiv 2203.14465, section 3.2): without it, what the
teacher gets wrong is never learnt from. Later prompts do not have the hint.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.base.id_sets import IdSet
from cluster.base.tables import batches_of
from mpcot.asking.answers import Answers
from mpcot.asking.generate import generate
from mpcot.asking.join_answers import Shelf
from mpcot.asking.plan import GenerationPlan


def ask_with_hint(
    plan: GenerationPlan, plain: Answers, pairs: Path, folder: Path, label: str
) -> tuple[Answers, int] | None:
    """Ask about the pairs that `plain` holds wrong answers of only, each perspective once.

    `max_failed_share` stays that of both rounds together. Nothing is asked twice: the hint makes other keys.

    Returns:
        The answers and the number of pairs; None where there is no such pair.

    Raises:
        UserError: as `generate` and `Answers.shelves`.
    """
    failed = 0

    def wrong() -> Iterator[list[str]]:
        nonlocal failed
        for shelf in plain.shelves(again=True):
            failed += len(shelf.answers) - shelf.answers["reason"].null_count
            yield all_wrong(shelf)

    ids = IdSet(wrong())
    if not len(ids):
        return None
    asked = len(ids) * len(plan.perspectives)
    room = (plan.ask.max_failed_share * (plain.requested + asked) - failed) / asked
    once = plan.ask.model_copy(update={"samples": 1, "max_failed_share": min(1.0, room)})
    hinted = replace(plan, hinted=True, ask=once)
    return generate(hinted, _pairs_in(pairs, ids), folder, f"{label} with a hint"), len(ids)


def all_wrong(shelf: Shelf) -> list[str]:
    """Return the labelled training pairs that have verdicts, none of them the gold label."""
    columns = (shelf.pairs[name].to_pylist() for name in ("pair_id", "label", "split"))
    gold = {pair_id: label for pair_id, label, split in zip(*columns, strict=True) if split == "train" and label}
    columns = (shelf.answers[name].to_pylist() for name in ("pair_id", "verdict", "reason"))
    said = [(pair_id, verdict) for pair_id, verdict, reason in zip(*columns, strict=True) if reason is None]
    right = {pair_id for pair_id, verdict in said if gold.get(pair_id) == verdict}
    return sorted({pair_id for pair_id, _ in said if pair_id in gold} - right)


def _pairs_in(pairs: Path, ids: IdSet) -> Iterator[dict[str, Any]]:
    for batch in batches_of(pairs):
        yield from batch.filter(pa.array(ids.has(batch["pair_id"].to_pylist()))).to_pylist()
