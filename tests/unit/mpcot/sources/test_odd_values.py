"""Decimals, invisible characters and deeply nested JSON, as rows of any format may have them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from mpcot.sources.clean_rows import Cleaning, make_row
from mpcot.sources.clean_texts import clean_text
from mpcot.sources.plain_json import load_json


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("3.000000000", "3"), ("0E-9", "0"), ("10", "10"), ("1E+3", "1000"), ("2.50", "2.5"),
        ("12345678901234567890123456789.000000000", "12345678901234567890123456789"),
    ],
)  # fmt: skip
def test_decimals_read_as_the_number_that_they_are(given: str, text: str):
    assert clean_text(Decimal(given)) == text


def test_json_of_a_hundred_levels_is_read():
    assert load_json("[" * 100 + "]" * 100)
    with pytest.raises(ValueError, match="nested deeper"):
        load_json("[" * 101 + "]" * 101)


@pytest.mark.parametrize(
    "query",
    ["\u200b", "\u00ad\u200e", " \u200d ", "\ufe0f", "\u3164", "\u2800", "\U000e0041", "\u2066\u2069", "\u180e"],
)
def test_a_query_of_invisible_characters_is_missing(query: str):
    row = make_row(0, {"query": query, "product_id": "1", "title": "Sofa"}, Cleaning(("E", "I"), {}, "us"))
    assert row["error"] == "query missing"


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("note\u00adbook", "notebook"),
        ("\u202bשולחן\u202c \u200frug\u061c", "שולחן rug"),
        ("نمی\u200cخواهم", "نمی\u200cخواهم"),
        ("❤\ufe0f", "❤\ufe0f"),
        ("cafe\u0301", "café"),
    ],
)
def test_marks_that_say_nothing_go_and_those_of_a_script_stay(given: str, cleaned: str):
    assert clean_text(given) == cleaned
