"""Turns pairs into token ids and keeps the ids of texts, so that a product seen before is not tokenised again.

The ids are the same as those of `distill.student.inputs.encode_pairs`, which training uses; here each text is tokenised
alone, and a pair is put together from the parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from distill.student.inputs import CHARACTERS_PER_TOKEN, product_text, short_queries

Ids = np.ndarray  # of int32: a list would hold an object of 28 bytes for each
Pair = tuple[Ids, Ids]  # ids of query and product
KEPT_QUERIES = 4096


@dataclass(frozen=True)
class Frame:
    """The special ids that a tokenizer puts before, between and after the two texts of a pair.

    `segments` are the token types of those five parts in turn, or None for a tokenizer without token types.
    """

    before: list[int]
    between: list[int]
    after: list[int]
    segments: tuple[int, int, int, int, int] | None

    def __len__(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


def frame_of(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """Return the tokenizer's frame, as found in a pair that it has encoded."""
    encoded = tokenizer("a", "b")
    ids, sides = encoded["input_ids"], encoded.sequence_ids()
    first, second = ([i for i, side in enumerate(sides) if side == n] for n in (0, 1))
    cuts = (first[0], first[-1] + 1, second[0], second[-1] + 1)
    types = encoded.get("token_type_ids")
    parts = (0, first[0], cuts[1], second[0], min(cuts[3], len(ids) - 1))
    segments = None if types is None else tuple(types[i] for i in parts)
    return Frame(ids[: cuts[0]], ids[cuts[1] : cuts[2]], ids[cuts[3] :], segments)


class TokenCache:
    """Turns pairs into token ids. Several threads must not use it at once.

    Args:
        kept_products: how many product texts keep their ids; the least recently used go first, and 0 keeps none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int, fields: str, kept_products: int) -> None:
        self.tokenizer, self.max_tokens, self.fields = tokenizer, max_tokens, fields
        self.frame = frame_of(tokenizer)
        self.pad = tokenizer.pad_token_id
        # The key is the text, because unlike a product's id it can never stand for an older version.
        self.products: LRUCache[str, Ids] = LRUCache(kept_products)
        self.queries: LRUCache[str, Ids] = LRUCache(KEPT_QUERIES)

    def __call__(self, pairs: Sequence[Mapping[str, Any]]) -> list[Pair]:
        """Return the ids of each pair's query and product, cut so that the pair fits `max_tokens`."""
        read = [self.texts(pair) for pair in pairs]
        products = self._looked_up([text for _, text in read], self.products, self._tokenised)
        queries = self._looked_up([query for query, _ in read], self.queries, self._tokenised_queries)
        return [self._cut(queries[query], products[text]) for query, text in read]

    def texts(self, pair: Mapping[str, Any]) -> tuple[str, str]:
        """Return the query, and the text of the product's fields, cut where no more of it can fit."""
        return pair["query"], product_text(pair, self.fields)[: self.max_tokens * CHARACTERS_PER_TOKEN]

    def batch(self, pairs: Sequence[Pair], length: int) -> dict[str, Tensor]:
        """Return the model's inputs of shape (pairs, length); `length` is that of the longest pair."""
        ids = np.full((len(pairs), length), self.pad, dtype=np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for row, (query, product) in enumerate(pairs):
            whole = np.concatenate([self.frame.before, query, self.frame.between, product, self.frame.after])
            ids[row, : len(whole)], mask[row, : len(whole)] = whole, 1
            if self.frame.segments:
                types[row, : len(whole)] = self._types(query, product)
        found = {"input_ids": ids, "attention_mask": mask} | ({"token_type_ids": types} if self.frame.segments else {})
        return {name: torch.from_numpy(values) for name, values in found.items()}

    def length(self, pair: Pair) -> int:
        """Return the number of a pair's tokens, including special ones."""
        return len(self.frame) + len(pair[0]) + len(pair[1])

    def unknown(self, pairs: Sequence[Pair]) -> np.ndarray | None:
        """Return how many tokens of each pair are unknown, N; None where the tokenizer has no token for that."""
        if self.tokenizer.unk_token_id is None:
            return None
        ids = [part for pair in pairs for part in pair]
        found = np.concatenate([[self.pad], *ids]) == self.tokenizer.unk_token_id
        ends = np.cumsum([len(part) for part in ids])[1::2]
        return np.diff(np.cumsum(found)[ends], prepend=0)

    def _types(self, query: Ids, product: Ids) -> np.ndarray:
        assert self.frame.segments is not None
        parts = (self.frame.before, query, self.frame.between, product, self.frame.after)
        return np.repeat(self.frame.segments, [len(part) for part in parts])

    def _cut(self, query: Ids, product: Ids) -> Pair:
        return query, product[: self.max_tokens - len(self.frame) - len(query)]

    def _looked_up(self, texts: Sequence[str], kept: LRUCache[str, Ids], tokenise: Any) -> dict[str, Ids]:
        """Return the ids of each text; texts that are not kept yet are tokenised together, and then kept."""
        found = {text: ids for text in texts if (ids := kept.get(text)) is not None}
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        for text, ids in zip(missing, tokenise(missing) if missing else (), strict=True):
            found[text] = np.array(ids, np.int32)
            if kept.maxsize:
                kept[text] = found[text]
        return found

    def _tokenised(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(
            list(texts),
            add_special_tokens=False,
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]

    def _tokenised_queries(self, queries: Sequence[str]) -> list[list[int]]:
        short = short_queries(self.tokenizer, queries, self.max_tokens // 2)
        return self._tokenised([short[query] for query in queries])
