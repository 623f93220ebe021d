"""Prompts over the engine's length: the description is cut, the title is kept, or the request is rejected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from mpcot.asking.engines.engine import Ask
from mpcot.asking.prompt_length import longest_that_fits
from mpcot.asking.prompts import Message
from mpcot.config import AnswerSettings
from mpcot.records import PAIR
from tests.helpers.scripted_plan import scripted_plan

WORDS = " ".join(f"word{n}" for n in range(200))


def asks(**settings: Any) -> Iterator[Ask]:
    plan = scripted_plan(AnswerSettings(**settings))
    row = dict.fromkeys(PAIR.names) | {"pair_id": "x", "query": "x"}
    row |= {"title": "a drill with two batteries", "description": WORDS}
    return (found for _, _, found in plan.asks(row))


def encode(chat: list[Message]) -> list[int]:
    """One token per word."""
    return [hash(word) for message in chat for word in message["content"].split()]


def test_as_much_of_the_description_is_kept_as_fits() -> None:
    for ask in asks(description_chars=len(WORDS), when_too_long="cut"):
        assert ask.shorter is not None
        whole, bare = len(encode(ask.chat)), len(encode(ask.shorter(0)))
        assert whole == bare + 201  # the words, and the name of the line
        for limit in (bare, bare + 2, bare + 50, whole - 1):
            tokens = longest_that_fits(ask.shorter, len(WORDS), encode, limit)
            assert tokens is not None and len(tokens) == (limit if limit > bare + 1 else bare)
            assert set(encode(ask.shorter(0))) - {hash("x")} <= set(tokens)
        assert "a drill with two batteries" in ask.shorter(0)[-1]["content"]


def test_where_the_rest_is_too_long_too_nothing_helps() -> None:
    ask = next(asks(description_chars=len(WORDS), when_too_long="cut"))
    assert ask.shorter is not None
    assert longest_that_fits(ask.shorter, len(WORDS), encode, len(encode(ask.shorter(0))) - 1) is None


def test_without_the_rule_nothing_is_cut() -> None:
    cut, rejected = (list(asks(description_chars=50, when_too_long=rule)) for rule in ("cut", "reject"))
    assert all(ask.shorter is None for ask in rejected) and all(ask.shorter for ask in cut)


def test_cutting_what_is_not_there_is_refused() -> None:
    with pytest.raises(ValidationError, match="nothing to cut: set description_chars"):
        AnswerSettings(when_too_long="cut", description_chars=0)
