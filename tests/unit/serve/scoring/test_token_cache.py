"""Kept token ids: the same inputs as in training, and a text seen before is not tokenised again."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from distill.student.inputs import encode_pairs
from serve.scoring.token_cache import TokenCache, frame_of
from tests.helpers.tiny_bert import tiny_tokenizer

PAIRS = [
    {"query": "red phone", "title": "blue lamp", "brand": "mug"},
    {"query": "red phone", "title": "red phone case " * 9},
    {"query": "shoe " * 40, "title": "shoe", "brand": None},
    {"query": "drill", "title": "the drill is not a lamp", "brand": "blue"},
]


def doubled():
    """A tokenizer that frames a pair as RoBERTa does, `<s> a </s></s> b </s>`, without token types."""
    words = ["<pad>", "<s>", "</s>", "<unk>", "red", "blue", "phone", "lamp", "case", "shoe", "drill"]
    raw = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    raw.pre_tokenizer = Whitespace()
    raw.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", model_input_names=names)


@pytest.fixture(params=["bert", "doubled"])
def tokenizer(request):
    return tiny_tokenizer() if request.param == "bert" else doubled()


@pytest.mark.parametrize("kept", [0, 2, 100])
@pytest.mark.parametrize("max_tokens", [12, 48])
def test_the_inputs_are_those_of_training(tokenizer, kept, max_tokens):
    tokens = TokenCache(tokenizer, max_tokens, "title+brand", kept)
    expected = encode_pairs(tokenizer, PAIRS, max_tokens, "title+brand")
    for _ in range(2):
        pairs = tokens(PAIRS)
        found = tokens.batch(pairs, max(map(tokens.length, pairs)))
        assert found.keys() == dict(expected).keys()
        for name, values in found.items():
            assert torch.equal(values, expected[name]), name


def test_the_frame():
    bert, other = frame_of(tiny_tokenizer()), frame_of(doubled())
    assert (bert.before, bert.between, bert.after, bert.segments) == ([2], [3], [3], (0, 0, 0, 1, 1))
    assert (other.before, other.between, other.after, other.segments) == ([1], [2, 2], [2], None)


def test_a_product_seen_before_is_not_tokenised_again(monkeypatch):
    tokens = TokenCache(tiny_tokenizer(), 48, "title", 2)
    asked = []
    tokenise = tokens._tokenised
    monkeypatch.setattr(tokens, "_tokenised", lambda texts: asked.extend(texts) or tokenise(texts))

    def ask(*titles):
        asked.clear()
        tokens([{"query": "red", "title": title} for title in titles])
        return asked

    assert ask("lamp", "lamp", "mug") == ["lamp", "mug", "red"]
    assert ask("mug", "lamp") == []
    assert ask("shoe") == ["shoe"]
    assert ask("lamp", "mug") == ["mug"], "two are kept; the longest unused went"
    assert len(tokens.products) == 2


def test_a_kept_token_takes_four_bytes():
    tokens = TokenCache(tiny_tokenizer(), 48, "title", 9)
    tokens([{"query": "red phone", "title": "red phone case"}])
    (ids,) = tokens.products.values()
    assert (len(ids), ids.nbytes) == (3, 12)
