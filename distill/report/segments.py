"""Test pairs by segment: by the query's length, by whether it names a brand, by whether the perspectives conflict.

A pair's segments follow from its text and from the teacher's verdicts, never from which judge is right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from operator import eq
from statistics import fmean
from typing import Any

from distill.metrics import label_metrics, paired_bootstrap
from mpcot.details import details
from mpcot.schemes.scheme import Scheme

Row = dict[str, Any]
Pairs = Mapping[str, Row]

LENGTHS = ((2, "1 or 2 words"), (4, "3 or 4 words"), (6, "5 or 6 words"))
LONGEST = "7 words or more"


def segments(
    pairs: Pairs, judged: Pairs, students: Mapping[str, Pairs], perspectives: Sequence[str], scheme: Scheme, *,
    resamples: int, seed: int,
) -> list[Row]:  # fmt: skip
    """Return one row for each value of each segment, over the test pairs that every judge answered.

    Returns rows of `segment`, `value`, `pairs`, `queries`, `judges` (accuracy and macro-F1 by name), `perspectives`
        (accuracy of the teacher's perspectives; no answer is a wrong one) and `difference` (accuracy of LRKD minus
        labels only with its interval; None without a student on labels only).
    """
    ids = [i for i in judged if pairs[i]["split"] == "test" and all(i in rows for rows in students.values())]
    found = []
    for segment, values in grouped(pairs, judged, ids).items():
        for value, inside in values.items():
            gold, queries = ([pairs[i][name] for i in inside] for name in ("label", "query_id"))
            answers = {"teacher": [judged[i]["vote"] for i in inside]}
            answers |= {name: [rows[i]["label"] for i in inside] for name, rows in students.items()}
            verdicts = zip(*(judged[i]["verdicts"] for i in inside), strict=True)
            difference = None
            if "ce_only" in answers:
                difference = paired_bootstrap(
                    gold, answers["ce_only"], answers["lrkd"], queries, scheme, "accuracy", resamples, seed=seed
                )
            found.append(
                {
                    "segment": segment,
                    "value": value,
                    "pairs": len(inside),
                    "queries": len(set(queries)),
                    "judges": {name: label_metrics(gold, given) for name, given in answers.items()},
                    "perspectives": {
                        name: fmean(map(eq, gold, given)) for name, given in zip(perspectives, verdicts, strict=True)
                    },
                    "difference": difference,
                }
            )
    return found


def grouped(pairs: Pairs, judged: Pairs, ids: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Return the ids of the pairs by segment and value; the values are sorted."""
    known = brands(pairs)
    kinds: dict[str, Callable[[Row], str | None]] = {
        "query length": lambda row: length_of(row["query"]),
        "brand in the query": lambda row: "yes" if names_brand(row["query"], known) else "no",
        "perspectives": lambda row: agreement_of(judged.get(row["pair_id"], {}).get("verdicts", ())),
        "locale": lambda row: row["locale"],
    }
    found: dict[str, dict[str, list[str]]] = {}
    for segment, value_of in kinds.items():
        values = {pair_id: value_of(pairs[pair_id]) for pair_id in ids}
        occurring = sorted({value for value in values.values() if value is not None})
        found[segment] = {value: [pair_id for pair_id in ids if values[pair_id] == value] for value in occurring}
    return found


def length_of(query: str) -> str:
    """Return the class of the query's length."""
    words = len(query.split())
    return next((name for most, name in LENGTHS if words <= most), LONGEST)


def brands(pairs: Pairs) -> frozenset[tuple[str, ...]]:
    """Return the brands of all products, as lower-case words."""
    return frozenset(words for row in pairs.values() if (words := _words(row["brand"] or "")))


def names_brand(query: str, known: frozenset[tuple[str, ...]]) -> bool:
    """Return whether the query contains a known brand as whole words."""
    words = _words(query)
    most = max(map(len, known), default=0)
    return any(words[i : i + n] in known for n in range(1, most + 1) for i in range(len(words) - n + 1))


def asked_elsewhere(pair: Row) -> bool:
    """Return whether a word of the query is not in the product's title but in another of its fields.

    A student that reads the title alone cannot know of it. Words of one or two letters do not count.
    """
    missing = {word for word in _words(pair["query"]) if len(word) > 2} - {*_words(pair["title"])}
    return not missing.isdisjoint(_words(f"{pair['brand'] or ''} {details(pair)}"))


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.lower()))


def agreement_of(verdicts: Sequence[str | None]) -> str | None:
    """Return whether the perspectives that answered agree; None if fewer than two answered."""
    said = [verdict for verdict in verdicts if verdict is not None]
    if len(said) < 2:
        return None
    return "agree" if len(set(said)) == 1 else "conflict"
