"""Whatever a table holds, and in whatever format it is written, each of its rows ends in pairs or in failed."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcot.pairs.settle_rows import Row, settled_rows
from mpcot.schemes.scheme import load_scheme
from mpcot.sources.config import PairsStage, SplitSettings, TableSource
from mpcot.sources.open_source import read_source

COLUMNS = ("query", "product_id", "title", "label", "note")
# Rows beside the random ones, so that there are queries for every split.
GOOD = [(f"good {number // 2}", f"good{number}", "Sofa", "ESCI"[number % 4], "") for number in range(12)]
SAFE = "ab 0.\\\",;|'\u00e9\u200b\ufeff<&"
Rows = Sequence[tuple[str, ...]]


def settle(config: PairsStage) -> list[Row]:
    """Return what stage 1 decides of every row that was read, without writing anything."""
    scheme = load_scheme(config.labels.scheme)
    with tempfile.TemporaryDirectory() as folder, settled_rows(config, scheme, Path(folder)) as rows:
        rows.take(read_source(config.source, scheme))
        rows.assign_splits()
        return list(rows.decisions())


def tables(letters: str) -> st.SearchStrategy[list[tuple[str, ...]]]:
    """Return random rows of texts, none of which is blank, as blank lines are no rows."""
    text = st.text(st.sampled_from(letters), max_size=8)
    label = st.sampled_from(["E", "3.0", "", "I"])
    return st.lists(st.tuples(text, text, text, label, st.just("x")), max_size=12)


def write_lines(path: Path, rows: Rows, delimiter: str) -> None:
    lines = (delimiter.join(row) for row in (COLUMNS, *rows))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")


def write_csv(path: Path, rows: Rows, **form: object) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, **form).writerows([COLUMNS, *rows])  # type: ignore[arg-type]


def write_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(dict(zip(COLUMNS, row, strict=True))) + "\n" for row in rows), encoding="utf-8")


def write_parts(path: Path, rows: Rows) -> None:
    """Write parquet parts: the first without label and note, the last with lengths of texts as ids."""
    good, others = rows[: len(GOOD)], rows[len(GOOD) :]
    for place, (part, columns) in enumerate([(others[::3], 3), ([*good, *others[1::3]], 5), (others[2::3], 5)]):
        values = {name: [row[at] for row in part] for at, name in enumerate(COLUMNS[:columns])}
        if place == 2:
            values["product_id"] = [len(row[1]) for row in part]  # type: ignore[misc]
        folder = path / f"day={place}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table(values), folder / "part.parquet", row_group_size=2)


FORMS: dict[str, tuple[Callable[[Path, Rows], None], str, str]] = {
    "plain tsv": (lambda path, rows: write_lines(path, rows, "\t"), "t.tsv", SAFE),
    "csv": (write_csv, "t.csv", SAFE + "\n\r\t"),
    "all quoted": (lambda path, rows: write_csv(path, rows, quoting=csv.QUOTE_ALL), "t.csv", SAFE + "\n"),
    "semicolons": (lambda path, rows: write_csv(path, rows, delimiter=";"), "t.csv", SAFE),
    "spark": (
        lambda path, rows: write_csv(path, rows, quoting=csv.QUOTE_ALL, doublequote=False, escapechar="\\"),
        "t.csv",
        SAFE.replace("\\", ""),
    ),
    "jsonl": (write_jsonl, "t.jsonl", SAFE + "\n\r\t\u2028\x00"),
    "parquet": (write_parts, "parts", SAFE + "\n\r\t\u2028\x00"),
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_in_are_pairs_and_failed(form: str):
    write, name, letters = FORMS[form]

    @settings(max_examples=20, deadline=None)
    @given(tables(letters))
    def check(rows: list[tuple[str, ...]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            write(path, [*GOOD, *rows])
            source = TableSource(path=str(path), max_failed_share=1)
            settled = settle(PairsStage(source=source, split=SplitSettings(query_in_two_splits="fail")))
            assert [row["source_row"] for row in settled] == list(range(len(GOOD) + len(rows)))
            assert all(row["error"] or (row["pair_id"] and row["split"]) for row in settled)

    check()
