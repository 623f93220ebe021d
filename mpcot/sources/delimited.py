"""Reads csv and tsv so that no line is lost: a line is part of a good row, or a row of its own that says what is wrong.

Programs write quotes in three ways, which nothing in a file names: fields in quotes with quotes inside doubled
(RFC 4180: spreadsheets, pandas), the same with a backslash before them (Spark), or as any other character (databases,
marketplaces). The way that the fewest lines contradict is taken, file by file.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

csv.field_size_limit(sys.maxsize)  # too long a title must not look like a broken file
PARSE_ERROR = "__parse_error__"  # the key of the reason why a line could not be parsed
DELIMITERS = {"csv": ",", "tsv": "\t"}
Quoting = Literal["doubled", "escaped", "none"]

_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_QUOTES = {
    "doubled": "fields may be in quotes",
    "escaped": "fields may be in quotes, with a backslash before quotes inside",
    "none": "quotes are part of the text",
}
_WELL_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_WHOLE_FLOAT = re.compile(r"-?(?:0|[1-9]\d*)\.0+")


@dataclass(frozen=True)
class Layout:
    """How one file is written. `rows` counts those that are not blank.

    `left_open` says that rows of several lines come from quotes that were left open. `whole_floats` are the columns of
    which every value is like `3.0`, as programs write whole numbers if a cell is empty.
    """

    delimiter: str
    quoting: Quoting = "doubled"
    left_open: bool = False
    header: tuple[str, ...] = ()
    rows: int = 0
    whole_floats: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{_NAMES[self.delimiter]} between fields, {_QUOTES[self.quoting]}"


class _Record(NamedTuple):
    """A row with what is wrong with it. If that is set, `line` is all that the row has.

    `doubtful` marks a row of several lines each of which looks like a whole row, as an open quote makes them.
    """

    fields: list[str]
    line: str
    error: str | None = None
    doubtful: bool = False

    @property
    def blank(self) -> bool:  # spreadsheets write rows of commas after the last one
        return self.error is None and not any(field.strip() for field in self.fields)


class _Lines:
    """The lines of a text. `taken` are those since it was last emptied; all but the first can be given back."""

    def __init__(self, text: str, escaped: bool) -> None:
        self._lines, self._again, self._escaped = io.StringIO(text, newline=""), deque[str](), escaped
        self.taken: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.taken.append(line)
        return re.sub(r'(?<!\\)\\"', '""', line) if self._escaped else line

    def give_back(self) -> str:
        """Return the first line that was taken. The others come again."""
        first, *others = self.taken
        self._again.extendleft(reversed(others))
        return first


def layout_of(text: str, form: str) -> Layout:
    """Return how a csv or tsv text is written."""
    line = next((line for line in io.StringIO(text.removeprefix("\ufeff"), newline="") if line.strip()), "")
    default = DELIMITERS[form]
    counts = {mark: len(next(csv.reader([line], delimiter=mark), [])) for mark in (default, *_NAMES)}
    delimiter = default if counts[default] > 1 else max(counts, key=lambda mark: counts[mark])
    best, wrong = _survey(text, Layout(delimiter))
    if not wrong or '"' not in text:
        return best
    for quoting in ("escaped", "none"):
        other, less = _survey(text, Layout(delimiter, quoting))
        if less < wrong:
            best, wrong = other, less
    return best


def _survey(text: str, layout: Layout) -> tuple[Layout, int]:
    """Return the layout with what the text shows of it, and how many rows contradict it."""
    header, records = _open(text, layout)
    rows, wrong, floats = 0, 0, set(range(len(header)))
    doubtful = quotes_needed = 0
    for record in records:
        rows += 1
        doubtful += record.doubtful
        quotes_needed += not record.doubtful and any(layout.delimiter in one or "\n" in one for one in record.fields)
        ragged = len(record.fields) != len(header)
        quoted = layout.quoting == "none" and any(map(_WELL_QUOTED.fullmatch, record.fields))
        wrong += record.doubtful or ragged or quoted
        if floats and not ragged:
            values = {place: record.fields[place].strip() for place in floats}
            floats = {place for place, value in values.items() if not value or _WHOLE_FLOAT.fullmatch(value)}
    names = frozenset(header[place] for place in floats)
    left_open = doubtful > quotes_needed
    return replace(layout, header=tuple(header), rows=rows, whole_floats=names, left_open=left_open), wrong


def parse_delimited(text: str, layout: Layout) -> Iterator[dict[str, Any]]:
    """Yield the rows of a text, which are lists of texts by the names in the header. Blank rows are left out."""
    header, records = _open(text, layout)
    for record in records:
        if record.error:
            yield {PARSE_ERROR: record.error, "line": record.line}
            continue
        row: dict[str, Any] = dict(zip(header, record.fields, strict=False))
        if len(record.fields) != len(header):
            yield row | {PARSE_ERROR: f"wrong number of fields: {len(record.fields)}, the header has {len(header)}"}
        else:
            yield row | {name: row[name].partition(".")[0] for name in layout.whole_floats}


def _open(text: str, layout: Layout) -> tuple[list[str], Iterator[_Record]]:
    """Return the fields of the header, and the records after it that are not blank."""
    records = (record for record in _records(text.removeprefix("\ufeff"), layout) if not record.blank)
    header = next(records, None)
    return (header.fields if header else []), records


def _records(text: str, layout: Layout) -> Iterator[_Record]:
    """Yield every row. Where quotes are broken, a row is one line, and reading goes on with the line after it."""
    lines = _Lines(text, layout.quoting == "escaped")
    reader = csv.reader(
        lines,
        delimiter=layout.delimiter,
        quoting=csv.QUOTE_NONE if layout.quoting == "none" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    width = 0
    while True:
        lines.taken.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield _Record([], lines.give_back(), f"quotes are broken: {error}")
            continue
        width = width or len(fields)
        doubtful = len(lines.taken) > 1 and all(line.count(layout.delimiter) == width - 1 for line in lines.taken)
        if doubtful and layout.left_open:
            yield _Record([], lines.give_back(), "quotes are broken: a quote is left open", True)
        else:
            yield _Record(fields, lines.taken[0], doubtful=doubtful)
