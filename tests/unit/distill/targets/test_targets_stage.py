from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder, read_manifest
from cluster.base.tables import read_table, write_table
from distill.config import TargetSettings, TargetsStage
from distill.targets.linear_map import MAP, fit_maps, load_maps, training_pairs
from distill.targets.sentence_encoder import SentenceEncoder
from distill.targets.stage import NO_RATIONALE, run
from mpcot.config import PerspectiveSettings
from mpcot.records import TARGET
from mpcot.sources.config import LabelSettings
from tests.helpers.tiny_bert import WIDTH

Stage = Callable[..., StageFolder]


def settings(encoder: Path, **changes: Any) -> TargetsStage:
    names = PerspectiveSettings(names=("intent", "rules"))
    labels = LabelSettings(scheme="binary")
    targets = TargetSettings(**({"encoder": str(encoder), "max_tokens": 32, "batch_size": 2} | changes))
    return TargetsStage(labels=labels, perspectives=names, targets=targets)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embed in this process, seven rows at a time: tests/ray has the same stage on Ray Data."""

    def embed(texts: Path, own: TargetSettings) -> Iterator[pa.Table]:
        encode, table = SentenceEncoder(own), read_table(texts)
        for start in range(0, table.num_rows, 7):
            yield encode(table.slice(start, 7))

    monkeypatch.setattr("distill.targets.stage.embed", embed)


def test_a_transform_is_fitted_on_the_training_pairs_and_saved_beside_the_targets(
    encoder: Path, stage: Stage, without_ray: None
) -> None:
    folder = stage("8-targets")
    folder.clear()
    own = settings(encoder, transform="residual", dimensions=4, controls=("permuted", "template"))
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
        run(settings(encoder, transform=transform), folder)
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
    run(settings(encoder), folder)
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
        run(settings(encoder), folder)
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
        run(settings(encoder), folder)
    assert read_manifest(folder.path) is None


def test_an_encoder_folder_that_does_not_exist(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"targets.encoder: the model folder .* does not exist"):
        run(settings(tmp_path / "nowhere"), stage("8-targets"))
