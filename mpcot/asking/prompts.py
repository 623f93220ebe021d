"""Prompts and answers as text.

What the perspectives of a pair share (system text, query, product) comes first and the perspective's
question last: the engine's prefix cache then serves all of them with one prefill.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from mpcot.perspectives.perspective import Perspective
from mpcot.schemes.scheme import Scheme

VERDICT = "Verdict:"
HINT = "Hint:"
Message = dict[str, str]


@lru_cache
def system_text(scheme: Scheme) -> str:
    """Return the task and the labels' meanings; kept, as every one of millions of prompts begins with it."""
    lines = [f"{label.code} = {label.name}: {label.meaning}" for label in scheme.labels]
    return "Judge how well the product answers the query.\n" + "\n".join(lines)


def pair_text(pair: Mapping[str, Any], description_chars: int = 0) -> str:
    """Return query and product as the prompt shows them."""
    lines = [f"Query: {pair['query']}", f"Product: {pair['title']}"]
    if pair.get("brand") and pair["brand"].lower() not in pair["title"].lower():
        lines.append(f"Brand: {pair['brand']}")
    if description_chars and pair.get("description"):
        lines.append(f"Details: {pair['description'][:description_chars]}")
    return "\n".join(lines)


def messages(
    pair: Mapping[str, Any],
    perspective: Perspective,
    scheme: Scheme,
    few_shot: int = 0,
    description_chars: int = 0,
    hint: str | None = None,
) -> list[Message]:
    """Return the chat for one pair and perspective; examples without a verdict in `scheme` are left out.

    Args:
        hint: the label to give away, at the end: what comes before it is the same as without.
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
    """Return the perspective's worked examples that have a verdict of this scheme, as text."""
    usable = [e for e in perspective.examples if e.verdicts.get(scheme.name) in scheme.codes]
    return [f"Query: {e.query}\nProduct: {e.title}\n{answer(e.rationale, e.verdicts[scheme.name])}" for e in usable]


def answer(rationale: str, verdict: str) -> str:
    """Return the answer that the teacher learns to give."""
    return f"{rationale}\n{VERDICT} {verdict}"


def answer_regex(scheme: Scheme, min_chars: int, max_chars: int) -> str:
    """Return the form that the engine's structured outputs enforce: one line of rationale, then a label."""
    codes = "|".join(re.escape(code) for code in scheme.codes)
    return f"[^\\n]{{{min_chars},{max_chars}}}\\n{VERDICT} ({codes})"


def render(tokenizer: Any, chat: list[Message]) -> str:
    """Return the chat as the model's own template writes it, up to where the answer starts.

    A tokenizer without a template gets a plain one, so that base models work too. A template that can leave the
    model's own thinking out does: the rationale is asked for, in a form that has no room for another.
    """
    if not getattr(tokenizer, "chat_template", None):
        return "\n\n".join(m["content"] for m in chat) + "\n\n"
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=False)
