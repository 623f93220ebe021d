"""What a generation with the scripted engine is to ask, for tests that need no Ray."""

from __future__ import annotations

from mpcot.asking.plan import GenerationPlan
from mpcot.config import AnswerSettings, PerspectiveSettings, ScriptedEngine
from mpcot.perspectives.perspective import load_perspectives
from mpcot.schemes.scheme import load_scheme


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
