"""Makes prompts fit into a training's `max_tokens` beside their answers, before the training begins.

What a product says is shortened, its details first and its title last. Query and system text stay whole. What cannot
fit is left out, so that no training ends in the middle because of it. All prompts about a pair are shortened alike:
answers share the computation of what their prompts begin with, and that would end where one product is shorter.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

ANSWER_TOO_LONG, PROMPT_TOO_LONG = "answer too long", "prompt too long"
# In this order, which is that of `details` from its end, with the fewest characters or entries that each must keep.
SHORTENED = {"bullets": 0, "description": 0, "attributes": 0, "title": 1}
Pair = Mapping[str, Any]
Render = Callable[[Pair], str]  # returns the prompt about a pair


class Fitting:
    """Fits prompts, and counts in `left_out` and `cut` what was left out, by its reason, and which field was cut."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.left_out: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()

    def prompts(self, pair: Pair, asked: Sequence[tuple[str, Render]]) -> list[str | None]:
        """Return a prompt for each answer, or None where even the rest of it has no room beside the answer.

        The prompts tell the same of the product: as much as fits beside the answer that has the least room.

        Args:
            asked: the answers, each with what renders its prompt.
        """
        rooms = [self.max_tokens - self._tokens(answer) - 1 for answer, _ in asked]  # 1 for the end-of-text token
        questions = [(render, room) for (_, render), room in zip(asked, rooms, strict=True)]
        if self._fit(questions, pair):
            return [render(pair) for render, _ in questions]
        bare = {**pair, **{field: (pair.get(field) or "")[:least] for field, least in SHORTENED.items()}}
        fits = [self._fit([question], bare) for question in questions]
        for (_, room), fit in zip(questions, fits, strict=True):
            if not fit:
                self.left_out[ANSWER_TOO_LONG if room < 1 else PROMPT_TOO_LONG] += 1
        if any(fits):
            pair, field = self._shorten(pair, [q for q, fit in zip(questions, fits, strict=True) if fit])
            if field is not None:
                self.cut[field] += sum(fits)
        return [render(pair) if fit else None for (render, _), fit in zip(questions, fits, strict=True)]

    def _shorten(self, pair: Pair, questions: Sequence[tuple[Render, int]]) -> tuple[Pair, str | None]:
        """Return the pair with as much of the product as fits all questions, and the field that was cut, if any."""
        if self._fit(questions, pair):
            return pair, None
        for field, least in SHORTENED.items():
            value = pair.get(field) or ""
            cut = partial(_with, pair, field, value)
            most = bisect_right(range(len(value)), 0, key=lambda size: not self._fit(questions, cut(size))) - 1
            pair = cut(max(most, least))
            if most >= least:
                break
        return pair, field

    def _fit(self, questions: Sequence[tuple[Render, int]], pair: Pair) -> bool:
        return all(room >= 1 and self._tokens(render(pair)) <= room for render, room in questions)

    def _tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False))


def _with(pair: Pair, field: str, value: Any, size: int) -> Pair:
    return {**pair, field: value[:size]}
