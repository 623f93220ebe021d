"""Csv and tsv as databases, spreadsheets, Spark and pandas write them: no line is lost, and texts stay as they are."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.base.errors import UserError
from mpcot.schemes.scheme import load_scheme
from mpcot.sources.config import TableSource
from mpcot.sources.delimited import PARSE_ERROR, layout_of, parse_delimited
from mpcot.sources.open_source import read_source

HEADER = "query\tproduct_id\ttitle\tlabel\n"


def parsed(text: str, form: str = "tsv") -> list[dict[str, Any]]:
    return list(parse_delimited(text, layout_of(text, form)))


def tsv(titles: list[str]) -> str:
    return HEADER + "".join(f"q\t{place}\t{title}\tE\n" for place, title in enumerate(titles))


def test_titles_that_begin_with_a_quote_stay_as_they_are():
    titles = ['"Twin" Size Sofa', "Lamp", '"Queen size Kettle', 'Blanket 24" wide', '"King', "Sofa", 'Rug 5"']
    assert [row["title"] for row in parsed(tsv(titles))] == titles
    assert layout_of(tsv(titles), "tsv").quoting == "none"


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_what_a_csv_writer_wrote_is_read_back(delimiter: str, quoting: Any):
    titles = ['5" pipe', "a,b", "two\nlines, and\ttabs\t", '"all"', "", '"', 'x""y', "plain"]
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting)
    writer.writerows([("query", "title"), *(("q", title) for title in titles)])
    rows = parsed(file.getvalue(), "csv")
    assert [row["title"] for row in rows] == titles


def test_a_backslash_before_quotes_as_spark_writes_them():
    text = 'query,title\nq,"24\\" wide, white"\nq,"5\\" pipe"\nq,AC\\DC\nq,"a, b"\n'
    assert [row["title"] for row in parsed(text, "csv")] == ['24" wide, white', '5" pipe', "AC\\DC", "a, b"]


def test_an_open_quote_costs_its_own_line_only():
    good = "".join(f'q,{place},"Sofa, {place}",E\n' for place in range(5))
    text = "query,product_id,title,label\n" + good + 'q,open,"Queen size Kettle,S\n' + good.replace("q,", "p,")
    rows = parsed(text, "csv")
    assert [row["title"] for row in rows if PARSE_ERROR not in row] == [f"Sofa, {place}" for place in range(5)] * 2
    (broken,) = (row for row in rows if PARSE_ERROR in row)
    assert broken["line"] == 'q,open,"Queen size Kettle,S\n'
    assert broken[PARSE_ERROR].startswith("quotes are broken: ")


def test_an_open_quote_in_the_last_line_does_not_hide_it():
    good = "".join(f'q,{place},"Sofa, {place}",E\n' for place in range(5))
    *rows, last = parsed("query,product_id,title,label\n" + good + 'q,5,"Kettle,S\n', "csv")
    assert (len(rows), last["line"]) == (5, 'q,5,"Kettle,S\n')


@pytest.mark.parametrize("more", ["", "a ragged line\n"])
@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_an_open_quote_that_a_later_line_closes_swallows_none(form: str, more: str):
    """As a quoted text these are two good rows: the second and the third line have one title in quotes."""
    text = tsv(['"Well quoted"', '"Queen size Kettle', '24"', "Lamp"]) + more
    rows = parsed(text if form == "tsv" else text.replace("\t", ","), form)
    assert len(rows) == 4 + bool(more)
    assert rows[3]["title"] == "Lamp"


def test_several_lines_of_one_quoted_text_stay_together():
    text = 'query,title,label\nq,"one, two\nthree, four",E\nq,"Sofa, red",S\n'
    assert [row["title"] for row in parsed(text, "csv")] == ["one, two\nthree, four", "Sofa, red"]


@pytest.mark.parametrize("mark", [";", "\t", "|", ","])
def test_the_delimiter_is_that_of_the_header(mark: str):
    text = "query,product_id,title\nq,1,Sofa\n".replace(",", mark)
    assert parsed(text, "csv") == [{"query": "q", "product_id": "1", "title": "Sofa"}]


def test_blank_lines_and_rows_of_commas_are_no_rows():
    text = "\nquery,product_id,title,label\nq,1,Sofa,E\n,,,\n\n , ,,\nq,2,Lamp,E\n" + ",,,\n" * 30 + ",\n"
    assert [row["title"] for row in parsed(text, "csv")] == ["Sofa", "Lamp"]


def test_whole_numbers_written_as_floats_are_read_as_whole():
    text = "product_id,label,price,size\n0.0,3.0,2.5,\n12.0,,3.0,\n-7.0,1.0,n/a,4.00\n"
    assert [tuple(row.values()) for row in parsed(text, "csv")] == [
        ("0", "3", "2.5", ""),
        ("12", "", "3.0", ""),
        ("-7", "1", "n/a", "4"),
    ]


@pytest.mark.parametrize(
    ("label", "label_map", "code"),
    [("3.0", {}, "3"), ("3.0", {"3": "2"}, "2"), ("3.0", {"3.0": "1"}, "1"), ("3", {"3.0": "1"}, "1"), ("2", {}, "2")],
)
def test_a_grade_means_the_same_with_and_without_point_zero(
    tmp_path: Path, label: str, label_map: dict[str, str], code: str
):
    (tmp_path / "t.csv").write_text(f"query,product_id,title,label\nq,1,Sofa,{label}\nq,2,Sofa,0\n")
    source = TableSource(path=str(tmp_path / "t.csv"), label_map=label_map)
    rows = read_source(source, load_scheme("graded")).rows.to_pylist()
    assert [(row["label"], row["error"]) for row in rows] == [(code, None), ("0", None)]


def test_it_is_said_how_an_unusual_file_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, text in (("a.csv", "query,product_id,title\nq,1,Sofa\n"), ("b.csv", "query;product_id;title\nq;2;Rug\n")):
        (tmp_path / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpcot.sources.filesets.console", lambda: Console(width=400))
        read_source(TableSource(path=str(tmp_path)), load_scheme("esci"))
    said = capsys.readouterr().out
    assert said == f"{tmp_path}/b.csv is read so: semicolons between fields, fields may be in quotes\n"


def test_a_header_with_a_name_twice_is_refused_if_the_column_is_read(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("query,product_id,title,title,note,note\nq,1,Sofa,supplier text,a,b\n")
    with pytest.raises(UserError, match=r"source.path: .*t.csv has the column 'title' twice. Rename"):
        read_source(TableSource(path=str(path)), load_scheme("esci"))
    path.write_text("query,product_id,title,note,note\nq,1,Sofa,a,b\n")
    (row,) = read_source(TableSource(path=str(path)), load_scheme("esci")).rows.to_pylist()
    assert (row["title"], row["error"]) == ("Sofa", None)


def test_a_part_may_have_columns_that_the_first_lacks(tmp_path: Path):
    (tmp_path / "a.csv").write_text("query,product_id,title\nq,1,Sofa\n")
    (tmp_path / "b.csv").write_text("product_id,label,query,title\n2,E,q,Lamp\n")
    rows = read_source(TableSource(path=str(tmp_path)), load_scheme("esci")).rows.to_pylist()
    assert [(row["product_id"], row["title"], row["label"]) for row in rows] == [
        ("1", "Sofa", None),
        ("2", "Lamp", "E"),
    ]


def test_a_spreadsheet_is_refused_with_the_way_out(tmp_path: Path):
    (tmp_path / "judged.xlsx").write_bytes(b"PK\x03\x04 and so on")
    (tmp_path / "named.csv").write_bytes(b"PK\x03\x04 and so on")
    for path in (tmp_path / "judged.xlsx", tmp_path / "named.csv"):
        with pytest.raises(UserError, match=rf"{path.name} is a spreadsheet.*CSV UTF-8.*read_excel"):
            read_source(TableSource(path=str(path)), load_scheme("esci"))
    (tmp_path / "named.csv").unlink()
    with pytest.raises(UserError, match=r"has spreadsheets only.*read_excel"):
        read_source(TableSource(path=str(tmp_path)), load_scheme("esci"))
