"""Prompts and padding are masked; neither prompt nor answer is cut."""

from __future__ import annotations

import pytest
import torch

from cluster.training.task import PAD_MULTIPLE
from mpcot.asking.prompts import answer
from teacher.answer_tokens import IGNORED, PADDING, SHARED, attention, encode, pad, share, verdict_tokens
from tests.helpers.tiny_llama import tiny_llama_tokenizer

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


def test_nothing_is_cut_here() -> None:
    length = len(encode(TOKENIZER, PROMPT, SAID, 500)[0])
    assert len(encode(TOKENIZER, PROMPT, SAID, length)[0]) == length
    with pytest.raises(AssertionError, match=f"max_tokens is {length - 1}"):
        encode(TOKENIZER, PROMPT, SAID, length - 1)


def test_the_verdicts_tokens_are_those_behind_its_mark() -> None:
    for code in ("E", "3", "out of stock"):
        count = verdict_tokens(TOKENIZER, answer("It is one.", code))
        assert TOKENIZER.decode(TOKENIZER.encode(answer("It is one.", code))[-count:]).strip() == code
    assert verdict_tokens(TOKENIZER, "no verdict at all") == 0


def test_padding_is_neither_read_nor_learnt() -> None:
    batch = pad([share([([5, 6, 7], [IGNORED, 6, 7])], [0]), share([([8], [8])], [1])], pad_id=0)
    room = PAD_MULTIPLE - 3
    assert batch["input_ids"].tolist() == [[5, 6, 7, *[0] * room], [8, 0, 0, *[0] * room]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7, *[IGNORED] * room], [8, *[IGNORED] * (2 + room)]]
    assert batch["owners"].tolist() == [[0, 0, 0, *[-1] * room], [1, *[-1] * (2 + room)]]
    seen = attention(batch["branches"], torch.float32)["attention_mask"]
    assert seen.tolist() == [[1, 1, 1, *[0] * room], [1, *[0] * (2 + room)]]


def test_a_common_beginning_is_there_once_and_positions_go_on_behind_it() -> None:
    first, second = ([1, 2, 3, 4, 9], [IGNORED] * 4 + [9]), ([1, 2, 5, 8, 7], [IGNORED] * 3 + [8, 7])
    joined = share([first, second], [4, 6])
    assert joined["input_ids"] == [1, 2, 3, 4, 9, 5, 8, 7]
    assert joined["position_ids"] == [0, 1, 2, 3, 4, 2, 3, 4]
    assert joined["branches"] == [SHARED, SHARED, 1, 1, 1, 2, 2, 2]
    assert joined["owners"] == [-1, -1, 4, 4, 4, 6, 6, 6]
    assert joined["labels"] == [IGNORED, IGNORED, IGNORED, IGNORED, 9, IGNORED, 8, 7]
    seen = attention(pad([joined], 0)["branches"], torch.float32)["attention_mask"][0, 0, :8, :8] == 0
    assert seen[5].tolist() == [True, True, False, False, False, True, False, False]
    assert seen[4].tolist() == [True] * 5 + [False] * 3


def test_answers_to_one_prompt_keep_its_last_token_each() -> None:
    """Both first words are predicted from the prompt's end, so each answer needs one of its own."""
    same = [([1, 2, 3, 9], [IGNORED] * 3 + [9]), ([1, 2, 3, 8], [IGNORED] * 3 + [8])]
    assert share(same, [0, 1])["input_ids"] == [1, 2, 3, 9, 3, 8]


def test_a_real_end_token_is_learnt_even_where_it_also_pads() -> None:
    end = TOKENIZER.eos_token_id
    examples = [encode(TOKENIZER, PROMPT, SAID, 500), encode(TOKENIZER, PROMPT, answer("No.", "I"), 500)]
    batch = pad([share([example], [n]) for n, example in enumerate(examples)], end)
    last = (batch["branches"] != PADDING).sum(1) - 1
    assert [batch["labels"][row, place].item() for row, place in enumerate(last)] == [end, end]
    assert (batch["labels"][1, last[1] + 1 :] == IGNORED).all()
