"""In which order the teacher should be asked: first where a student contradicts a judgement or is unsure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.candidates.mine import Mined
from distill.candidates.shop import Shop
from distill.student.model import Student, load_tokenizer
from distill.student.predict import predict
from mpcot.pairs.ids import pair_id
from mpcot.sources.clean_rows import Cleaning
from mpcot.sources.judgement_file import read_judgements

PAIRS_AT_A_TIME = 4096


@dataclass(frozen=True)
class Doubt:
    """What a student thinks of a pair: the entropy of its answer in nats, and whether a given verdict differs."""

    entropy: float = 0.0
    contradicted: bool = False


def ordered(mined: Sequence[Mined], doubts: Sequence[Doubt] | None = None) -> list[Mined]:
    """Return the pairs in the order of asking.

    Pairs on which the student was contradicted come first, then those on which it is less sure, then those that were
    found earlier for their query. A hash of the pair decides what is left, so that the order is always the same.
    """

    def place(number: int) -> tuple[bool, float, int, str]:
        (query, (locale, product), rank, _), doubt = mined[number], doubts[number] if doubts else Doubt()
        return not doubt.contradicted, -doubt.entropy, rank, pair_id(locale, query.text, product)

    return [mined[number] for number in sorted(range(len(mined)), key=place)]


def doubts_of(mined: Sequence[Mined], shop: Shop, student: Path, verdicts: Mapping[str, Sequence[str]]) -> list[Doubt]:
    """Return what the student in the folder thinks of each pair.

    Args:
        verdicts: what others have said of some pairs, by the pair's id.

    Raises:
        UserError: the folder is not a student's.
    """
    loaded, tokenizer = Student.load(student), load_tokenizer(student)
    codes = loaded.config.scheme.codes
    doubts: list[Doubt] = []
    for start in range(0, len(mined), PAIRS_AT_A_TIME):
        part = mined[start : start + PAIRS_AT_A_TIME]
        rows = [{**shop.products[key], "query": query.text} for query, key, _, _ in part]
        shares = predict(loaded, tokenizer, rows).served(loaded.config)
        entropies = -(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=1)
        for (query, (locale, product), _, _), best, entropy in zip(part, shares.argmax(1), entropies, strict=True):
            said = verdicts.get(pair_id(locale, query.text, product), ())
            doubts.append(Doubt(float(entropy), any(verdict != codes[best] for verdict in said)))
    return doubts


def verdicts_of(path: Path, cleaning: Cleaning) -> dict[str, list[str]]:
    """Return the verdicts of a file in the form of `source.judgements`, by the pair's id.

    Raises:
        UserError: the file cannot be read, or a column is missing.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for row in read_judgements(str(path), cleaning, "--judged").to_pylist():
        if not row["error"]:
            found[pair_id(row["locale"], row["query"], row["product_id"])].append(row["verdict"])
    return dict(found)
