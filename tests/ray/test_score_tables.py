"""`broadfast score` on a local Ray: every row once, as the scorer scores it, further files, S3, and refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.base.errors import UserError
from cluster.base.shared_folder import SharedFolder
from cluster.base.tables import read_table
from mpcot.sources.config import TableSource
from serve.bulk.config import BulkSettings
from serve.bulk.output import Wish, join_parts
from serve.bulk.score import Outcome, replicas_that_fit, score_table
from serve.config import ServeSettings
from serve.scoring.scorer import Scorer
from tests.helpers.command import broadfast, text
from tests.helpers.local_s3 import s3_folder
from tests.helpers.local_service import explaining_export
from tests.helpers.report_run import NAMES, write_export

pytestmark = pytest.mark.usefixtures("local_ray")
WORDS = ["red", "blue", "drill", "lamp", "mug", "case", "phone", "shoe"]
SMALL = BulkSettings(replicas=1, rows_per_part=8, precision="fp32")  # a copy takes many seconds to start
TWO = SMALL.model_copy(update={"replicas": 2})


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("export"), tmp_path_factory.mktemp("bert"))


def rows(first: int, count: int) -> list[dict[str, Any]]:
    """Pairs of which each has another text."""
    return [
        {"query": f"{WORDS[n % 8]} {n}", "product_id": f"p{n}", "title": " ".join(WORDS[: 1 + n % 8])}
        for n in range(first, first + count)
    ]


def write(path: Path, given: list[dict[str, Any]], group: int = 10) -> None:
    pq.write_table(pa.Table.from_pylist(given), path, row_group_size=group)


def run(
    export: Path,
    table: Path | str,
    out: Path | str,
    wish: Wish | None = None,
    bulk: BulkSettings = SMALL,
    **source: Any,
) -> Outcome:
    given = TableSource(path=str(table), **source)
    return score_table(export, given, SharedFolder.at(out), bulk, wish or Wish())[0]


def test_every_row_gets_the_scores_of_the_scorer_once(export: Path, tmp_path: Path) -> None:
    write(tmp_path / "pairs.parquet", rows(0, 45))
    assert run(export, tmp_path / "pairs.parquet", tmp_path / "out", bulk=TWO) == Outcome(45, 45, {})
    found = sorted(read_table(tmp_path / "out").to_pylist(), key=lambda row: row["source_row"])
    assert [row["source_row"] for row in found] == list(range(45))
    assert [row["product_id"] for row in found] == [row["product_id"] for row in rows(0, 45)]
    assert {row["file"] for row in found} == {"pairs.parquet"}
    scorer = Scorer.load(export, ServeSettings(precision="fp32"))
    expected = scorer.score(rows(0, 45))
    np.testing.assert_allclose(
        [list(row["probabilities"].values()) for row in found], expected.probabilities, atol=1e-5
    )
    np.testing.assert_allclose([row["score"] for row in found], scorer.relevance(expected.probabilities), atol=1e-5)
    assert [row["label"] for row in found] == ["ESCI"[n] for n in expected.probabilities.argmax(1)]
    assert expected.verdicts is not None
    verdicts = [dict(zip(NAMES, ("ESCI"[n] for n in own), strict=True)) for own in expected.verdicts.argmax(2)]
    assert [row["verdicts"] for row in found] == verdicts


def test_what_is_missing_is_scored_and_nothing_twice(export: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in/a.parquet", rows(0, 30))
    out = tmp_path / "out"
    assert run(export, tmp_path / "in", out).new == 30
    lost = sorted(out.glob("*.parquet"))[1]
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet") if path != lost}
    count = pq.read_metadata(lost).num_rows
    lost.unlink()
    assert run(export, tmp_path / "in", out).new == count
    write(tmp_path / "in/b.parquet", rows(30, 12))
    assert run(export, tmp_path / "in", out) == Outcome(42, 12, {})
    assert {path: path.stat().st_mtime_ns for path in times} == times, "what was there was not written again"
    assert sorted(read_table(out)["product_id"].to_pylist()) == sorted(row["product_id"] for row in rows(0, 42))
    write(tmp_path / "in/a.parquet", rows(0, 31))
    with pytest.raises(UserError, match=r"a.parquet is not the file any more"):
        run(export, tmp_path / "in", out)
    with pytest.raises(UserError, match=r"scores of another kind \(latents: False -> True\)"):
        run(export, tmp_path / "in", out, Wish(latents=True))


def test_texts_with_other_columns_and_rows_that_fail(export: Path, tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["term", "sku", "title"])
        writer.writerows(
            [["red shoe", str(n), "" if n == 9 else "x" * 3000 if n == 11 else "a shoe"] for n in range(20)]
        )
    found = run(export, table, tmp_path / "out", columns={"query": "term", "product_id": "sku"})
    assert found == Outcome(18, 18, {"title missing": 1, "title too long": 1})
    failed = read_table(tmp_path / "out/failed").to_pylist()
    assert [(row["source_row"], row["reason"].partition(":")[0]) for row in failed] == [
        (9, "title missing"), (11, "title too long"),
    ]  # fmt: skip
    assert json.loads(failed[0]["row"])["product_id"] == "9"
    with pytest.raises(UserError, match=r"no column 'query'.*source.columns"):
        run(export, table, tmp_path / "other")
    table.write_text("query,product_id,title\nred,1,\nred,2,shoe\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"50% of the rows failed, more than bulk.max_failed_share 20%: 1 x title missing"
    ):
        run(export, table, tmp_path / "third")


def test_latents_and_explanations_and_one_file_in_the_order_of_the_rows(tmp_path: Path) -> None:
    export = explaining_export(tmp_path)
    write(tmp_path / "pairs.parquet", rows(0, 20))
    source, parts = TableSource(path=str(tmp_path / "pairs.parquet")), SharedFolder.at(tmp_path / "parts")
    _, names = score_table(export, source, parts, SMALL, Wish(latents=True, explanations=True))
    join_parts(parts, list(names), tmp_path / "scores.parquet")
    found = read_table(tmp_path / "scores.parquet").to_pylist()
    assert [row["source_row"] for row in found] == list(range(20))
    expected = Scorer.load(export, ServeSettings(precision="fp32")).score(rows(0, 20)).latents
    np.testing.assert_allclose([row["latents"] for row in found], expected, atol=1e-5)
    assert all(near["rationale"] and near["perspective"] in NAMES for row in found for near in row["explanations"])
    assert all(row["explanations"] for row in found)


def test_a_table_on_s3_is_scored_onto_s3(export: Path, tmp_path: Path) -> None:
    with s3_folder() as uri:
        folder = SharedFolder.at(uri)
        folder.write_table("in/pairs.parquet", pa.Table.from_pylist(rows(0, 17)))
        place, _, query = uri.partition("?")
        source, out = f"{place}/in?{query}", f"{place}/out?{query}"
        assert run(export, source, out).new == 17
        assert run(export, source, out).new == 0
        written = SharedFolder.at(out)
        assert sum(b.num_rows for e in written.files(".parquet") for b in written.batches(e.name)) == 17


def test_the_command(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    write(tmp_path / "pairs.parquet", [{"term": row["query"]} | row for row in rows(0, 9)])
    asked = ("score", export, "pairs.parquet", "--set", "source.columns.query=term", "--out", "scores.parquet")
    done = broadfast(*asked)
    assert done.exit_code == 0, done.output
    assert "scores.parquet: 9 rows scored, 9 of them now" in capfd.readouterr().out
    assert read_table(tmp_path / "scores.parquet").num_rows == 9
    assert broadfast(*asked).exit_code == 0
    assert "9 rows scored, 0 of them now" in capfd.readouterr().out
    assert "is not a folder" in text(broadfast("score", "nowhere", "pairs.parquet", "--out", "other"))
    assert "one file is joined on a local disk" in text(
        broadfast("score", export, "pairs.parquet", "--out", "s3://b/x.parquet")
    )
    wrong = broadfast("score", export, "pairs.parquet", "--out", "other", "--set", "bulk.copies=3")
    assert wrong.exit_code == 2 and "bulk.copies: no such setting" in text(wrong)


def test_copies_are_as_many_as_fit() -> None:
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0}]
    assert replicas_that_fit(BulkSettings(), nodes) == 11
    assert replicas_that_fit(BulkSettings(cpus_per_replica=2, replicas=3), nodes) == 3
    assert replicas_that_fit(BulkSettings(gpus_per_replica=0.5), nodes) == 4
    with pytest.raises(UserError, match=r"no node has the 9 CPUs"):
        replicas_that_fit(BulkSettings(cpus_per_replica=9), nodes)
