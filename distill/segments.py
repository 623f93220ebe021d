"""Test pairs by segment: where the query is short or long, names a brand, or the perspectives conflict.

Which pairs are in a segment follows from the pair and the teacher's verdicts, never from who is right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distill.metrics import label_metrics, paired_bootstrap
from mpcot.schemes.scheme import Scheme

Row = dict[str, Any]
Pairs = Mapping[str, Row]
Segment = Callable[[Row], str | None]

LENGTHS = ((2, "1 or 2 words"), (4, "3 or 4 words"), (6, "5 or 6 words"))
LONGEST = "7 words or more"


def segments(
    pairs: Pairs, judged: Pairs, students: Mapping[str, Pairs], perspectives: Sequence[str], scheme: Scheme, *,
    resamples: int, seed: int,
) -> list[Row]:  # fmt: skip
    """Return one row per segment's value, of the test pairs that every judge answered.

    Returns rows of `segment`, `value`, `pairs`, `queries`, `judges` (accuracy and macro-F1 by name), `perspectives`
        (the teacher's accuracy by perspective, one without an answer is wrong) and `difference` (accuracy of LRKD
        minus labels only with its interval; None without a labels-only student).
    """
    ids = [i for i in judged if pairs[i]["split"] == "test" and all(i in rows for rows in students.values())]
    answers = {"teacher": {i: judged[i]["vote"] for i in ids}}
    answers |= {name: {i: rows[i]["label"] for i in ids} for name, rows in students.items()}
    found = []
    for segment, values in grouped(pairs, judged, ids).items():
        for value, inside in values.items():
            row = measured(pairs, answers, inside, scheme, resamples=resamples, seed=seed)
            right = {name: hits(pairs, judged, inside, place) for place, name in enumerate(perspectives)}
            found.append({"segment": segment, "value": value, "perspectives": right} | row)
    return found


def grouped(pairs: Pairs, judged: Pairs, ids: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Return pair ids by segment and value, values in a fixed order."""
    known = brands(pairs)
    kinds: dict[str, Segment] = {
        "query length": lambda row: length_of(row["query"]),
        "brand in the query": lambda row: "yes" if names_brand(row["query"], known) else "no",
        "perspectives": lambda row: agreement_of(judged.get(row["pair_id"], {}).get("verdicts", ())),
        "locale": lambda row: row["locale"],
    }
    found: dict[str, dict[str, list[str]]] = {}
    for segment, value_of in kinds.items():
        by_value: dict[str, list[str]] = {}
        for pair_id in ids:
            value = value_of(pairs[pair_id])
            if value is not None:
                by_value.setdefault(value, []).append(pair_id)
        found[segment] = dict(sorted(by_value.items()))
    return found


def length_of(query: str) -> str:
    """Return the query's length class."""
    words = len(query.split())
    return next((name for most, name in LENGTHS if words <= most), LONGEST)


def brands(pairs: Pairs) -> frozenset[tuple[str, ...]]:
    """Return the brands of all products, as lower-case words."""
    return frozenset(words for row in pairs.values() if (words := _words(row["brand"] or "")))


def names_brand(query: str, known: frozenset[tuple[str, ...]]) -> bool:
    """Say whether the query holds a known brand as whole words."""
    words = _words(query)
    most = max(map(len, known), default=0)
    return any(words[i : i + n] in known for n in range(1, most + 1) for i in range(len(words) - n + 1))


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.lower()))


def agreement_of(verdicts: Sequence[str | None]) -> str | None:
    """Return whether the perspectives that answered agree; None where fewer than two did."""
    said = [verdict for verdict in verdicts if verdict is not None]
    if len(said) < 2:
        return None
    return "agree" if len(set(said)) == 1 else "conflict"


def hits(pairs: Pairs, judged: Pairs, ids: Sequence[str], place: int) -> float:
    """Return the accuracy of the perspective at `place`."""
    return sum(judged[i]["verdicts"][place] == pairs[i]["label"] for i in ids) / len(ids)


def measured(
    pairs: Pairs, answers: Mapping[str, Mapping[str, str]], ids: Sequence[str], scheme: Scheme, *,
    resamples: int, seed: int,
) -> Row:  # fmt: skip
    """Return the figures of one segment's pairs."""
    gold, queries = [pairs[i]["label"] for i in ids], [pairs[i]["query_id"] for i in ids]
    said = {name: [by_id[i] for i in ids] for name, by_id in answers.items()}
    difference = None
    if "ce_only" in said:
        difference = paired_bootstrap(
            gold, said["ce_only"], said["lrkd"], queries, scheme, "accuracy", resamples, seed=seed
        )
    judges = {name: label_metrics(gold, predicted) for name, predicted in said.items()}
    return {"pairs": len(ids), "queries": len(set(queries)), "judges": judges, "difference": difference}
