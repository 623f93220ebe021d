"""Turns pairs into the student's input, `[CLS] query [SEP] product [SEP]`, in training and in serving."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase

from mpcot.details import details
from mpcot.sources.clean_texts import without_html

# Tokens are hardly ever longer than this. Texts are cut by it first, so that a megabyte of text costs nothing.
CHARACTERS_PER_TOKEN = 32


def product_text(pair: Mapping[str, Any], fields: str) -> str:
    """Join the product's `fields` ("title", "title+brand", ...), without those that the pair does not have.

    Attributes and bullet points belong to the description. HTML is taken out, as it is of the pairs of a run.
    """
    values = (details(pair) if field == "description" else pair.get(field) for field in fields.split("+"))
    return without_html(" ".join(value for value in values if value))


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Mapping[str, Any]],
    max_tokens: int,
    fields: str = "title",
    pad_to_multiple_of: int | None = None,
) -> BatchEncoding:
    """Tokenise pairs as PyTorch tensors of shape (pairs, tokens), padded to the longest pair.

    A query longer than half of `max_tokens` is cut to that half, so that there is always room for the product. After
    that only the product is truncated.

    Args:
        pairs: mappings with `query`, `title` and, if `fields` names them, `brand` and `description`, to which `bullets`
            and `attributes` belong.
        pad_to_multiple_of: tokens; with few different shapes a training has fewer kernels to prepare.
    """
    queries = short_queries(tokenizer, (pair["query"] for pair in pairs), max_tokens // 2)
    limit = max_tokens * CHARACTERS_PER_TOKEN
    return tokenizer(
        [queries[pair["query"]] for pair in pairs],
        [product_text(pair, fields)[:limit] for pair in pairs],
        truncation="only_second",
        max_length=max_tokens,
        padding=True,
        pad_to_multiple_of=pad_to_multiple_of,
        return_tensors="pt",
    )


def short_queries(tokenizer: PreTrainedTokenizerBase, queries: Iterable[str], tokens: int) -> dict[str, str]:
    """Map each query to itself or, if it is too long, to the text of its first `tokens` tokens."""
    distinct = list(dict.fromkeys(queries))
    if not distinct:
        return {}
    cut = [query[: tokens * CHARACTERS_PER_TOKEN] for query in distinct]
    encoded = tokenizer(cut, add_special_tokens=False, truncation=True, max_length=tokens, return_offsets_mapping=True)
    ends = (max((end for _, end in offsets), default=0) for offsets in encoded["offset_mapping"])
    return {query: short[:end] for query, short, end in zip(distinct, cut, ends, strict=True)}
