"""A server that speaks OpenAI's API, for the tests of what asks it, and short waits for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mpcot.asking.engines import openai_engine
from tests.helpers.scripted_server import ScriptedServer, scripted_server


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_engine, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(openai_engine, "LONGEST_WAIT_S", 0.02)
