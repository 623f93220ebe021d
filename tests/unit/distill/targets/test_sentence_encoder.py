from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.base.errors import UserError
from cluster.base.stage_folder import write_json
from distill.config import TargetSettings
from distill.student.model import encoder_layers, load_encoder, load_tokenizer
from distill.targets.encoder_texts import TARGET_TEXT
from distill.targets.pooling import pooling_of
from distill.targets.sentence_encoder import SentenceEncoder
from mpcot.records import TARGET
from tests.helpers.hub_cache import pushed_to
from tests.helpers.tiny_bert import WIDTH, tiny_bert

TEXTS = ["red mug", "the shopper wants a blue lamp", "a case is not a phone"]


def settings(encoder: Path, **changes: Any) -> TargetSettings:
    return TargetSettings(**({"encoder": str(encoder), "max_tokens": 32, "batch_size": 2} | changes))


def judged(*rationales: list[str | None]) -> pa.Table:
    rows = [{"pair_id": f"p{i}", "vectors": said} for i, said in enumerate(rationales)]
    return pa.Table.from_pylist(rows, TARGET_TEXT)


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


def test_an_encoder_of_the_hub_stays_at_its_commit(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = tiny_bert(tmp_path / "later", layers=1, width=2 * WIDTH)
    for folder, mode in ((first := Path(shutil.copytree(encoder, tmp_path / "first")), "cls"), (later, "mean")):
        write_json(folder / "modules.json", [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}])
        write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": mode})
    model = pushed_to(monkeypatch, tmp_path / "hub", first, later)
    assert encoder_layers(model) == 2 and pooling_of(settings(Path(model)))[0] == "cls"
    there, here = (SentenceEncoder(settings(where, pooling="cls")) for where in (Path(model), encoder))
    assert there.width == WIDTH and (there.encode(TEXTS) == here.encode(TEXTS)).all()
