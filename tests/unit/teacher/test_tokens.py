"""Prompts and padding are masked; the answer with its verdict is never cut."""

from __future__ import annotations

import pytest

from mpcot.prompts import answer
from teacher.tokens import IGNORED, encode, pad
from tests.tiny_llama import tiny_llama_tokenizer

TOKENIZER = tiny_llama_tokenizer()
PROMPT = "Query: red drill\nProduct: cordless drill\n\nWhat does the shopper want to do?"
SAID = answer("The shopper wants a drill and this is one.", "E")


def test_only_the_answer_and_its_end_are_learnt() -> None:
    ids, labels = encode(TOKENIZER, PROMPT, SAID, 500)
    assert len(ids) == len(labels)
    learnt = [label for label in labels if label != IGNORED]
    assert learnt[-1] == TOKENIZER.eos_token_id
    assert TOKENIZER.decode(learnt[:-1]) == SAID
    assert TOKENIZER.decode(ids[: -len(learnt)]) == PROMPT
    assert ids[-len(learnt) :] == learnt


def test_prompt_and_answer_are_tokenised_apart_as_at_inference() -> None:
    ids, _ = encode(TOKENIZER, PROMPT, SAID, 500)
    start = TOKENIZER.encode(PROMPT, add_special_tokens=False)
    assert ids[: len(start)] == start


def test_a_long_prompt_loses_its_start_never_the_answer() -> None:
    whole, _ = encode(TOKENIZER, PROMPT * 5, SAID, 5000)
    assert len(whole) > 100
    for room in (len(whole) - 1, 90, 70):
        ids, labels = encode(TOKENIZER, PROMPT * 5, SAID, room)
        assert len(ids) == room and ids == whole[-room:]
        learnt = [label for label in labels if label != IGNORED]
        assert TOKENIZER.decode(learnt[:-1]) == SAID


def test_an_answer_that_does_not_fit_is_refused_not_cut() -> None:
    length = len(TOKENIZER.encode(SAID)) + 1
    assert len(encode(TOKENIZER, PROMPT, SAID, length + 1)[0]) == length + 1
    with pytest.raises(ValueError, match=f"an answer of {length} tokens does not fit into max_tokens {length}"):
        encode(TOKENIZER, PROMPT, SAID, length)


def test_padding_is_neither_read_nor_learnt() -> None:
    batch = pad([([5, 6, 7], [IGNORED, 6, 7]), ([8], [8])], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_real_end_token_is_learnt_even_where_it_also_pads() -> None:
    end = TOKENIZER.eos_token_id
    batch = pad([encode(TOKENIZER, PROMPT, SAID, 500), encode(TOKENIZER, PROMPT, answer("No.", "I"), 500)], end)
    last = batch["attention_mask"].sum(1) - 1
    assert [batch["labels"][row, place].item() for row, place in enumerate(last)] == [end, end]
    assert (batch["labels"][1, last[1] + 1 :] == IGNORED).all()
