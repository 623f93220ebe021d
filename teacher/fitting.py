"""Makes prompts fit into a training's `max_tokens` beside their answers, before the training begins.

What a product says is shortened, its details first and its title last. Query and system text stay whole. What cannot
fit is left out, so that no training ends in the middle because of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

ANSWER_TOO_LONG, PROMPT_TOO_LONG = "answer too long", "prompt too long"
# In this order, which is that of `details` from its end, with the fewest characters or entries that each must keep.
SHORTENED = {"bullets": 0, "description": 0, "attributes": 0, "title": 1}


class Fitting:
    """Fits prompts, and counts in `left_out` and `cut` what was left out, by its reason, and which field was cut."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.left_out: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()

    def prompt(self, pair: Mapping[str, Any], answer: str, render: Callable[[Mapping[str, Any]], str]) -> str | None:
        """Return the prompt with as much of the product as fits beside the answer, or None if the rest is too long.

        Args:
            render: returns the prompt about a pair.
        """
        room = self.max_tokens - self._tokens(answer) - 1  # for the end-of-text token
        if room < 1:
            self.left_out[ANSWER_TOO_LONG] += 1
            return None
        whole = render(pair)
        if self._tokens(whole) <= room:
            return whole
        for field, least in SHORTENED.items():
            value = pair.get(field) or ""

            shorter = partial(_shortened, render, pair, field, value)
            most = bisect_right(range(len(value)), room, key=lambda size: self._tokens(shorter(size))) - 1
            if most >= least:
                self.cut[field] += 1
                return shorter(most)
            pair = {**pair, field: value[:least]}
        self.left_out[PROMPT_TOO_LONG] += 1
        return None

    def _tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False))


def _shortened(
    render: Callable[[Mapping[str, Any]], str], pair: Mapping[str, Any], field: str, value: Any, size: int
) -> str:
    return render({**pair, field: value[:size]})
