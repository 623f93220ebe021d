"""Writes prompts and answers as text.

Without worked examples, what all perspectives of a pair share (system text, query, product) comes first and the
question of the perspective last. Worked examples stand before the pair, since they are the same for many pairs. So the
engine's prefix cache needs to read either of them only once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import cycle
from typing import Any

import xxhash

from cluster.models.plain_text import without_control_tokens
from mpcot.config import AnswerSettings
from mpcot.details import attributes_text
from mpcot.perspectives.perspective import Perspective
from mpcot.schemes.scheme import Scheme

# In the fingerprints of stages that ask. Raise it when equal settings make other prompts. Keys hold the prompt itself.
PROMPT_VERSION = 1
VERDICT = "Verdict:"
CONFIDENCE = "Confidence:"
HINT = "Hint:"
MOST_LINES, CHARS_PER_LINE = 8, 200  # a rationale may have a line more for each so many of its characters
EVERYTHING = 100_000  # characters of a product: filters compare answers with all that is known of it
EXAMPLE_CONFIDENCES = (90, 75, 95, 60)  # in turns, so that no number of the examples is one to copy
CONFIDENCE_FORM = (
    f'Then write a line with "{CONFIDENCE}" and a percentage: of 100 verdicts of which you are as sure, so many would '
    "be right. "
)
Message = dict[str, str]


@lru_cache
def system_text(
    scheme: Scheme, guide: str, words: tuple[int, int], locale: str | None = None, confidence: bool = False
) -> str:
    """Return who judges, the labels, how to decide, and the form. Cached, because every prompt begins with it.

    Args:
        guide: "full" or "short".
        words: the fewest and the most words of the rationale.
        confidence: whether the answer is to say how sure it is.
    """
    place = f" The shop's locale is {locale}." if locale else ""
    length, sure = f"{words[0]} to {words[1]} words", CONFIDENCE_FORM if confidence else ""
    if guide == "short":
        labels = [f"{label.code} = {label.name}: {label.meaning}" for label in scheme.labels]
        form = f"Say why in {length} and whole sentences. {sure}Then write a line with the verdict."
        return "\n".join([f"Judge how well the product answers the query.{place}", *labels, form])
    labels = [f"{label.code} ({label.name}): {label.guide or label.meaning}" for label in scheme.labels]
    parts = [
        "You judge search results for an online shop. You get what a shopper typed and one product that the search "
        f"found, and you decide how well the product answers the query.{place}",
        "The labels:\n" + "\n".join(labels),
        f"{scheme.order} {scheme.silent}".strip(),
        f"First give your reasons in {length}, as whole sentences on one or more lines, without lists and markup. "
        "State only facts that are in the query or in the product's text, and do not repeat the question. "
        f'{sure}Then end with a line of its own that says "{VERDICT}" and one of {", ".join(scheme.codes)}.',
    ]
    return "\n\n".join(part for part in parts if part)


def pair_text(pair: Mapping[str, Any], description_chars: int = 0) -> str:
    """Return query and product in the form that prompts have. No text of theirs spells a control token.

    Attributes, then bullets and description, share `description_chars` characters.
    """
    lines = [f"Query: {pair['query']}", f"Product: {pair['title']}"]
    if pair.get("brand") and pair["brand"].lower() not in pair["title"].lower():
        lines.append(f"Brand: {pair['brand']}")
    left = description_chars
    for name, text in _details(pair):
        if shown := text[:left].rstrip():
            lines.append(f"{name}: {shown}")
            left -= len(shown)
    return without_control_tokens("\n".join(lines))


def _details(pair: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is known of the product beside its title, the most telling first."""
    yield "Attributes", attributes_text(pair)
    yield "Details", " ".join(filter(None, (pair.get("bullets"), pair.get("description"))))


def messages(
    pair: Mapping[str, Any],
    perspective: Perspective,
    scheme: Scheme,
    ask: AnswerSettings,
    hint: str | None = None,
) -> list[Message]:
    """Return the chat for one pair and perspective. Examples without a verdict in `scheme` are left out.

    Args:
        ask: how the teacher is asked; its fields in `PROMPT_FORM` decide the prompt.
        hint: a label to give away. It comes at the end, so that the rest of the prompt stays the same.
    """
    return Frame(perspective, scheme, ask).messages(pair, pair_text(pair, ask.description_chars), hint)


class Frame:
    """What the prompts of one perspective have in common, worked out once for all pairs."""

    def __init__(self, perspective: Perspective, scheme: Scheme, ask: AnswerSettings) -> None:
        self.scheme, self.few_shot, self.question = scheme, ask.few_shot, question(perspective, ask.guide)
        self.examples = examples(perspective, scheme, ask.asks_confidence) if ask.few_shot else []
        form = partial(system_text, scheme, ask.guide, ask.asked_words, confidence=ask.asks_confidence)
        self.system = lru_cache(lambda locale: form(locale=locale))

    def messages(self, pair: Mapping[str, Any], text: str, hint: str | None = None) -> list[Message]:
        """Return the chat for a pair whose `pair_text` is `text`."""
        parts = [text, self.question]
        if shown := _turned(self.examples, self.few_shot, str(pair.get("pair_id"))):
            parts = ["Examples of answers for other pairs:", *shown, "Now judge this pair:", *parts]
        if hint is not None:
            name = self.scheme.labels[self.scheme.index(hint)].name
            parts.append(
                f"{HINT} the verdict is {hint} ({name}). Say why, from query and product, and not that it was told."
            )
        system = self.system(pair.get("locale"))
        return [{"role": "system", "content": system}, {"role": "user", "content": "\n\n".join(parts)}]


def question(perspective: Perspective, guide: str) -> str:
    """Return the perspective's question with its rules, or its short form if it has one and `guide` is "short"."""
    if guide == "short" and perspective.short:
        return perspective.short
    return "\n".join([perspective.question, *(f"- {rule}" for rule in perspective.rules)])


def examples(perspective: Perspective, scheme: Scheme, confidence: bool = False) -> list[str]:
    """Return, as text, the worked examples of the perspective that have a verdict in this scheme."""
    usable = [e for e in perspective.examples if e.verdicts.get(scheme.name) in scheme.codes]
    sure = cycle(EXAMPLE_CONFIDENCES if confidence else (None,))
    answers = [answer(e.rationale, e.verdicts[scheme.name], said) for e, said in zip(usable, sure, strict=False)]
    return [f"Query: {e.query}\nProduct: {e.title}\n{said}" for e, said in zip(usable, answers, strict=True)]


def _turned(found: Sequence[str], count: int, pair_id: str) -> Sequence[str]:
    """Return `count` examples. If there are more, the pair's id decides where to begin, so that each has its turn.

    There are as many different beginnings of prompts as examples, few enough for the engine's prefix cache.
    """
    if count >= len(found):
        return found
    first = xxhash.xxh3_64_intdigest(pair_id.encode()) % len(found)
    return [*found[first:], *found[:first]][:count]


def answer(rationale: str, verdict: str, confidence: object = None) -> str:
    """Return an answer in the form that the teacher learns, or in that with a confidence, in percent.

    The confidence comes before the verdict: so the label is the last token whose log-probability can be that of a
    label, also where labels are digits.
    """
    sure = "" if confidence is None else f"{CONFIDENCE} {confidence}\n"
    return f"{without_control_tokens(rationale)}\n{sure}{VERDICT} {verdict}"


def answer_regex(scheme: Scheme, min_chars: int, max_chars: int, confidence: bool = False) -> str:
    """Return the form that the engine enforces: lines of rationale, then a line with one of the labels.

    All lines together have at most `max_chars` characters, so that the verdict comes before `max_tokens`: of several
    lines none may be longer than its share. (To count characters over lines would take the engine a second per token.)
    The first line has at least `min_chars`, so that no verdict comes early, and short rationales have one line. No
    later line begins with a V, so that the first line that looks like the verdict ends the answer. With `confidence` a
    line with a percentage comes before it, and no later line of the rationale begins with a C.
    """
    codes = "|".join(re.escape(code) for code in scheme.codes)
    kept, sure = ("VC", f"{CONFIDENCE} (100|[1-9]?[0-9])\\n") if confidence else ("V", "")
    forms = [f"[^\\n]{{{min_chars},{max_chars}}}"]
    for count in range(2, min(MOST_LINES, 1 + max_chars // CHARS_PER_LINE) + 1):
        share = max_chars // count
        if share >= min_chars:
            more = f"(\\n[^\\n{kept}][^\\n]{{0,{share - 1}}}){{{count - 1}}}"
            forms.append(f"[^\\n]{{{min_chars},{share}}}{more}")
    reasons = forms[0] if len(forms) == 1 else f"({'|'.join(forms)})"
    return f"{reasons}\\n{sure}{VERDICT} ({codes})"
