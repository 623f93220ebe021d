"""Folds by query, a digest of content, and records that hold no text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.base.errors import UserError
from cluster.base.stage_folder import MANIFEST, read_json, write_json
from cluster.base.tables import read_table, write_table
from cluster.training.arrow_rows import write_rows
from distill.config import TargetSettings
from distill.study.config import StudyConfig
from distill.study.data import (
    TESTED_PAIR,
    StudyPairs,
    content_digest,
    hashed_id,
    open_data,
    reopen_data,
)
from distill.study.folds import assign_folds, fold_folder
from distill.study.records import Records
from distill.targets.linear_map import MAP, fit_maps, load_maps, save_maps, training_pairs
from mpcot.records import PAIR
from tests.helpers.study_run import shop_run, study_config
from tests.helpers.tiny_shop import BINARY, NO, YES


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return shop_run(tmp_path / "shop")


def rows(run: Path) -> list[dict[str, Any]]:
    return read_table(run / "1-pairs/pairs.parquet").to_pylist()


def config(encoder: Path, shop: Path, **changes: Any) -> StudyConfig:
    return study_config(encoder, shop.parent / "records", shop, **changes)


def test_every_train_and_test_pair_is_tested_once_and_dev_never(shop: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    for fold in range(3):
        made = rows(fold_folder(shop, fold, 3, 13, tmp_path / str(fold)))
        splits: dict[str, set[str]] = {}
        for row in made:
            splits.setdefault(row["query_id"], set()).add(row["split"])
        assert {len(found) for found in splits.values()} == {1}
        before = {row["pair_id"]: row["split"] for row in rows(shop)}
        for row in made:
            kept = before[row["pair_id"]] in ("dev", "unlabelled")
            assert (row["split"] == before[row["pair_id"]]) if kept else row["split"] in ("train", "test")
        seen += [row["pair_id"] for row in made if row["split"] == "test"]
    assert sorted(seen) == sorted(row["pair_id"] for row in rows(shop) if row["split"] in ("train", "test"))


def test_folds_are_of_like_size_and_follow_the_seed(shop: Path) -> None:
    first, again, other = (assign_folds(rows(shop), 5, seed) for seed in (1, 1, 2))
    assert first == again != other
    sizes = [list(first.values()).count(fold) for fold in range(5)]
    assert max(sizes) - min(sizes) <= 1 and sum(sizes) == 12


def test_an_unlabelled_pair_of_a_tested_query_is_not_tested(shop: Path, tmp_path: Path) -> None:
    pairs = shop / "1-pairs/pairs.parquet"
    table = read_table(pairs)
    changed = table.to_pylist()
    changed[5] |= {"label": None, "split": "unlabelled"}
    write_table(pairs, pa.Table.from_pylist(changed, table.schema))
    fold = assign_folds(changed, 2, 13)[changed[5]["query_id"]]
    made = rows(fold_folder(shop, fold, 2, 13, tmp_path / "fold"))
    own = changed[5]["query_id"]
    assert all(row["label"] for row in made if row["query_id"] == own), "nor does it teach where its query is tested"
    assert sum(row["split"] == "test" for row in made) == 23
    taught = rows(fold_folder(shop, 1 - fold, 2, 13, tmp_path / "other"))
    assert [r["split"] for r in taught if r["query_id"] == own and r["label"] is None] == ["unlabelled"]


def test_a_transform_is_fitted_anew_to_the_training_pairs_of_each_fold(shop: Path, tmp_path: Path) -> None:
    targets = shop / "8-targets/targets.parquet"
    own = TargetSettings(transform="centred")
    save_maps(shop / "8-targets" / MAP, fit_maps(targets, training_pairs(shop / "1-pairs/pairs.parquet"), own))
    kept = (shop / "8-targets" / MAP).read_bytes()
    for fold in range(2):
        folder = fold_folder(shop, fold, 2, 13, tmp_path / str(fold))
        train = training_pairs(folder / "1-pairs/pairs.parquet")
        assert {row["split"] for row in rows(folder) if row["pair_id"] in train} == {"train"}
        wanted, found = fit_maps(targets, train, own), load_maps(folder / "8-targets" / MAP)
        assert found["vectors"].intercepts.tolist() == wanted["vectors"].intercepts.tolist()
    assert (shop / "8-targets" / MAP).read_bytes() == kept


def test_one_fold_is_the_runs_own_split(shop: Path, tmp_path: Path) -> None:
    assert rows(fold_folder(shop, 0, 1, 13, tmp_path / "fold")) == rows(shop)
    assert set(assign_folds(rows(shop), 1, 13)) == {row["query_id"] for row in rows(shop) if row["split"] == "test"}


def test_what_is_kept_of_the_pairs_holds_no_text(encoder: Path, shop: Path) -> None:
    settings = config(encoder, shop)
    opened = open_data(settings.data[0], settings)
    pairs = opened.pairs
    assert len(pairs.tested) == 48 and all(pair.keys() == set(TESTED_PAIR.names) for pair in pairs.tested)
    assert pairs.column("gold").count(YES) == 12 and pairs.column("vote").count(None) == 1
    assert sorted([*pairs.tested_in(0), *pairs.tested_in(1)]) == list(range(48))
    kept = read_table(settings.records / "shop/pairs.parquet").to_pylist()
    text = (settings.records / "shop/pairs.json").read_text() + str(kept)
    assert not [word for word in ("drill", "lamp", "blue", "0-mug") if word in text]
    assert reopen_data(settings.data[0], settings).pairs == pairs
    with pytest.raises(UserError, match=r"has folds = 2, not 3\. Set it so"):
        reopen_data(settings.data[0], config(encoder, shop, folds=3))
    with pytest.raises(UserError, match=r"is of another encoder than student\.model 'shop/other'"):
        reopen_data(settings.data[0], config(encoder, shop, student={"model": "shop/other"}))
    away = config(encoder, shop, student={"model": "./nowhere/encoder"})
    assert reopen_data(settings.data[0], away).pairs == pairs  # its folder is on another machine


def test_hidden_labels_leave_pairs_of_the_same_queries_to_the_vote_in_every_fold(
    encoder: Path, shop: Path, tmp_path: Path
) -> None:
    seen: dict[str, set[str]] = {}
    for fold in range(2):
        plain, made = (
            {
                row["pair_id"]: row
                for row in rows(fold_folder(shop, fold, 2, 13, tmp_path / f"{part}-{fold}", (part, 0)))
            }
            for part in (0, 0.4)
        )
        for pair, row in made.items():
            if row != plain[pair]:
                assert row == plain[pair] | {"split": "unlabelled", "label": None}
            if plain[pair]["split"] == "train":
                seen.setdefault(row["query_id"], set()).add(row["split"])
            else:
                assert row == plain[pair]
    hidden = {query for query, splits in seen.items() if splits == {"unlabelled"}}
    assert all(len(splits) == 1 for splits in seen.values()) and 0 < len(hidden) < len(seen)


@pytest.mark.parametrize("share", ["hidden_labels", "hidden_unlabelled"])
def test_data_that_hides_something_has_records_of_its_own(encoder: Path, shop: Path, share: str) -> None:
    whole, less = config(encoder, shop), config(encoder, shop)
    less = less.model_copy(update={"data": (less.data[0].model_copy(update={share: 0.4}),)})
    assert less.data[0].hides and not whole.data[0].hides
    first, second = (open_data(one.data[0], one).pairs for one in (whole, less))
    assert first.fingerprint != second.fingerprint and first.column("gold") == second.column("gold")
    with pytest.raises(UserError, match=rf"has {share} = 0.4, not 0"):
        reopen_data(whole.data[0], whole)


def test_hidden_unlabelled_pairs_are_those_of_the_same_queries_in_every_fold(shop: Path, tmp_path: Path) -> None:
    path = shop / "1-pairs/pairs.parquet"
    given = read_table(path).to_pylist()
    further = [row | {"pair_id": f"u-{n}", "query_id": f"u-{n}", "label": None} for n, row in enumerate(given)]
    table = pa.Table.from_pylist([*given, *(row | {"split": "unlabelled"} for row in further)], PAIR)
    write_table(path, table)
    left = []
    for fold in range(2):
        made = rows(fold_folder(shop, fold, 2, 13, tmp_path / str(fold), (0, 0.4)))
        assert [row["pair_id"] for row in made if row["label"]] == [row["pair_id"] for row in given if row["label"]]
        left.append([row["pair_id"] for row in made if row["pair_id"].startswith("u-")])
    assert left[0] == left[1] and 0 < len(left[0]) < len(further)


def test_records_of_other_content_are_not_added_to(encoder: Path, shop: Path) -> None:
    settings = config(encoder, shop)
    open_data(settings.data[0], settings)
    pairs = shop / "1-pairs/pairs.parquet"
    table = read_table(pairs)
    write_table(pairs, table.slice(1))
    open_data(settings.data[0], settings)  # without a run on the first content nothing is lost
    Records(settings.records).add("shop", "kl", {"key": "a"})
    write_table(pairs, table)
    with pytest.raises(UserError, match=r"records: .*shop holds runs on other content or labels than data\.shop\.run"):
        open_data(settings.data[0], settings)


def test_segments_are_those_that_were_fixed_and_seen_pairs_are_marked(encoder: Path, shop: Path) -> None:
    pairs = shop / "1-pairs/pairs.parquet"
    changed = read_table(pairs).to_pylist()
    for row in changed[:16]:
        row |= {"query": f"{row['query']} for my own kitchen", "attributes": [("room", "kitchen")]}
    write_table(pairs, pa.Table.from_pylist(changed, PAIR))
    taught = pa.table({"pair_id": [changed[3]["pair_id"], "of another split"]})
    (shop / "3-sft").mkdir()
    write_rows(shop / "3-sft/train.arrow", taught)
    settings = config(encoder, shop)
    found = open_data(settings.data[0], settings).pairs
    assert found.segments == ("words of the query", "perspectives", "asked for outside the title")
    own = {pair["id"]: pair for pair in found.tested}
    long, short = (own[hashed_id(changed[i]["pair_id"])] for i in (3, 20))
    assert (long["segments"][0], long["segments"][2]) == ("5 or more", "yes"), "room is only in the attributes"
    assert (short["segments"][0], short["segments"][2]) == ("1 to 4", "no")
    assert long["seen"] and sum(found.column("seen")) == 1


def test_the_digest_is_of_content(shop: Path) -> None:
    before = content_digest(shop)
    pairs = shop / "1-pairs/pairs.parquet"
    whole = read_table(pairs)
    write_table(pairs, whole.take(pa.array(range(len(whole) - 1, -1, -1))))
    assert content_digest(shop) == before
    changed = whole.to_pylist()
    changed[0]["label"] = NO
    write_table(pairs, pa.Table.from_pylist(changed, whole.schema))
    assert content_digest(shop) != before
    write_table(pairs, whole)
    judgements = shop / "7-judgements/judgements.parquet"
    said = read_table(judgements)
    surer = said.to_pylist()
    surer[0]["perspective_soft"][0] = [0.6, 0.4]  # the surest of equal verdicts is the one whose rationale is learnt
    write_table(judgements, pa.Table.from_pylist(surer, said.schema))
    assert content_digest(shop) != before
    write_table(judgements, said)
    assert content_digest(shop) == before
    written = said.to_pylist()
    written[3]["rationales"][0] = "another reason"
    write_table(judgements, pa.Table.from_pylist(written, said.schema))
    assert content_digest(shop) != before


def moved(value: Any) -> Any:
    """Return the value with the last bit of every number in it changed."""
    return [moved(one) for one in value] if isinstance(value, list) else value and float(np.nextafter(value, 2))


def test_another_processor_may_change_the_last_bits(shop: Path) -> None:
    before = content_digest(shop)
    for path, column in (("7-judgements/judgements", "soft"), ("8-targets/targets", "vectors")):
        table = read_table(shop / f"{path}.parquet")
        values = [moved(value) for value in table[column].to_pylist()]
        place = table.schema.get_field_index(column)
        table = table.set_column(place, table.schema.field(column), pa.array(values, table.schema.field(column).type))
        write_table(shop / f"{path}.parquet", table)
    assert content_digest(shop) == before
    made = read_json(shop / "8-targets" / MANIFEST)
    made["settings"]["content"]["targets.encoder"] = "another"
    write_json(shop / "8-targets" / MANIFEST, made)
    assert content_digest(shop) != before


def test_a_run_of_an_earlier_version_has_the_digest_of_its_columns(shop: Path) -> None:
    pairs = shop / "1-pairs/pairs.parquet"
    digests = []
    for text in (None, "bright"):
        rows = [row | {"bullets": text} for row in read_table(pairs).to_pylist()]
        for dropped in ([], ["bullets"]):
            write_table(pairs, pa.Table.from_pylist(rows, PAIR).drop_columns(dropped))
            digests.append(content_digest(shop))
    assert digests[1] == digests[3] and len(set(digests)) == 3


def test_a_run_that_has_not_come_so_far_is_refused_with_the_command(encoder: Path, shop: Path) -> None:
    settings = config(encoder, shop)
    (shop / "8-targets/manifest.json").unlink()
    with pytest.raises(UserError, match=r"data.shop: .* lacks 8-targets.*broadfast run CONFIG.toml --to targets"):
        open_data(settings.data[0], settings)
    with pytest.raises(UserError, match=r"pairs.json does not exist. Run the study first"):
        reopen_data(settings.data[0], settings)


def test_records_are_found_again_and_a_damaged_line_is_named(tmp_path: Path) -> None:
    records = Records(tmp_path)
    for key in ("b", "a"):
        records.add("shop", "kl", {"key": key, "dev": {"macro_f1": 0.5}})
    again = Records(tmp_path)
    assert again.of("shop", "kl")["a"] == {"key": "a", "dev": {"macro_f1": 0.5}}
    assert "c" not in again.of("shop", "kl") and again.of("shop", "ce") == {}
    path = tmp_path / "shop/kl.jsonl"
    lines = path.read_text().splitlines()
    assert [line[-4:] for line in lines] == ['"a"}', '"b"}']
    path.write_text(lines[0] + "\n" + lines[1][:9])
    with pytest.raises(UserError, match=r"kl.jsonl:2 is damaged .* Delete the line"):
        Records(tmp_path).of("shop", "kl")


def test_tested_pairs_are_told_apart_by_fold_and_read_as_they_were_written(tmp_path: Path) -> None:
    tested = [
        {"id": i, "query": q, "gold": "1", "vote": v, "fold": fold, "seen": False, "verdicts": [v], "segments": []}
        for i, q, v, fold in (("x", 0, "1", 0), ("y", 0, None, 1), ("z", 1, "1", 0))
    ]
    given = StudyPairs(
        **{"fingerprint": "f", "model": "m", "scheme": BINARY, "perspectives": ("a",), "folds": 2, "seed": 1},
        **{"dev_pairs": 1, "tested": tested},
    )
    assert given.tested_in(0) == [0, 2] and given.tested_in(1) == [1] and given.column("vote")[1] is None
    given.write(tmp_path)
    assert StudyPairs.read(tmp_path) == given
