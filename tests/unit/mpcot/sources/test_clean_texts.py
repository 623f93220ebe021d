"""Texts of products as they are cleaned: HTML, bullet points, attributes."""

from __future__ import annotations

from typing import Any

import pytest

from mpcot.sources.clean_texts import attribute_map, bullets_text, clean_text, plain_text


def test_cleaning():
    assert clean_text("  a\u0000\tb\n\ufeff ") == "a b"
    assert clean_text(float("nan")) is None
    assert clean_text(3.0) == "3"
    assert clean_text("\ud800x") == "x"
    assert clean_text("grün".encode()) == "grün"
    assert plain_text("x" * 3000, 2000) == "x" * 2000


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("<p>Soft<br/>and <b>warm</b>.</p>", "Soft and warm."),
        ("H<sub>2</sub>O &amp; CO&#8322; &ndash; Caf&eacute;", "H2O & CO₂ – Café"),
        ("&lt;ul&gt;&lt;li&gt;one&lt;/li&gt;&lt;/ul&gt;", "one"),
        (
            "<85 Hz, 5 < 6 > 4, adapter <for iPhone>, AT&T &copy2",
            "<85 Hz, 5 < 6 > 4, adapter <for iPhone>, AT&T &copy2",
        ),
        ('a<script type="x">if (a < b) {}</script><!-- note --><style>p {}</style> b', "a b"),
        ('<a href="x">link</a><img src="y"/>', "link"),
        ("<BR>a</BR>b < br", "a b < br"),
        ("<p></p>&nbsp;", None),
        (["one", None, "two"], "one two"),
        ("<!--" * 100_000 + "<b" * 100_000, "<!--" * 100_000 + "<b" * 100_000),
    ],
)
def test_html_goes_and_what_only_looks_like_it_stays(given: Any, plain: str | None):
    assert plain_text(given) == plain


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["Waterproof", None, " ", "it's <b>light</b>"], "Waterproof • it's light"),
        ("Waterproof\nlight\n\n", "Waterproof • light"),
        ("<ul><li>Waterproof</li><li>light</li></ul>", "Waterproof • light"),
        ('["Waterproof", "light"]', "Waterproof • light"),
        ("[2 pack] light", "[2 pack] light"),
        ("[" * 100_000, "[" * 2000),
        (None, None),
        ([], None),
    ],
)
def test_bullets_from_lists_lines_and_html(given: Any, text: str | None):
    assert bullets_text(given) == text
    assert bullets_text(text) == text


@pytest.mark.parametrize(
    ("given", "attributes"),
    [
        ('{"colour": "r&eacute;d", "hdmi": true, "weight": 2.0, "none": null, "": "x"}', "colour hdmi weight"),
        ({"colour": "réd", "hdmi": True, "weight": 2.0, "none": None}, "colour hdmi weight"),
        ([("colour", "réd"), ("hdmi", "yes"), ("weight", "2")], "colour hdmi weight"),
        ({"colour": "réd", "long": "x" * 4000}, "colour"),
        ("{}", None),
        (" ", None),
        (None, None),
        ([], None),
    ],
)
def test_attributes_from_objects_json_and_arrow(given: Any, attributes: str | None):
    known = {"colour": "réd", "hdmi": "yes", "weight": "2"}
    assert attribute_map(given) == (attributes and {name: known[name] for name in attributes.split()})
    assert attribute_map({"ports": ["usb", "hdmi"], "size": {"w": 2, "h": None}}) == {
        "ports": "usb, hdmi",
        "size": "w: 2",
    }
