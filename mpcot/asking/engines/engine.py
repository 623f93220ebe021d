"""What an engine is asked, what it says, and what every kind of engine can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mpcot.asking.prompts import Message


class EngineStopped(RuntimeError):
    """The engine's own processes are gone: nothing more can be asked of this replica."""


@dataclass(frozen=True)
class Ask:
    """One request to the engine. `shorter` is set where the rule is to cut: the chat with so much description.

    `tried` counts the tries before this one.
    """

    key: str
    chat: list[Message]
    seed: int
    gold: str | None = None
    shorter: Callable[[int], list[Message]] | None = None
    tried: int = 0


@dataclass(frozen=True)
class Reply:
    """What the engine said. `error` is set when it said nothing usable; `logprobs` is per label, or None.

    `cached_tokens` are those of the prompt that the engine took from its prefix cache, by its own account.
    """

    text: str
    logprobs: list[float] | None
    prompt_tokens: int
    output_tokens: int
    error: str | None = None
    cached_tokens: int = 0


class AnswerEngine(Protocol):
    """An engine on a replica: many asks at a time."""

    async def reply(self, ask: Ask) -> Reply:
        """Answer one request; a request that cannot be answered gives a reply with `error`.

        Raises:
            EngineStopped: no request can be answered any more.
        """
        ...
