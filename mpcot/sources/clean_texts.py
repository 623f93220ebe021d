"""Cleans the texts of a source: noise, HTML, bullet points and attributes."""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from mpcot.sources.plain_json import load_json

TEXT_LIMIT = 2_000  # characters; a longer description, or longer bullet points, are cut
ATTRIBUTES_LIMIT = 4_000  # characters of all names and values; attributes beyond it are left out
BULLET = " • "

# Control characters other than white space, soft hyphens, zero-width and direction marks, and lone surrogates.
NOISE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u061c\ufeff\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ud800-\udfff"
    "\ufffe\uffff]"
)
# What shows nothing by itself but changes its neighbours: joiners, fillers, variation selectors, tags, an empty Braille
# cell. A text of nothing else is no text.
_INVISIBLE = re.compile(
    "[\\s\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200c\u200d\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]*"
)

# Only what HTML knows is taken for a tag: "<85 Hz" and "<for iPhone>" stay.
_BREAK = re.compile(
    r"""</?(address|article|blockquote|body|br|center|dd|div|dl|dt|fieldset|figure|footer|form|h[1-6]|head|header|hr
    |html|iframe|li|link|main|meta|nav|ol|option|p|pre|section|select|table|tbody|td|tfoot|th|thead|title|tr|ul|video
    )(?=[\s/>])[^<>]*>""",
    re.VERBOSE | re.IGNORECASE,
)
_INLINE = re.compile(
    r"""</?(a|abbr|b|bdi|bdo|big|button|cite|code|col|colgroup|del|dfn|em|embed|font|i|img|input|ins|kbd|label|mark
    |nobr|object|param|picture|q|s|samp|script|small|source|span|strike|strong|style|sub|sup|svg|tt|u|var|wbr
    )(?=[\s/>])[^<>]*>""",
    re.VERBOSE | re.IGNORECASE,
)
# What is hidden ends before the next opening, so that thousands of openings that are never closed take no longer.
_HIDDEN = re.compile(
    r"<!--(?:(?!<!--).)*?-->|<(script|style)\b[^<>]*>(?:(?!<\1\b).)*?</\1\s*>", re.DOTALL | re.IGNORECASE
)
_ENTITY = re.compile(r"&#?\w{1,31};")  # without the semicolon it is more often a name, such as AT&T


def clean_text(value: Any) -> str | None:
    """Return `value` as NFC text without control characters and with single spaces, or None if nothing shows."""
    text = unicodedata.normalize("NFC", NOISE.sub("", _as_text(value)))
    return None if _INVISIBLE.fullmatch(text) else " ".join(text.split())


def plain_text(value: Any, limit: int | None = None) -> str | None:
    """Return `value` as `clean_text` does, without HTML, and cut to `limit` characters."""
    text = clean_text(without_html(_as_text(value)))
    return text[:limit].rstrip() if text else None


def without_html(text: str) -> str:
    """Return the text without tags, comments and entities; what begins a line of its own in HTML begins one here.

    Shops also store HTML that was escaped once more, so that tags appear where entities were.
    """
    for _ in range(2):
        if "<" not in text and "&" not in text:
            break
        text = _INLINE.sub("", _BREAK.sub("\n", _HIDDEN.sub("\n", text)))
        text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    return text


def bullets_text(value: Any) -> str | None:
    """Return bullet points as one text, with ` • ` between them.

    Args:
        value: a list, a list as JSON, or a text with one bullet point per line or HTML element.
    """
    given = value if isinstance(value, list | tuple) else _from_json(value, "[")
    texts = given if isinstance(given, list | tuple) else [given]
    lines = (plain_text(line) for text in texts for line in without_html(_as_text(text)).splitlines())
    return BULLET.join(line for line in lines if line)[:TEXT_LIMIT].rstrip() or None


def product_texts(raw: Mapping[str, Any]) -> dict[str, str | None]:
    """Return title, brand, description and bullet points of a product, cleaned as the student learns them."""
    return {
        **{name: plain_text(raw.get(name)) for name in ("title", "brand")},
        "description": plain_text(raw.get("description"), TEXT_LIMIT),
        "bullets": bullets_text(raw.get("bullets")),
    }


def served_pair(pair: Mapping[str, Any]) -> dict[str, Any]:
    """Return query and product as a row of a source with these texts would have them. Ids are left out."""
    texts = product_texts(pair)
    return texts | {
        "query": clean_text(pair["query"]) or "",
        "title": texts["title"] or "",
        "attributes": attribute_map(pair.get("attributes")),
    }


def attribute_map(value: Any) -> dict[str, str] | None:
    """Return a product's attributes as texts, or None if it has none. Empty values are left out.

    Args:
        value: an object, an object as JSON, or the pairs of an Arrow map.

    Raises:
        ValueError: `value` is something else.
    """
    given = _from_json(value, "{")
    if isinstance(given, list) and all(isinstance(pair, tuple) for pair in given):
        given = dict(given)
    if not isinstance(given, Mapping):
        if clean_text(given) is None:
            return None
        raise ValueError(f"{clean_text(given)!r:.60}")
    return dict(_fitting((plain_text(name), _attribute(one)) for name, one in given.items())) or None


def _fitting(pairs: Iterator[tuple[str | None, str | None]]) -> Iterator[tuple[str, str]]:
    left = ATTRIBUTES_LIMIT
    for name, value in pairs:
        if name and value and len(name) + len(value) <= left:
            left -= len(name) + len(value)
            yield name, value


def _attribute(value: Any) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(one for one in map(_attribute, value) if one) or None
    return plain_text(value)


def _from_json(value: Any, opening: str) -> Any:
    """Return what a text that begins with `opening` says in JSON; anything else, or a broken text, as it is."""
    if not isinstance(value, str | bytes) or not _as_text(value).lstrip().startswith(opening):
        return value
    try:
        return load_json(_as_text(value))
    except ValueError:
        return value


def _as_text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, Decimal):  # databases write 3 as 3.000000000, and 0 as 0E-9
        whole, point, rest = format(value, "f").partition(".")
        return f"{whole}{point}{rest}".rstrip("0").rstrip(".") if point else whole
    if isinstance(value, bytes):  # some writers of parquet do not mark text as text
        return value.decode("utf-8", errors="replace")
    if isinstance(value, list | tuple):
        return "\n".join(map(_as_text, value))
    if isinstance(value, Mapping):
        texts = ((name, _as_text(one)) for name, one in value.items())
        return "; ".join(f"{name}: {one}" for name, one in texts if one)
    return str(value)
