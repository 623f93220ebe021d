from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.base.errors import UserError
from cluster.base.stage_folder import write_json
from distill.config import TargetSettings
from distill.targets.pooling import pooling_of


def encoder(folder: Path, **pooling: Any) -> TargetSettings:
    """An encoder's folder with the files that sentence-transformers writes."""
    module = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    write_json(
        folder / "modules.json", [{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}, module]
    )
    if pooling:
        (folder / "1_Pooling").mkdir()
        write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": 8} | pooling)
    return TargetSettings(encoder=str(folder))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_the_encoders_own_files_say_it(tmp_path: Path, pooling: dict[str, Any], expected: str) -> None:
    found, reason = pooling_of(encoder(tmp_path, **pooling))
    assert found == expected and "own files" in reason


def test_an_encoder_that_says_nothing_is_pooled_by_the_mean(tmp_path: Path) -> None:
    assert pooling_of(TargetSettings(encoder=str(tmp_path))) == ("mean", "since the encoder says nothing of it")
    assert pooling_of(encoder(tmp_path))[0] == "mean"


def test_the_setting_comes_before_the_files(tmp_path: Path) -> None:
    own = encoder(tmp_path, pooling_mode_cls_token=True).model_copy(update={"pooling": "mean"})
    assert pooling_of(own) == ("mean", "as targets.pooling says")


@pytest.mark.parametrize(
    "pooling",
    [{"pooling_mode_max_tokens": True}, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}],
)
def test_another_pooling_is_refused(tmp_path: Path, pooling: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"targets.pooling: auto finds pooling_mode_"):
        pooling_of(encoder(tmp_path, **pooling))


def test_what_cannot_be_reached_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("distill.targets.pooling.cached_file", unreachable)
    with pytest.raises(UserError, match=r"auto cannot read modules.json of 'BAAI/bge-m3': no network"):
        pooling_of(TargetSettings(encoder="BAAI/bge-m3"))
