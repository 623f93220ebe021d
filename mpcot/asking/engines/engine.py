"""The requests and replies of an engine, and what every kind of engine can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cluster.base.errors import UserError
from mpcot.asking.prompts import Message


class EngineStopped(RuntimeError):
    """The engine is gone, and no more requests can be asked on this replica."""


class StageStopped(UserError):
    """No further request can be answered until the user has done something."""


@dataclass(frozen=True)
class Ask:
    """One request to the engine.

    `shorter` returns the chat with a shorter description, if descriptions may be cut. `tried` counts earlier tries.
    """

    key: str
    chat: list[Message]
    seed: int
    gold: str | None = None
    shorter: Callable[[int], list[Message]] | None = None
    tried: int = 0


@dataclass(frozen=True)
class Reply:
    """The engine's reply. `error` is set if it is not usable. `logprobs` has one value per label, or is None.

    `cached_tokens` is how many tokens of the prompt were in the engine's prefix cache. `billed` says whether its tokens
    cost money one by one.
    """

    text: str
    logprobs: list[float] | None
    prompt_tokens: int
    output_tokens: int
    error: str | None = None
    cached_tokens: int = 0
    billed: bool = False


class AnswerEngine(Protocol):
    """An engine on a replica. It takes many requests at a time.

    Attributes:
        never_hangs: the engine ends every wait itself, so that silence is no sign of a hang.
        spent: the money that the run has spent so far, or None where nobody counts it.
    """

    never_hangs: bool
    spent: float | None

    async def reply(self, ask: Ask) -> Reply:
        """Answer one request. If it cannot be answered, the reply has an `error`.

        Raises:
            EngineStopped: the engine cannot answer any request any more.
            StageStopped: nor could another one.
        """
        ...

    def kill(self) -> None:
        """End the engine's own processes at once, hung ones too."""
        ...
