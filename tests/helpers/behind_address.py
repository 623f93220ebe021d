"""Asks a scripted server as the engine behind an address does."""

from __future__ import annotations

import asyncio
from typing import Any

from mpcot.asking.address.meter import Meter
from mpcot.asking.engines.config import OpenAiEngine
from mpcot.asking.engines.engine import Ask, Reply
from mpcot.asking.engines.openai_engine import BehindAddress
from mpcot.config import AnswerSettings
from mpcot.schemes.scheme import load_scheme
from tests.helpers.scripted_server import NearMeter, Said, ScriptedServer, engine_at

ESCI = load_scheme("esci")
CHAT = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "Query: drill"}]


def behind(engine: OpenAiEngine, ask: AnswerSettings | None = None) -> BehindAddress:
    """Return the engine, with a meter in this process."""
    return BehindAddress(engine, ESCI, ask or AnswerSettings(), NearMeter(Meter(engine)))


def reply(server: ScriptedServer, *script: Said, ask: AnswerSettings | None = None, **changed: Any) -> Reply:
    """Return what the engine makes of the server's responses to one request; `changed` are its settings."""
    server.script = list(script)
    return asyncio.run(behind(engine_at(server, **changed), ask).reply(Ask("k", CHAT, 1)))
