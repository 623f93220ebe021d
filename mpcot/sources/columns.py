"""Says what columns files have, of which types, and which of them are likely to be ours under another name."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Collection, Iterator, Mapping

import pyarrow.parquet as pq

from mpcot.sources.config import COLUMNS
from mpcot.sources.delimited import PARSE_ERROR
from mpcot.sources.filesets import FileSet, Part, batches

PROBED = 200  # rows of a jsonl file that tell its types

_JSON_TYPES = {
    str: "text", int: "whole number", float: "number", bool: "yes or no", list: "list", dict: "object",
    type(None): "empty",
}  # fmt: skip

# What others call our columns, without what is no letter.
_OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "query": ("searchterm", "searchquery", "keyword", "term", "q", "querytext", "search"),
    "product_id": (
        "sku",
        "asin",
        "itemid",
        "docid",
        "documentid",
        "productid",
        "articleid",
        "pid",
        "gtin",
        "ean",
        "id",
    ),
    "title": ("producttitle", "productname", "itemname", "name", "heading"),
    "label": ("esci", "rating", "grade", "relevance", "judgment", "judgement", "gain", "score"),
    "locale": ("productlocale", "querylocale", "language", "lang", "country", "market"),
    "brand": ("productbrand", "manufacturer", "maker", "vendor"),
    "description": ("productdescription", "shortdescription", "body", "text"),
    "bullets": ("productbulletpoint", "bulletpoints", "features", "highlights"),
    "attributes": ("facets", "specifications", "specs", "properties", "productfeatures"),
    "colour": ("color", "productcolor", "productcolour"),
    "split": ("fold", "subset", "partition"),
    "ratings": ("raterratings", "votes"),
}


def types_of(files: FileSet) -> dict[str, str]:
    """Return the type of each column in words; where files differ, all of its types."""
    found: dict[str, dict[str, None]] = {name: {} for name in files.columns}
    for part in files.parts:
        for name, kind in _types(files, part):
            found[name][kind] = None
        for name in part.keys:
            found[name]["text, from the names of folders"] = None
    return {name: " or ".join(kinds) or "unknown" for name, kinds in found.items()}


def _types(files: FileSet, part: Part) -> Iterator[tuple[str, str]]:
    if files.format == "parquet":
        schema = pq.read_schema(part.path, filesystem=files.filesystem)
        yield from ((field.name, str(field.type)) for field in schema)
    elif part.layout is not None:
        floats = part.layout.whole_floats
        yield from ((name, "whole numbers" if name in floats else "text") for name in part.columns if name)
    else:
        rows = (row for batch in batches(files, part, ()) for row in batch if PARSE_ERROR not in row)
        for row in itertools.islice(rows, PROBED):
            yield from ((name, _JSON_TYPES[type(value)]) for name, value in row.items() if name in files.columns)


def likely_names(columns: Collection[str], taken: Collection[str] = ()) -> dict[str, str]:
    """Return, for each of our columns that is not there, the column that is probably it, if there is one.

    Args:
        columns: the names in the files.
        taken: our names that the config has an entry for, and the columns that these name.
    """
    free = [name for name in columns if name not in COLUMNS and name not in taken]
    found: dict[str, str] = {}
    for ours in COLUMNS:
        if ours in columns or ours in taken:
            continue
        guess = next((name for name in _guesses(ours, free)), None)
        if guess is not None:
            found[ours] = guess
            free.remove(guess)
    return found


def _guesses(ours: str, free: Collection[str]) -> Iterator[str]:
    plain = {re.sub("[^a-z]", "", name.lower()): name for name in free}
    own = ours.replace("_", "")
    yield from (plain[name] for name in (own, *_OTHER_NAMES[ours]) if name in plain)
    yield from (name for short, name in plain.items() if own in short and not short.endswith("id"))
    yield from (plain[name] for name in difflib.get_close_matches(own, plain, n=1, cutoff=0.8))
