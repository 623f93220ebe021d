"""Estimates the tokens and the money of a generation from a sample of its prompts, before it runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from cluster.models.folders import hub_arguments
from mpcot.asking.address.chat_requests import most_output_tokens
from mpcot.asking.engines.config import OpenAiEngine, Price
from mpcot.asking.engines.engine import Ask
from mpcot.asking.generate import missing_asks
from mpcot.asking.plan import GenerationPlan
from mpcot.asking.prompts import Message
from mpcot.asking.rendering import render

SAMPLE = 200
BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Estimate:
    """What a generation has still to ask, and at most to be answered."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    price: Price | None
    batch: bool = False

    def said(self) -> str:
        """Return the estimate as text."""
        if not self.requests:
            return "nothing to ask"
        said = f"{self.requests:,} requests, about {self.prompt_tokens:,} tokens of prompts and at most "
        said += f"{self.output_tokens:,} of answers"
        if self.price:
            cost = self.price.of(self.prompt_tokens, 0, self.output_tokens, self.batch)
            said += f": {cost:,.2f} at most, if the host has no part of a prompt in its cache"
        return said


def estimate(plan: GenerationPlan, pairs: Iterable[pa.RecordBatch], folder: Path) -> Estimate:
    """Return what the stage in `folder` has still to ask. Tokens are counted in a sample of the prompts.

    Args:
        plan: `plan.model` names the tokenizer, or is empty where characters are counted.
    """
    missing = missing_asks(plan, pairs, folder)
    sample = list(islice(missing, SAMPLE))
    return estimated(plan, sample, len(sample) + sum(1 for _ in missing))


def estimated(plan: GenerationPlan, sample: Sequence[Ask], requests: int, batch: bool = False) -> Estimate:
    """Return the estimate of so many requests, of which some are given, at once or in a batch."""
    assert isinstance(plan.engine, OpenAiEngine)
    counted = _tokens([ask.chat for ask in sample], plan.model) * requests // max(1, len(sample))
    answers = requests * most_output_tokens(plan.engine, plan.ask)
    return Estimate(requests, counted, answers, plan.engine.price_per_million, batch)


def _tokens(chats: list[list[Message]], model: str) -> int:
    if not model or not chats:
        return sum(len(message["content"].encode()) for chat in chats for message in chat) // BYTES_PER_TOKEN
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(**hub_arguments(model), trust_remote_code=False)
    return sum(len(tokenizer.encode(render(tokenizer, chat), add_special_tokens=False)) for chat in chats)
