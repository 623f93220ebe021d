"""Writes prompts and answers as text.

What all perspectives of a pair share (system text, query, product) comes first, and the question of the perspective
comes last, so that the engine's prefix cache needs to read the shared part only once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from mpcot.details import details
from mpcot.perspectives.perspective import Perspective
from mpcot.schemes.scheme import Scheme

VERDICT = "Verdict:"
HINT = "Hint:"
Message = dict[str, str]


@lru_cache
def system_text(scheme: Scheme) -> str:
    """Return the task and the meanings of the labels. Cached, because every prompt begins with it."""
    lines = [f"{label.code} = {label.name}: {label.meaning}" for label in scheme.labels]
    return "Judge how well the product answers the query.\n" + "\n".join(lines)


def pair_text(pair: Mapping[str, Any], description_chars: int = 0) -> str:
    """Return query and product in the form that prompts have."""
    lines = [f"Query: {pair['query']}", f"Product: {pair['title']}"]
    if pair.get("brand") and pair["brand"].lower() not in pair["title"].lower():
        lines.append(f"Brand: {pair['brand']}")
    if description_chars and (text := details(pair)):
        lines.append(f"Details: {text[:description_chars]}")
    return "\n".join(lines)


def messages(
    pair: Mapping[str, Any],
    perspective: Perspective,
    scheme: Scheme,
    few_shot: int = 0,
    description_chars: int = 0,
    hint: str | None = None,
) -> list[Message]:
    """Return the chat for one pair and perspective. Examples without a verdict in `scheme` are left out.

    Args:
        hint: a label to give away. It comes at the end, so that the rest of the prompt stays the same.
    """
    shown = examples(perspective, scheme)[:few_shot] if few_shot else []
    parts = [pair_text(pair, description_chars), perspective.question]
    if shown:
        above = "Now answer for the first query and product above."
        parts += ["Examples of answers for other pairs:", *shown, above]
    if hint is not None:
        name = scheme.labels[scheme.index(hint)].name
        parts.append(
            f"{HINT} the verdict is {hint} ({name}). Say why, from query and product, and not that it was told."
        )
    return [{"role": "system", "content": system_text(scheme)}, {"role": "user", "content": "\n\n".join(parts)}]


def examples(perspective: Perspective, scheme: Scheme) -> list[str]:
    """Return, as text, the worked examples of the perspective that have a verdict in this scheme."""
    usable = [e for e in perspective.examples if e.verdicts.get(scheme.name) in scheme.codes]
    return [f"Query: {e.query}\nProduct: {e.title}\n{answer(e.rationale, e.verdicts[scheme.name])}" for e in usable]


def answer(rationale: str, verdict: str) -> str:
    """Return an answer in the form that the teacher learns."""
    return f"{rationale}\n{VERDICT} {verdict}"


def answer_regex(scheme: Scheme, min_chars: int, max_chars: int) -> str:
    """Return the form that the engine enforces: one line of rationale, then one of the labels."""
    codes = "|".join(re.escape(code) for code in scheme.codes)
    return f"[^\\n]{{{min_chars},{max_chars}}}\\n{VERDICT} ({codes})"


def render(tokenizer: Any, chat: list[Message]) -> str:
    """Return the chat in the form of the model's own template, up to where the answer starts.

    Without a template the messages are joined by blank lines, so that base models work too. Where a template can turn
    off the model's thinking, it is turned off: the rationale takes its place.
    """
    if not getattr(tokenizer, "chat_template", None):
        return "\n\n".join(m["content"] for m in chat) + "\n\n"
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=False)
