"""Starts the engine that the config names, and says what Ray reserves for a replica of it."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.base.errors import UserError
from mpcot.asking.engines.config import OpenAiEngine
from mpcot.asking.engines.engine import AnswerEngine
from mpcot.asking.engines.openai_engine import AnyMeter, BehindAddress
from mpcot.asking.engines.scripted_engine import Scripted
from mpcot.asking.engines.vllm_engine import Vllm
from mpcot.config import AnswerSettings, Engine, ScriptedEngine, VllmEngine
from mpcot.schemes.scheme import Scheme


def start_engine(
    engine: Engine, model: str, scheme: Scheme, ask: AnswerSettings, meter: AnyMeter | None = None
) -> AnswerEngine:
    """Start the engine that the config names. One behind an address needs a meter.

    Raises:
        UserError: the engine's package is not installed.
    """
    if isinstance(engine, ScriptedEngine):
        return Scripted(engine, scheme)
    if isinstance(engine, OpenAiEngine):
        assert meter is not None
        return BehindAddress(engine, scheme, ask, meter)
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise UserError("engine.kind 'vllm': vLLM is not installed. Install the extra `cpu` or `gpu`.") from error
    return Vllm(engine, model, scheme, ask)


def replica_resources(engine: Engine) -> Mapping[str, float]:
    """Return what Ray reserves for one replica. With tensor parallelism that is as many GPUs."""
    replicas = engine.replicas
    gpus = replicas.gpus
    if isinstance(engine, VllmEngine) and gpus:
        gpus = max(gpus, engine.tensor_parallel)
    return {"num_cpus": replicas.cpus, **({"num_gpus": gpus} if gpus else {})}
