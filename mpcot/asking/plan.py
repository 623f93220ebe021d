"""The plan of a generation, from which driver and workers derive the same requests with the same keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any

import pyarrow as pa

from cluster.base.stage_folder import digest
from cluster.models.folders import model_content, model_to_load
from mpcot.asking.answer_keys import answer_key, sampling_digest
from mpcot.asking.engines.config import OpenAiEngine
from mpcot.asking.engines.engine import Ask
from mpcot.asking.failure_reasons import CUT, under
from mpcot.asking.join_answers import settled
from mpcot.asking.prompts import Frame, Message, pair_text
from mpcot.asking.rendering import RENDERING_VERSION, check_prompts
from mpcot.config import AnswerSettings, AskingStage, Engine, VllmEngine
from mpcot.perspectives.perspective import Perspective, load_perspectives
from mpcot.records import PAIR
from mpcot.schemes.scheme import Scheme, load_scheme


def model_asked(engine: Engine, model: str) -> str:
    """Return the model that the engine asks: one behind an address by its name there, another one as its folder.

    Raises:
        UserError: it is no model folder.
    """
    return engine.model if isinstance(engine, OpenAiEngine) else model_to_load("teacher.model", model)


def teacher_fingerprint(engine: Engine, model: str) -> str:
    """Return a digest of the model that the engine asks: of what it is and how it is addressed, or of its name."""
    if isinstance(engine, OpenAiEngine):
        return digest([engine.model, engine.snapshot])
    return digest([model_content(model), RENDERING_VERSION])


@dataclass(frozen=True)
class GenerationPlan:
    """What a worker needs to know. With `hinted`, prompts give the gold label away."""

    model: str
    model_digest: str
    engine: Engine
    scheme: Scheme
    perspectives: tuple[Perspective, ...]
    ask: AnswerSettings
    seed: int
    hinted: bool = False

    @classmethod
    def of(cls, config: AskingStage, model: str, ask: AnswerSettings) -> GenerationPlan:
        """Return the plan of a stage that asks `model`."""
        scheme, perspectives = load_scheme(config.labels.scheme), load_perspectives(config.perspectives)
        identity = teacher_fingerprint(config.engine, model)
        return cls(model, identity, config.engine, scheme, perspectives, ask, config.seed)

    def __getstate__(self) -> dict[str, Any]:
        # Each worker computes the digest itself, so that another version of the code on its node is noticed.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def parameters(self) -> str:
        """Digest of what an answer depends on beside its prompt: the model and how it is sampled."""
        return sampling_digest(self.model_digest, self.engine, self.scheme, self.ask, self.seed)

    @cached_property
    def _frames(self) -> list[tuple[Perspective, Frame]]:
        return [(perspective, Frame(perspective, self.scheme, self.ask)) for perspective in self.perspectives]

    def settled(self, answers: pa.RecordBatch) -> pa.Array:
        """Mark the answers that need not be asked for again under these settings."""
        cut = self.ask.when_too_long == "cut"
        ending = CUT if cut else ""  # how many tokens are too many, a server knows alone
        if isinstance(self.engine, VllmEngine):
            ending = under(self.engine.prompt_tokens(self.ask), cut)
        return settled(answers, self.ask.retries, ending)

    def easy(self) -> Ask:
        """Return a request that every engine can answer, unless it is broken."""
        return next(self._easy())[2]

    def check(self) -> None:
        """Check, before a model is loaded, that its template takes the prompts and that they have room.

        Raises:
            UserError: names the perspective and the way out.
        """
        if isinstance(self.engine, VllmEngine):
            chats = ((perspective.name, ask.chat) for perspective, sample, ask in self._easy() if not sample)
            check_prompts(self.model, chats, self.engine.prompt_tokens(self.ask), self.engine.thinking == "on")

    def _easy(self) -> Iterator[tuple[Perspective, int, Ask]]:
        made = dict.fromkeys(PAIR.names) | {"pair_id": "easy", "query": "shoe", "title": "Shoe"}
        return self.asks(made | {"label": self.scheme.codes[0]})

    def asks(self, pair: dict[str, Any]) -> Iterator[tuple[Perspective, int, Ask]]:
        """Yield the requests of a pair, perspective by perspective and sample by sample.

        Perspectives in its column `given`, if it has one, are not asked.
        """
        for perspective, frame, chat, keys in self._asked(pair):
            shorter = partial(self._shorter, frame, pair) if self.ask.when_too_long == "cut" else None
            for sample, key in enumerate(keys):
                yield perspective, sample, Ask(key, chat, int(key[:8], 16) & 0x7FFFFFFF, pair["label"], shorter)

    def keys(self, pair: dict[str, Any]) -> list[str]:
        """Return the keys of `asks`, without the rest of the requests, which takes a third of the time."""
        return [key for *_, keys in self._asked(pair) for key in keys]

    def _asked(self, pair: dict[str, Any]) -> Iterator[tuple[Perspective, Frame, list[Message], list[str]]]:
        """Yield the perspectives that are asked, each with its chat and the keys of its samples."""
        text = pair_text(pair, self.ask.description_chars)
        for perspective, frame in self._frames:
            if perspective.name in pair.get("given", ()):
                continue
            chat = frame.messages(pair, text, self._hint(pair))
            texts = [text for message in chat for text in (message["role"], message["content"])]
            base = answer_key(self.parameters, pair["pair_id"], perspective.name, *texts)
            yield perspective, frame, chat, [answer_key(base, str(sample)) for sample in range(self.ask.samples)]

    def _hint(self, pair: dict[str, Any]) -> str | None:
        return pair["label"] if self.hinted else None

    def _shorter(self, frame: Frame, pair: dict[str, Any], description_chars: int) -> list[Message]:
        return frame.messages(pair, pair_text(pair, description_chars), self._hint(pair))
