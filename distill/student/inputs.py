"""How a pair becomes the student's input: `[CLS] query [SEP] product [SEP]`. Training and serving share it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase

# A token is hardly ever longer than this; longer texts are cut first so that a megabyte costs nothing.
CHARACTERS_PER_TOKEN = 32


def product_text(pair: Mapping[str, Any], fields: str) -> str:
    """Join the product's `fields` ("title", "title+brand", ...), leaving out what the pair does not have."""
    values = (pair.get(field) for field in fields.split("+"))
    return " ".join(value for value in values if value)


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Mapping[str, Any]],
    max_tokens: int,
    fields: str = "title",
    pad_to_multiple_of: int | None = None,
) -> BatchEncoding:
    """Tokenise pairs, padded to the longest, as PyTorch tensors of shape (pairs, tokens).

    Only the product side is truncated; a query longer than half of `max_tokens` is cut to that half
    first, so that the product always has room.

    Args:
        pairs: mappings with `query`, `title` and, where `fields` asks for them, `brand`, `description`.
        pad_to_multiple_of: of tokens; few distinct shapes spare a training the preparation of kernels.
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
    """Map each distinct query to itself or, where it is too long, to the text of its first `tokens` tokens."""
    distinct = list(dict.fromkeys(queries))
    if not distinct:
        return {}
    cut = [query[: tokens * CHARACTERS_PER_TOKEN] for query in distinct]
    encoded = tokenizer(
        cut,
        add_special_tokens=False,
        truncation=True,
        max_length=tokens,
        return_offsets_mapping=True,
    )
    ends = (max((end for _, end in offsets), default=0) for offsets in encoded["offset_mapping"])
    return {query: short[:end] for query, short, end in zip(distinct, cut, ends, strict=True)}
