"""Stage 1-pairs: every row ends in pairs or in failed, and bad input in a clear message."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder
from mpcot.pairs.ids import pair_id
from mpcot.pairs.stage import check, plan_rows, run
from mpcot.records import FAILED_ROW, PAIR, SEED
from mpcot.sources.config import CatalogueSource, LabelSettings, PairsStage, SplitSettings, TableSource

GOOD = [
    {"query": f"query {i // 3}", "product_id": f"p{i}", "title": f"Product {i}", "label": "ESCI"[i % 4]}
    for i in range(60)
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def stage(tmp_path: Path, source: Any, **more: Any) -> StageFolder:
    folder = StageFolder(tmp_path / "run", "1-pairs")
    run(PairsStage(source=source, **more), folder)
    return folder


def read_rows(tmp_path: Path, rows: list[Any], **more: Any) -> tuple[list[dict], dict[int, str]]:
    """Run the stage over GOOD and `rows`; return the pairs and the reason of each failed source row."""
    path = write(tmp_path / "rows.jsonl", GOOD + rows)
    folder = stage(tmp_path, TableSource(path=str(path), max_failed_share=0.9), **more)
    failed = pq.read_table(folder.path / "failed.parquet").to_pylist()
    return pq.read_table(folder.path / "pairs.parquet").to_pylist(), {f["source_row"]: f["reason"] for f in failed}


def row(**more: Any) -> dict[str, Any]:
    return {"query": "query 1", "product_id": "x1", "title": "A thing", "label": "E"} | more


def test_catalogue_writes_the_promised_tables(tmp_path: Path):
    folder = stage(tmp_path, CatalogueSource(pairs=200))
    tables = {name: pq.read_table(folder.path / f"{name}.parquet") for name in ("pairs", "seeds", "failed")}
    assert tables["pairs"].schema.equals(PAIR)
    assert tables["seeds"].schema.equals(SEED)
    assert tables["failed"].schema.equals(FAILED_ROW)
    manifest = folder.manifest()
    assert manifest is not None
    counts = manifest["counts"]
    assert (counts["read"], counts["pairs"], counts["failed"]) == (200, 200, 0)
    assert counts["train"] + counts["dev"] + counts["test"] == 200
    pairs = {p["pair_id"]: p for p in tables["pairs"].to_pylist()}
    seeds = tables["seeds"].to_pylist()
    assert len(pairs) == 200
    assert all(dict(p["attributes"])["type"] in p["title"].lower() for p in pairs.values())
    assert {pairs[s["pair_id"]]["split"] for s in seeds} == {"train"}
    assert all(s["verdict"] == pairs[s["pair_id"]]["label"] for s in seeds)
    assert Counter(s["perspective"] for s in seeds) == dict.fromkeys(("intent", "attributes", "rules"), len(seeds) // 3)
    assert 0.3 < len(seeds) / 3 / counts["train"] < 0.7


def test_one_query_never_in_two_splits_and_runs_repeat(tmp_path: Path):
    first = stage(tmp_path / "a", CatalogueSource(pairs=200)).path / "pairs.parquet"
    second = stage(tmp_path / "b", CatalogueSource(pairs=200)).path / "pairs.parquet"
    assert first.read_bytes() == second.read_bytes()
    pairs = pq.read_table(first).to_pylist()
    splits = {(p["query_id"], p["split"]) for p in pairs}
    assert len(splits) == len({p["query_id"] for p in pairs})


def test_seed_rationales_cover_the_rare_labels_first(tmp_path: Path):
    folder = stage(tmp_path, CatalogueSource(pairs=300, seed_rationale_share=0.6))
    tables = {name: pq.read_table(folder.path / f"{name}.parquet").to_pylist() for name in ("pairs", "seeds")}
    train = Counter(p["label"] for p in tables["pairs"] if p["split"] == "train")
    seeded = Counter({s["pair_id"]: s["verdict"] for s in tables["seeds"]}.values())
    assert sum(seeded.values()) == round(0.6 * sum(train.values()))
    rare, common = min(train, key=train.__getitem__), max(train, key=train.__getitem__)
    assert seeded[rare] == train[rare] and seeded[common] < 0.6 * train[common]


def test_unlabelled_share_drops_labels_and_seeds_of_training_queries(tmp_path: Path):
    folder = stage(tmp_path, CatalogueSource(pairs=300), split=SplitSettings(unlabelled=0.4))
    pairs = {p["pair_id"]: p for p in pq.read_table(folder.path / "pairs.parquet").to_pylist()}
    assert any(p["split"] == "unlabelled" for p in pairs.values())
    assert all((p["label"] is None) == (p["split"] == "unlabelled") for p in pairs.values())
    seeds = pq.read_table(folder.path / "seeds.parquet").to_pylist()
    assert {pairs[s["pair_id"]]["split"] for s in seeds} == {"train"}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row(query=None), "query missing"),
        (row(query="  \t "), "query missing"),
        (row(title=""), "title missing"),
        (row(title="\u0000\u0007\u200b"), "title missing"),
        (row(product_id=None), "product_id missing"),
        (row(label="Z"), "unknown label: 'Z'"),
        (row(title="x" * 1_000_000), "title too long: 1000000 characters, limit 2000"),
        (row(query="x" * 5_000), "query too long"),
        (row(split="holdout"), "unknown split: 'holdout'"),
        (["not", "a", "row"], "not a JSON object"),
    ],
)
def test_bad_rows_end_in_failed_with_their_reason(tmp_path: Path, bad: Any, reason: str):
    pairs, failed = read_rows(tmp_path, [bad])
    assert len(pairs) == 60
    assert list(failed) == [60]
    assert failed[60].startswith(reason)


def test_malformed_line_is_a_failed_row(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", GOOD)
    path.write_text(path.read_text() + '{"query": "a", "tit\n', encoding="utf-8")
    folder = stage(tmp_path, TableSource(path=str(path)))
    (failed,) = pq.read_table(folder.path / "failed.parquet").to_pylist()
    assert failed["reason"].startswith("not valid JSON")
    assert '\\"tit' in failed["row"]


def test_control_characters_are_cleaned_and_text_is_nfc(tmp_path: Path):
    pairs, failed = read_rows(tmp_path, [row(title="Cafe\u0301\u0007  blue\nmug", description="a\u0000b" * 2000)])
    (pair,) = [p for p in pairs if p["product_id"] == "x1"]
    assert failed == {}
    assert pair["title"] == "Café blue mug"
    assert len(pair["description"]) == 2000


def test_duplicate_keeps_the_first_row(tmp_path: Path):
    pairs, failed = read_rows(tmp_path, [row(title="First"), row(title="Second"), row(query="QUERY  1", title="Third")])
    assert [p["title"] for p in pairs if p["product_id"] == "x1"] == ["First"]
    assert failed == {61: "duplicate: of source row 60", 62: "duplicate: of source row 60"}


def test_one_pair_with_two_labels_fails_all_its_rows(tmp_path: Path):
    pairs, failed = read_rows(tmp_path, [row(label="E"), row(label="S"), row(label="E")])
    assert not [p for p in pairs if p["product_id"] == "x1"]
    assert set(failed) == {60, 61, 62}
    assert all(reason.startswith("conflicting labels: E, S") for reason in failed.values())


def test_same_product_in_two_locales_is_two_pairs(tmp_path: Path):
    pairs, failed = read_rows(tmp_path, [row(locale="us"), row(locale="ES", label="S")])
    assert failed == {}
    assert len({p["pair_id"] for p in pairs if p["product_id"] == "x1"}) == 2
    assert pair_id("us", "Query 1", "x1") == pair_id("us", "query 1", "x1")


def test_query_in_two_splits_stops_or_fails_its_rows(tmp_path: Path):
    rows = [row(query="torn", split="train"), row(query="torn", product_id="x2", split="test")]
    with pytest.raises(UserError, match=r"two splits: 'torn'"):
        read_rows(tmp_path, rows)
    assert not (tmp_path / "run/1-pairs/manifest.json").exists()
    pairs, failed = read_rows(tmp_path, rows, split=SplitSettings(query_in_two_splits="fail"))
    assert failed == {60: "query in two splits", 61: "query in two splits"}
    assert len(pairs) == 60


def test_rows_without_label_are_unlabelled_unless_their_query_is_held_out(tmp_path: Path):
    pairs, _ = read_rows(tmp_path, [])
    held_out = next(p["query"] for p in pairs if p["split"] == "test")
    kept = next(p["query"] for p in pairs if p["split"] == "train")
    rows = [row(query=text, label=None) for text in ("new", held_out, kept)]
    pairs, failed = read_rows(tmp_path, rows)
    assert {p["query"] for p in pairs if p["split"] == "unlabelled"} == {"new", kept}
    assert list(failed) == [61]
    assert failed[61].startswith("unlabelled row of a held-out query")


def test_unlabelled_rows_of_held_out_queries_are_no_fault_of_the_data(tmp_path: Path):
    pairs, _ = read_rows(tmp_path, [])
    held_out = sorted({p["query"] for p in pairs if p["split"] != "train"})
    rows = [row(query=text, product_id=f"more{n}", label=None) for text in held_out for n in range(9)]
    path = write(tmp_path / "rows.jsonl", GOOD + rows)
    manifest = stage(tmp_path, TableSource(path=str(path))).manifest()
    assert manifest is not None and manifest["counts"]["failed"] == len(rows) > 0.2 * (60 + len(rows))


def test_all_rows_failed_names_the_reasons_and_leaves_no_manifest(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", [row(label="Z"), row(title=""), row(title=None)])
    with pytest.raises(UserError, match=r"all 3 rows .*title missing: 2; unknown label: 1"):
        stage(tmp_path, TableSource(path=str(path)))
    assert (tmp_path / "run/1-pairs/failed.parquet").exists()
    assert not (tmp_path / "run/1-pairs/manifest.json").exists()


def test_too_large_a_failed_share_stops(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", GOOD + [row(product_id=f"y{i}", label="Z") for i in range(30)])
    with pytest.raises(UserError, match=r"30 of 90 rows .*unknown label: 30.*max_failed_share"):
        stage(tmp_path, TableSource(path=str(path)))
    assert stage(tmp_path, TableSource(path=str(path), max_failed_share=0.5)).manifest() is not None


def test_no_labels_at_all_is_a_user_error(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", [{k: v for k, v in r.items() if k != "label"} for r in GOOD])
    with pytest.raises(UserError, match=r"source\.columns\.label"):
        stage(tmp_path, TableSource(path=str(path)))


def test_ledger_balances_on_random_dirt(tmp_path: Path):
    rng = random.Random(5)
    dirt = [{"label": "Z"}, {"title": None}, {"query": ""}, {"label": None}, {"product_id": "p1"}, {}, {}, {}]
    rows = [
        row(query=f"query {rng.randrange(30)}", product_id=f"r{rng.randrange(80)}", label=rng.choice("ESCI"))
        | rng.choice(dirt)
        for _ in range(400)
    ]
    pairs, failed = read_rows(tmp_path, rows)
    manifest = json.loads((tmp_path / "run/1-pairs/manifest.json").read_text())
    assert len(pairs) + len(failed) == 460 == manifest["counts"]["read"]
    assert sum(manifest["figures"]["failed_reasons"].values()) == len(failed)
    assert len({p["pair_id"] for p in pairs}) == len(pairs)


def test_seeds_from_a_file_are_joined_and_checked(tmp_path: Path):
    pairs, _ = read_rows(tmp_path, [])
    train = next(p for p in pairs if p["split"] == "train")
    test = next(p for p in pairs if p["split"] == "test")
    base = {"perspective": "intent", "rationale": "It does the job."}
    keys = [{k: p[k] for k in ("query", "product_id")} | base for p in (train, train, test)]
    wrong = next(code for code in "ESCI" if code != train["label"])
    seeds = [
        keys[0] | {"verdict": train["label"], "origin": "people"},
        keys[1] | {"verdict": wrong},
        keys[2] | {"verdict": test["label"]},
        {"query": "nobody", "product_id": "n"} | base | {"verdict": "E"},
        keys[0] | {"verdict": train["label"], "origin": "people, once more"},
    ]
    path = write(tmp_path / "seeds.jsonl", seeds)
    path.write_text(path.read_text(encoding="utf-8") + '{"query": "cut off', encoding="utf-8")
    folder = stage(tmp_path, TableSource(path=str(tmp_path / "rows.jsonl"), seeds=str(path)))
    (seed,) = pq.read_table(folder.path / "seeds.parquet").to_pylist()
    assert (seed["pair_id"], seed["origin"]) == (train["pair_id"], "people")
    manifest = folder.manifest()
    assert manifest is not None
    assert manifest["figures"]["seeds_left_out"] == {
        "verdict differs from label": 1,
        "pair not in train": 1,
        "no such pair": 1,
        "duplicate": 1,
        "query or product_id missing": 1,
    }


def test_check_names_the_field_before_anything_starts(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", GOOD)
    check(PairsStage())
    check(PairsStage(source=TableSource(path=str(path))))
    with pytest.raises(UserError, match=r"source.path: '/nowhere' does not exist"):
        check(PairsStage(source=TableSource(path="/nowhere")))
    with pytest.raises(UserError, match=r"source.seeds: '/nowhere' does not exist"):
        check(PairsStage(source=TableSource(path=str(path), seeds="/nowhere")))
    with pytest.raises(UserError, match=r"labels.scheme"):
        check(PairsStage(labels=LabelSettings(scheme="stars")))


def test_plan_rows_and_other_schemes(tmp_path: Path):
    assert plan_rows(PairsStage()) == 720
    assert plan_rows(PairsStage(source=TableSource(path="x", limit=9))) == 9
    assert plan_rows(PairsStage(source=TableSource(path="x"))) is None
    path = tmp_path / "graded.parquet"
    table = pa.Table.from_pylist([r | {"label": float(i % 4)} for i, r in enumerate(GOOD)])
    pq.write_table(table, path)
    folder = stage(tmp_path, TableSource(path=str(path)), labels=LabelSettings(scheme="graded"))
    assert set(pq.read_table(folder.path / "pairs.parquet")["label"].to_pylist()) == {"0", "1", "2", "3"}
