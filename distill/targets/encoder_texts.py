"""What the sentence encoder of stage 8 reads: the teacher's rationales in the chosen form, and texts of controls."""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.base.stage_folder import digest
from cluster.base.tables import batches_of, read_table, table_writer
from distill.config import TargetSettings
from mpcot.filters.objections import FILLER
from mpcot.records import texts
from mpcot.schemes.scheme import Scheme

JUDGED = ["pair_id", "verdicts", "rationales", "perspective_soft"]
WORD = re.compile(r"[^\W_]+(?:['’.][^\W_]+)*")
ASKED, OFFERED = "[asked]", "[offered]"
REPEATED = re.compile(rf"({re.escape(ASKED)}|{re.escape(OFFERED)})(?:[\s,/-]+\1)+")

# 8-targets/texts.parquet -> the encoder, and people who want to see what it read. The columns are those of TARGET.
TARGET_TEXT = pa.schema(
    [
        *texts("pair_id"),
        pa.field("vectors", pa.list_(pa.string()), nullable=False),
        *(pa.field(name, pa.list_(pa.string())) for name in ("permuted", "template")),
        *texts("query?", "title?"),
    ]
)


def write_texts(path: Path, pairs: Path, judgements: Path, settings: TargetSettings, scheme: Scheme) -> None:
    """Write the texts of every judged pair as `TARGET_TEXT` rows, in the order of the judgements."""
    needs_pairs = settings.embeds_pairs or settings.text == "delexicalised"
    known = _Pairs(pairs) if needs_pairs else None
    with table_writer(path, TARGET_TEXT) as writer:
        for batch in batches_of(judgements, JUDGED):
            rows = [
                target_texts(row, known[row["pair_id"]] if known else {}, settings, scheme) for row in batch.to_pylist()
            ]
            writer.write_table(pa.Table.from_pylist(rows, TARGET_TEXT))


class _Pairs:
    """Query and title of every pair by its id, as Arrow columns and not as Python objects."""

    def __init__(self, path: Path) -> None:
        self.table = read_table(path, ["pair_id", "query", "title"])
        self.at = {pair_id: place for place, pair_id in enumerate(self.table["pair_id"].to_pylist())}

    def __getitem__(self, pair_id: str) -> dict[str, str]:
        return {name: self.table[name][self.at[pair_id]].as_py() for name in ("query", "title")}


def target_texts(
    judgement: Mapping[str, Any], pair: Mapping[str, str], settings: TargetSettings, scheme: Scheme
) -> dict[str, Any]:
    """Return a judgement's row of `TARGET_TEXT`. A missing or blank rationale has no text in any column.

    Args:
        judgement: the columns `JUDGED`.
        pair: `query` and `title`, if the settings need them.
    """
    own: list[str | None] = []
    said: list[str | None] = []
    shares = judgement["perspective_soft"]
    for rationale, verdict, soft in zip(judgement["rationales"], judgement["verdicts"], shares, strict=True):
        there = bool(rationale and rationale.strip())
        said.append(stated(verdict, soft, scheme) if there and verdict else None)
        own.append(_form(rationale, said[-1], pair, settings) if there else None)
    controls, found = settings.controls, {"pair_id": judgement["pair_id"], "vectors": own}
    if "permuted" in controls:
        found["permuted"] = [
            permuted(text, f"{judgement['pair_id']}/{place}") if text else None for place, text in enumerate(own)
        ]
    if "template" in controls:
        found["template"] = said
    return found | ({"query": pair["query"], "title": pair["title"]} if settings.embeds_pairs else {})


def _form(rationale: str, verdict: str | None, pair: Mapping[str, str], settings: TargetSettings) -> str:
    if settings.text == "rationale+verdict" and verdict:
        return f"{verdict}. {rationale}"  # in front, because a long rationale loses its end
    if settings.text == "delexicalised":
        return delexicalised(rationale, pair["query"], pair["title"])
    return rationale


def stated(verdict: str, soft: Sequence[float], scheme: Scheme) -> str:
    """Return a verdict and the probability that its perspective gave it as "label Exact, confidence 0.83"."""
    place = scheme.index(verdict)
    return f"label {scheme.labels[place].name}, confidence {soft[place]:.2f}"


def delexicalised(rationale: str, query: str, title: str) -> str:
    """Return the rationale with [asked] for words of the query and [offered] for other words of the title.

    Words are compared in lower case and without a plural's s, so that "drills" counts as "drill". English words of
    grammar, such as "for", stay. Of equal placeholders in a row one is left.
    """
    asked, offered = _stems(query), _stems(title)

    def placeholder(found: re.Match[str]) -> str:
        stem = _stem(found[0])
        return ASKED if stem in asked else OFFERED if stem in offered else found[0]

    return REPEATED.sub(r"\1", WORD.sub(placeholder, rationale))


def _stems(text: str) -> frozenset[str]:
    return frozenset(_stem(word) for word in WORD.findall(text) if word.lower() not in _grammar())


@cache
def _grammar() -> frozenset[str]:
    return frozenset(tomllib.loads(FILLER.read_text(encoding="utf-8"))["grammar"].split())


def _stem(word: str) -> str:
    low = re.sub(r"['’]s$", "", word.lower())
    return low[:-1] if len(low) > 3 and low.endswith("s") and not low.endswith("ss") else low


def permuted(text: str, seed: str) -> str:
    """Return the text's words in a random order that depends on text and seed alone."""
    words = text.split()
    random.Random(digest([seed, text])).shuffle(words)
    return " ".join(words)
