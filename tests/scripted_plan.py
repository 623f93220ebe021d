"""What a generation with the scripted engine is to ask, for tests that need no Ray."""

from __future__ import annotations

from mpcot.config import AnswerSettings, PerspectiveSettings, ScriptedEngine
from mpcot.generate import GenerationPlan
from mpcot.labels import load_scheme
from mpcot.perspective import load_perspectives


def scripted_plan(ask: AnswerSettings, engine: ScriptedEngine | None = None) -> GenerationPlan:
    """Return a plan of E, S, C and I and the shipped perspectives."""
    return GenerationPlan(
        model="scripted/none",
        model_digest="aaaa",
        engine=engine or ScriptedEngine(),
        scheme=load_scheme("esci"),
        perspectives=load_perspectives(PerspectiveSettings()),
        ask=ask,
        seed=1,
    )
