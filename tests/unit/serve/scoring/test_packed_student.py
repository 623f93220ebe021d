"""The fast form of a student judges as the plain one does, whatever the encoder and however the pairs are padded."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, DistilBertConfig, ElectraConfig, RobertaConfig

from cluster.base.processor import packs_weights
from distill.config import GatExtractor, NoExtractor, PolyExtractor, StudentConfig
from distill.student.model import AutoModel, Student
from mpcot.schemes.scheme import load_scheme
from serve.scoring import packed_student
from serve.scoring.packed_student import PackedLinear, PackedStudent, Ragged, first_position, pack_linears

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
ENCODERS = {
    "bert": BertConfig(**SMALL),
    "bert-relu": BertConfig(**SMALL, hidden_act="relu"),
    "electra": ElectraConfig(**SMALL, embedding_size=16),
    "electra-narrow": ElectraConfig(**SMALL, embedding_size=8),
    "roberta": RobertaConfig(**SMALL, pad_token_id=1),
    "distilbert": DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24),
}


def student(encoder, extractor=None, per_perspective=True):
    config = StudentConfig(
        scheme=load_scheme("esci"),
        perspectives=("intent", "rules"),
        extractor=extractor or PolyExtractor(codes=4),
        per_perspective=per_perspective,
        target_width=8,
        max_tokens=32,
        fields="title",
    )
    torch.manual_seed(5)
    return Student(AutoModel.from_config(ENCODERS[encoder]), config).eval()


def batch(*lengths):
    torch.manual_seed(6)
    places = torch.arange(max(lengths))
    mask = (places < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 50, mask.shape) * mask + (1 - mask)  # 1 is RoBERTa's padding
    return {"input_ids": ids, "attention_mask": mask}


def largest_difference(first, second):
    assert [part is None for part in first] == [part is None for part in second]
    return max((a - b).abs().max().item() for a, b in zip(first, second, strict=True) if a is not None)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("lengths", [(9, 7, 2, 1), (6, 6), (5,)])
def test_in_float32_it_answers_the_same(encoder, lengths):
    plain = student(encoder)
    with torch.inference_mode():
        found, expected = PackedStudent(plain, torch.float32)(**batch(*lengths)), plain(**batch(*lengths))
    assert expected.logits.std() > 1e-3
    assert largest_difference(found, expected) < 2e-6


@pytest.mark.parametrize("extractor", [NoExtractor(), GatExtractor(heads=2)])
def test_any_extractor_reads_its_states(extractor):
    plain = student("bert", extractor, per_perspective=extractor.kind != "none")
    with torch.inference_mode():
        found, expected = PackedStudent(plain, torch.float32)(**batch(9, 7, 2)), plain(**batch(9, 7, 2))
    assert largest_difference(found, expected) < 2e-6


def test_token_types_are_read():
    plain, inputs = student("bert"), batch(9, 4)
    types = torch.randint(0, 2, inputs["input_ids"].shape)
    fast = PackedStudent(plain, torch.float32)
    with torch.inference_mode():
        assert largest_difference(fast(**inputs, token_type_ids=types), plain(**inputs, token_type_ids=types)) < 2e-6
        assert largest_difference(fast(**inputs, token_type_ids=types), fast(**inputs)) > 1e-3


def test_bf16_is_close_and_the_student_stays_as_it_was():
    plain, inputs = student("bert"), batch(9, 7, 2, 1)
    with torch.inference_mode():
        before = plain(**inputs)
        found = PackedStudent(plain, torch.bfloat16)(**inputs)
        assert largest_difference(found, before) < 0.05
        assert found.logits.dtype == torch.float32
        assert largest_difference(plain(**inputs), before) == 0


def test_who_needs_padding():
    assert {name: first_position(config) for name, config in ENCODERS.items()} == {
        "bert": 0, "bert-relu": 0, "electra": 0, "electra-narrow": 0, "roberta": 2, "distilbert": None,
    }  # fmt: skip
    assert first_position(BertConfig(**SMALL, is_decoder=True)) is None


@pytest.mark.skipif(not packs_weights("fp32"), reason="this PyTorch has no oneDNN")
def test_every_linear_is_packed_and_only_an_exact_gelu_is_taken_in():
    for name, expected in (("bert", "gelu"), ("bert-relu", "none")):
        encoder = student(name).encoder
        linears = sum(type(module) is nn.Linear for module in encoder.modules())
        pack_linears(encoder, torch.float32)
        kinds = [type(module) for module in encoder.modules()]
        assert nn.Linear not in kinds and kinds.count(PackedLinear) == linears > 0
        assert encoder.encoder.layer[0].intermediate.dense.activation == expected


@pytest.mark.skipif(not packs_weights("fp32"), reason="this PyTorch has no oneDNN")
def test_no_linear_of_a_layer_is_left_and_no_weight_is_held_twice():
    plain = student("bert")
    fast = PackedStudent(plain, torch.float32)
    assert nn.Linear not in map(type, fast.layers.modules())
    layers = {name for name, _ in plain.encoder.named_parameters() if name.startswith("encoder.layer")}
    assert layers and not layers & {name for name, _ in fast.student.encoder.named_parameters()}


def test_a_layout_by_hand(monkeypatch):
    monkeypatch.setattr(packed_student, "ROWS", 1)
    found = Ragged.of(torch.tensor([[1, 1], [1, 0]]), heads=2, dtype=torch.float32)
    assert found.kept.tolist() == [0, 1, 2]
    # The query, key and value of token a are a0 a1, A0 A1 and x0 x1, for its heads 0 and 1; then come those of b and c.
    # Padded, head by head, queries are a0 b0 | a1 b1 | c0 - | c1 -, and keys and values have the same order.
    queries, keys, values = found.rows.view(3, -1).tolist()
    assert queries[:5] == [0, 6, 1, 7, 12] and queries[6] == 13
    assert keys == [place + 2 for place in queries] and values == [place + 4 for place in queries]
    assert found.back.tolist() == [0, 2, 1, 3, 4, 6]
    assert found.bias is not None and found.bias.tolist()[1:3] == [[[0.0, 0.0]], [[0.0, float("-inf")]]]
    assert Ragged.of(torch.ones(2, 3), 2, torch.float32).bias is None


def test_copies_of_the_first_token_fill_up_the_rows():
    found = Ragged.of(torch.tensor([[1, 1], [1, 0]]), heads=2, dtype=torch.float32)
    assert found.kept.tolist() == [0, 1, 2] + [0] * (packed_student.ROWS - 3)
    assert len(found.back) == 2 * packed_student.ROWS and len(found.rows) == 3 * 8
    assert len(Ragged.of(torch.ones(2, 24), 2, torch.float32).kept) == 48, "nothing is filled up where nothing lacks"
