from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder, read_manifest
from cluster.base.tables import read_table, write_table
from distill.config import TargetSettings, TargetsStage
from distill.student.model import load_encoder, load_tokenizer
from distill.target_map import MAP, fit_maps, load_maps, training_pairs
from distill.target_texts import TARGET_TEXT
from distill.targets import NO_RATIONALE, SentenceEncoder, run
from mpcot.config import PerspectiveSettings
from mpcot.records import TARGET
from mpcot.sources.config import LabelSettings
from tests.helpers.tiny_bert import WIDTH

Stage = Callable[..., StageFolder]
TEXTS = ["red mug", "the shopper wants a blue lamp", "a case is not a phone"]


def settings(encoder: Path, **changes: Any) -> TargetSettings:
    return TargetSettings(**({"encoder": str(encoder), "max_tokens": 32, "batch_size": 2} | changes))


def judged(*rationales: list[str | None]) -> pa.Table:
    rows = [{"pair_id": f"p{i}", "vectors": said} for i, said in enumerate(rationales)]
    return pa.Table.from_pylist(rows, TARGET_TEXT)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embed in this process, seven rows at a time: tests/ray has the same stage on Ray Data."""

    def embed(texts: Path, own: TargetSettings) -> Iterator[pa.Table]:
        encode, table = SentenceEncoder(own), read_table(texts)
        for start in range(0, table.num_rows, 7):
            yield encode(table.slice(start, 7))

    monkeypatch.setattr("distill.targets.embed", embed)


def test_mean_pooling_is_over_the_texts_own_tokens(encoder: Path) -> None:
    found = SentenceEncoder(settings(encoder, normalise=False)).encode(TEXTS)
    model, tokenizer = load_encoder(str(encoder)).eval(), load_tokenizer(encoder)
    for text, vector in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        np.testing.assert_allclose(vector, states[0].mean(0).numpy(), atol=1e-5)


def test_cls_pooling_differs(encoder: Path) -> None:
    mean, first = (SentenceEncoder(settings(encoder, pooling=p)).encode(TEXTS) for p in ("mean", "cls"))
    assert not np.allclose(mean, first, atol=1e-2)


def test_vectors_have_unit_length_when_asked(encoder: Path) -> None:
    unit, raw = (SentenceEncoder(settings(encoder, normalise=n)).encode(TEXTS) for n in (True, False))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(unit, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-5)


def test_bf16_stays_close(encoder: Path) -> None:
    full, half = (SentenceEncoder(settings(encoder, precision=p)).encode(TEXTS) for p in ("fp32", "bf16"))
    assert (full * half).sum(1).min() > 0.99


def test_every_row_comes_back_in_order_with_null_for_what_is_missing(encoder: Path) -> None:
    encode = SentenceEncoder(settings(encoder))
    table = encode(judged([TEXTS[0], None], ["  ", TEXTS[1]], [None, None], [TEXTS[2], TEXTS[0]]))
    assert table.schema == TARGET and table["pair_id"].to_pylist() == ["p0", "p1", "p2", "p3"]
    found = table["vectors"].to_pylist()
    assert [[v is not None for v in row] for row in found] == [
        [True, False],
        [False, True],
        [False, False],
        [True] * 2,
    ]
    np.testing.assert_allclose(found[0][0], found[3][1], atol=1e-5)


def test_a_batch_without_any_rationale(encoder: Path) -> None:
    assert SentenceEncoder(settings(encoder))(judged([None]))["vectors"].to_pylist() == [[None]]


def test_an_endless_rationale_is_cut(encoder: Path) -> None:
    own = SentenceEncoder(settings(encoder, max_tokens=8))
    long, short = own.encode(["red " * 5000, "red " * 6])
    np.testing.assert_allclose(long, short, atol=1e-5)


def test_more_tokens_than_the_encoder_reads(encoder: Path) -> None:
    with pytest.raises(UserError, match=r"targets.max_tokens: 65 is more than the encoder's 64"):
        SentenceEncoder(settings(encoder, max_tokens=65))


def test_texts_of_the_pair_have_one_vector_and_those_of_controls_one_per_perspective(encoder: Path) -> None:
    own = SentenceEncoder(settings(encoder))
    row = {
        "pair_id": "p",
        "vectors": [TEXTS[0], None],
        "template": [TEXTS[1], None],
        "query": TEXTS[2],
        "title": TEXTS[0],
    }
    found = own(pa.Table.from_pylist([row], TARGET_TEXT)).to_pylist()[0]
    assert found["permuted"] is None and found["template"][1] is None
    made = own.encode(TEXTS)
    for name, place in (("query", 2), ("title", 0)):
        np.testing.assert_allclose(found[name], made[place], atol=1e-5)
    np.testing.assert_allclose(found["template"][0], made[1], atol=1e-5)


def stage_settings(encoder: Path, **changes: Any) -> TargetsStage:
    names = PerspectiveSettings(names=("intent", "rules"))
    labels = LabelSettings(scheme="binary")
    return TargetsStage(labels=labels, perspectives=names, targets=settings(encoder, **changes))


def test_a_transform_is_fitted_on_the_training_pairs_and_saved_beside_the_targets(
    encoder: Path, stage: Stage, without_ray: None
) -> None:
    folder = stage("8-targets")
    folder.clear()
    own = stage_settings(encoder, transform="residual", dimensions=4, controls=("permuted", "template"))
    run(own, folder)
    manifest = read_manifest(folder.path)
    assert manifest is not None and manifest["figures"]["width"] == 4
    path = folder.path / "targets.parquet"
    train = training_pairs(folder.run_dir / "1-pairs/pairs.parquet")
    assert len(train) == 32 and all(pair_id[0] in "01" for pair_id in train)
    wanted, found = fit_maps(path, train, own.targets), load_maps(folder.path / MAP)
    assert set(found) == {"vectors", "permuted", "template"}
    assert np.array_equal(found["vectors"].slopes, wanted["vectors"].slopes)
    texts = read_table(folder.path / "texts.parquet").to_pylist()
    assert texts[0]["template"][0] == "label Irrelevant, confidence 0.10"
    assert len(read_table(path)["query"][0]) == WIDTH


def test_a_map_of_earlier_settings_is_taken_away(encoder: Path, stage: Stage, without_ray: None) -> None:
    folder = stage("8-targets")
    for transform, there in (("centred", True), ("none", False)):
        folder.clear()
        run(stage_settings(encoder, transform=transform), folder)
        assert (folder.path / MAP).exists() == there


def test_the_stage_keeps_a_ledger(encoder: Path, stage: Stage, without_ray: None) -> None:
    folder = stage("8-targets")
    folder.clear()
    path = folder.run_dir / "7-judgements/judgements.parquet"
    rows = read_table(path).to_pylist()
    rows[4]["rationales"] = [None, " "]
    rows[5]["rationales"] = ["red mug", None]
    rows[6]["rationales"] = ["red mug", "blue mug"]
    silent = sum(row["rationales"][1] is None for row in rows)
    write_table(path, pa.Table.from_pylist(rows, read_table(path).schema))
    run(stage_settings(encoder), folder)
    manifest = read_manifest(folder.path)
    assert manifest is not None and manifest["counts"] == {"in": len(rows), "ok": len(rows) - 1, "failed": 1}
    pooling = "mean, since the encoder says nothing of it"
    figures = {"width": WIDTH, "encoder": str(encoder), "missing_vectors": silent, "pooling": pooling}
    assert manifest["figures"] == figures
    failed = read_table(folder.path / "failed.parquet").to_pylist()
    assert failed == [{"pair_id": rows[4]["pair_id"], "reason": NO_RATIONALE}]
    made = read_table(folder.path / "targets.parquet")
    assert made.schema == TARGET
    assert made["pair_id"].to_pylist() == [row["pair_id"] for i, row in enumerate(rows) if i != 4]


def test_lost_rows_stop_the_stage(
    encoder: Path, stage: Stage, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = SentenceEncoder.__call__
    monkeypatch.setattr(SentenceEncoder, "__call__", lambda self, batch: call(self, batch).slice(1))
    folder = stage("8-targets")
    folder.clear()
    with pytest.raises(UserError, match=r"8-targets: 79 judgements in, 67 targets"):
        run(stage_settings(encoder), folder)
    assert read_manifest(folder.path) is None


@pytest.mark.parametrize("rows", ["none", "silent"])
def test_nothing_to_embed(encoder: Path, stage: Stage, without_ray: None, rows: str) -> None:
    folder = stage("8-targets")
    folder.clear()
    path = folder.run_dir / "7-judgements/judgements.parquet"
    table = read_table(path)
    left = [] if rows == "none" else [{**row, "rationales": [None, None]} for row in table.to_pylist()]
    write_table(path, pa.Table.from_pylist(left, table.schema))
    with pytest.raises(UserError, match=r"7-judgements holds no"):
        run(stage_settings(encoder), folder)
    assert read_manifest(folder.path) is None


def test_an_encoder_folder_that_does_not_exist(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"targets.encoder: the model folder .* does not exist"):
        run(stage_settings(tmp_path / "nowhere"), stage("8-targets"))
