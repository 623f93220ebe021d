"""The rule for prompts that are longer than the engine takes: the description is cut, never the title."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mpcot.asking.prompts import Message


def longest_that_fits(
    shorter: Callable[[int], list[Message]], most: int, encode: Callable[[list[Message]], Sequence[int]], limit: int
) -> Sequence[int] | None:
    """Return the tokens of the chat with as much of the description as fits, or None where none of it helps.

    Args:
        shorter: returns the chat with so many characters of the description.
        most: characters of the description in the chat that is too long.
        encode: returns a chat's token ids.
        limit: the most tokens.
    """
    fits = encode(shorter(0))
    if len(fits) > limit:
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        tokens = encode(shorter(middle))
        if len(tokens) > limit:
            high = middle
        else:
            low, fits = middle, tokens
    return fits
