"""The plan of a generation: what the driver and every worker must know to ask the same requests under the same keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import pyarrow as pa

from mpcot.asking.answer_keys import answer_key, sampling_digest
from mpcot.asking.engines.engine import Ask
from mpcot.asking.failure_reasons import under
from mpcot.asking.join_answers import settled
from mpcot.asking.prompts import Message, messages
from mpcot.config import AnswerSettings, Engine, VllmEngine
from mpcot.perspectives.perspective import Perspective
from mpcot.records import PAIR
from mpcot.schemes.scheme import Scheme


@dataclass(frozen=True)
class GenerationPlan:
    """All that a worker needs to ask; pickled to the workers. `hinted` gives the gold label away in the prompt."""

    model: str
    model_digest: str
    engine: Engine
    scheme: Scheme
    perspectives: tuple[Perspective, ...]
    ask: AnswerSettings
    seed: int
    hinted: bool = False

    def __getstate__(self) -> dict[str, Any]:
        # A worker comes to its own digest, so that another version of the code there is noticed.
        return {name: value for name, value in vars(self).items() if name != "parameters"}

    @cached_property
    def parameters(self) -> str:
        """Digest of what decides an answer apart from its prompt: the model and how it is sampled."""
        return sampling_digest(self.model_digest, self.engine, self.scheme, self.ask, self.seed)

    def settled(self, answers: pa.RecordBatch) -> pa.Array:
        """Mark the answers that are not asked again under these settings."""
        ending = ""
        if isinstance(self.engine, VllmEngine):
            ending = under(self.engine.prompt_tokens(self.ask), self.ask.when_too_long == "cut")
        return settled(answers, self.ask.retries, ending)

    def easy(self) -> Ask:
        """Return a request that any engine which works can answer."""
        made = dict.fromkeys(PAIR.names) | {"pair_id": "easy", "query": "shoe", "title": "Shoe"}
        return next(self.asks(made | {"label": self.scheme.codes[0]}))[2]

    def asks(self, pair: dict[str, Any]) -> Iterator[tuple[Perspective, int, Ask]]:
        """Yield every request of a pair: perspectives, then samples, so that they share the cached prompt."""
        for perspective in self.perspectives:
            chat = self._chat(pair, perspective, self.ask.description_chars)
            shorter = partial(self._chat, pair, perspective) if self.ask.when_too_long == "cut" else None
            told = [text for message in chat for text in (message["role"], message["content"])]
            base = answer_key(self.parameters, pair["pair_id"], perspective.name, *told)
            for sample in range(self.ask.samples):
                key = answer_key(base, str(sample))
                yield perspective, sample, Ask(key, chat, int(key[:8], 16) & 0x7FFFFFFF, pair["label"], shorter)

    def _chat(self, pair: dict[str, Any], perspective: Perspective, description_chars: int) -> list[Message]:
        hint = pair["label"] if self.hinted else None
        return messages(pair, perspective, self.scheme, self.ask.few_shot, description_chars, hint)
