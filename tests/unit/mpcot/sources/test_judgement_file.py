"""Rows of `source.judgements`: verdicts, confidences and probabilities become shares of all labels, or a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.base.errors import UserError
from mpcot.sources.clean_rows import Cleaning
from mpcot.sources.judgement_file import make_judgement, read_judgements

ESCI = Cleaning(("E", "S", "C", "I"), {"exact": "E", "substitute": "S"}, "us")
ROW = {"query": "red lamp", "product_id": "7", "perspective": "intent", "rationale": "It is one.", "verdict": "E"}


def made(**more: Any) -> dict[str, Any]:
    return make_judgement(ROW | more, ESCI)


@pytest.mark.parametrize(
    ("more", "shares"),
    [
        ({}, None),
        ({"confidence": 0.7}, [0.7, 0.1, 0.1, 0.1]),
        ({"confidence": "0.4", "verdict": "S"}, [0.2, 0.4, 0.2, 0.2]),
        ({"confidence": 1}, [1, 0, 0, 0]),
        ({"probabilities": {"E": 0.5, "S": 0.3}}, [0.5, 0.3, 0.1, 0.1]),
        ({"probabilities": {"exact": 0.5, "S": 0.5, "C": 0, "I": 0}, "confidence": 0.9}, [0.5, 0.5, 0, 0]),
        ({"probabilities": [("E", 0.25), ("I", 0.75)]}, [0.25, 0, 0, 0.75]),  # a map in parquet
        ({"probabilities": {"E": None, "S": None}, "confidence": 0.7}, [0.7, 0.1, 0.1, 0.1]),  # a struct in parquet
        ({"probabilities": {"E": 0.335, "S": 0.335, "C": 0.335, "I": 0}}, [1 / 3, 1 / 3, 1 / 3, 0]),
    ],
)
def test_what_a_writer_is_sure_of_becomes_a_distribution(more: dict[str, Any], shares: list[float] | None) -> None:
    row = made(**more)
    assert row.get("error") is None
    assert row["probabilities"] == (shares if shares is None else pytest.approx(shares))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"verdict": "X"}, "verdict outside the scheme: 'X', which has E, S, C, I"),
        ({"verdict": " "}, "verdict missing"),
        ({"query": None}, "query missing"),
        ({"perspective": ""}, "rationale without a perspective"),
        ({"perspective": None, "rationale": None}, None),
        ({"confidence": 1.2}, "confidence outside 0 to 1: '1.2'"),
        ({"confidence": -0.1}, "confidence outside 0 to 1: '-0.1'"),
        ({"confidence": "sure"}, "confidence outside 0 to 1: 'sure'"),
        ({"probabilities": {"E": 0.5, "X": 0.5}}, "probability of a label outside the scheme: 'X'"),
        ({"probabilities": {"E": 1.5}}, "probability outside 0 to 1: '1.5'"),
        ({"probabilities": {"E": 0.9, "S": 0.9}}, "probabilities do not sum to 1: 1.8"),
        ({"probabilities": {"E": 0.1, "S": 0.1, "C": 0.1, "I": 0.1}}, "probabilities do not sum to 1: 0.4"),
        ({"probabilities": 0.9}, None),
    ],
)
def test_what_does_not_fit_has_a_reason(more: dict[str, Any], reason: str | None) -> None:
    assert made(**more).get("error") == reason


def test_labels_are_mapped_and_texts_tidied() -> None:
    row = made(verdict="substitute", rationale="two\n lines", locale="JP", origin=None)
    assert (row["verdict"], row["rationale"], row["locale"], row["origin"]) == ("S", "two lines", "jp", "file")


def test_jsonl_and_parquet_are_read_alike(tmp_path: Path) -> None:
    sure = {"confidence": None, "probabilities": {"E": 0.2, "S": 0.8}}
    rows = [ROW | {"confidence": 0.7, "probabilities": None}, ROW | {"perspective": "rules"} | sure]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "given.jsonl").write_text(lines + "{broken\n", encoding="utf-8")
    found = read_judgements(str(tmp_path / "given.jsonl"), ESCI).to_pylist()
    assert [row["probabilities"] for row in found[:2]] == [pytest.approx([0.7, 0.1, 0.1, 0.1]), [0.2, 0.8, 0, 0]]
    assert len(found) == 3 and found[2]["error"] and found[:2] == [row | {"error": None} for row in found[:2]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "given.parquet")
    stored = read_judgements(str(tmp_path / "given.parquet"), ESCI).to_pylist()
    assert [row["probabilities"] for row in stored[1:]] == [[0.2, 0.8, 0, 0]]


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "given.csv").write_text("query,product_id,perspective\nlamp,1,intent\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"source.judgements: .* has no column 'verdict'"):
        read_judgements(str(tmp_path / "given.csv"), ESCI)
