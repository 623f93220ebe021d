"""Segments of the made-up run (see tests/helpers/report_run.py): test pairs are n = 52 to 75."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.report.report_data import collect
from distill.report.report_page import render
from distill.report.segments import agreement_of, brands, grouped, length_of, names_brand
from tests.helpers.report_run import report_stage, write_run


def by_value(folder: Path, **changes: bool) -> dict[tuple[str, str], dict]:
    report = collect(report_stage(), write_run(folder, **changes))
    return {(row["segment"], row["value"]): row for row in report["segments"]}


def test_every_segment_shares_out_the_pairs_that_all_judges_answered(tmp_path: Path) -> None:
    found = by_value(tmp_path)
    assert set(found) == {
        ("query length", "3 or 4 words"), ("brand in the query", "no"), ("locale", "us"),
        ("perspectives", "agree"), ("perspectives", "conflict"),
    }  # fmt: skip
    assert found["locale", "us"]["pairs"] == 24 and found["locale", "us"]["queries"] == 6
    # Perspectives conflict where n % 6 == 1, and there nobody is wrong: n is odd and no multiple of 3.
    conflict, agree = found["perspectives", "conflict"], found["perspectives", "agree"]
    assert (conflict["pairs"], agree["pairs"]) == (4, 20)
    assert {name: row["accuracy"] for name, row in conflict["judges"].items()} == dict.fromkeys(
        ("teacher", "lrkd", "ce_only"), 1.0
    )
    accuracy = {name: row["accuracy"] for name, row in agree["judges"].items()}
    assert accuracy == pytest.approx({"teacher": 16 / 20, "lrkd": 14 / 20, "ce_only": 12 / 20})
    assert agree["difference"]["difference"] == pytest.approx(2 / 20)
    # In conflict are the wrong verdicts of the rules; intent is silent in one pair of four there.
    assert conflict["perspectives"] == {"intent": 0.75, "attributes": 1.0, "rules": 0.0}


def test_without_a_labels_only_student_there_is_no_difference(tmp_path: Path) -> None:
    row = by_value(tmp_path, baseline=False)["locale", "us"]
    assert row["difference"] is None and set(row["judges"]) == {"teacher", "lrkd"}


def test_the_page_shows_segments_and_temperatures(tmp_path: Path) -> None:
    report = collect(report_stage(), write_run(tmp_path))
    judge = report["headline"]["judges"]["lrkd"]
    # 9 of 12 dev pairs are right at 0.7 against three times 0.1: 7^(1/T) / (7^(1/T) + 3) = 3/4, so T = ln 7 / ln 9.
    assert judge["temperature"] == pytest.approx(0.8856, abs=1e-3) and judge["temperature_pairs"] == 12
    assert judge["calibration_error"] == pytest.approx(0.05) and judge["calibrated_error"] == pytest.approx(0, abs=1e-3)
    page = render(report | {"latency": None, "explanations": None})
    assert '<th scope="row">perspectives<br><span class="soft">conflict</span></th><td>4</td>' in page
    assert "<td>0.050</td><td>0.000</td><td>0.89</td>" in page


def test_length_counts_words() -> None:
    queries = ("tv", "red tv", "a b c", "a b c d", "a b c d e f", "a b c d e f g")
    assert [length_of(query)[0] for query in queries] == ["1", "1", "3", "3", "5", "7"]


def test_a_brand_is_named_as_whole_words() -> None:
    known = brands({"a": {"brand": "Le Creuset"}, "b": {"brand": "Mug"}, "c": {"brand": None}, "d": {"brand": " "}})
    assert known == {("le", "creuset"), ("mug",)}
    assert names_brand("red LE creuset pot", known) and names_brand("mug", known)
    assert not names_brand("mugs le pot creuset", known) and not names_brand("mug", frozenset())


def test_conflict_needs_two_answers() -> None:
    assert agreement_of(["E", "E", None]) == "agree" and agreement_of(["E", "S", "E"]) == "conflict"
    assert agreement_of(["E", None, None]) is None


def test_pairs_are_grouped_by_every_segment_at_once() -> None:
    row = {"locale": "us", "title": "t", "brand": "Mug"}
    pairs = {i: row | {"pair_id": i, "query": query} for i, query in (("a", "red mug"), ("b", "lamp"), ("c", "a b c"))}
    found = grouped(pairs, {"a": {"verdicts": ["E", "S"]}}, ["a", "b", "c"])
    assert found["query length"] == {"1 or 2 words": ["a", "b"], "3 or 4 words": ["c"]}
    assert found["brand in the query"] == {"no": ["b", "c"], "yes": ["a"]}
    assert found["perspectives"] == {"conflict": ["a"]} and found["locale"] == {"us": ["a", "b", "c"]}
