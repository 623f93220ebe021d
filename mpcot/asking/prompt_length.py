"""Shortens a prompt that is too long for the engine: the description is cut, never the title."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from mpcot.asking.prompts import Message


def longest_that_fits(
    shorter: Callable[[int], list[Message]], most: int, encode: Callable[[list[Message]], Sequence[int]], limit: int
) -> Sequence[int] | None:
    """Return the tokens of the chat with as much of the description as fits, or None if the rest is too long.

    Args:
        shorter: returns the chat with this many characters of the description.
        most: characters of the description in the chat that is too long.
        encode: returns the token ids of a chat.
        limit: the most tokens that fit.
    """
    chars = bisect_right(range(most), limit, key=lambda count: len(encode(shorter(count)))) - 1
    return None if chars < 0 else encode(shorter(chars))
