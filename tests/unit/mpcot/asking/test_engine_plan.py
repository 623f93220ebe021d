"""What an engine is started with, as data; and the scripted engine's rules."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.base.errors import UserError
from cluster.base.ray_session import LOCAL_ENVIRONMENT
from mpcot.asking.engines.engine import Ask
from mpcot.asking.engines.scripted_engine import Scripted
from mpcot.asking.engines.start import replica_resources, start_engine
from mpcot.asking.engines.vllm_engine import engine_arguments, engine_environment, own_seed, sampling
from mpcot.asking.parsing import parse_answer
from mpcot.config import AnswerSettings, Replicas, ScriptedEngine, VllmEngine
from mpcot.schemes.scheme import load_scheme

ESCI = load_scheme("esci")
CHAT = [{"role": "user", "content": "Query: red drill\nProduct: drill"}]


def test_on_a_cpu_nothing_is_of_gpus() -> None:
    engine = VllmEngine(max_model_len=640, enforce_eager=True)
    arguments = engine_arguments(engine, "models/small", gpu=False)
    environment = engine_environment(engine, False, [0, 1], shared_node=False)
    assert arguments["distributed_executor_backend"] == "uni" and arguments["tensor_parallel_size"] == 1
    assert arguments["max_model_len"] == 640 and arguments["enforce_eager"] is True
    assert "gpu" not in json.dumps([arguments, environment]).lower()
    assert "cuda" not in json.dumps([arguments, environment]).lower()
    assert environment["TORCHDYNAMO_DISABLE"] == "1", "eager means that nothing is compiled"
    assert "TORCHDYNAMO_DISABLE" not in engine_environment(VllmEngine(), False, [0, 1], shared_node=False)
    assert replica_resources(engine) == {"num_cpus": 1}


def test_on_a_cpu_a_lone_replica_takes_all_its_cores() -> None:
    environment = engine_environment(VllmEngine(cpu_kv_cache_gib=3), False, [2, 3, 5], shared_node=False)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert int(environment["GOMP_SPINCOUNT"]) > int(LOCAL_ENVIRONMENT["GOMP_SPINCOUNT"])
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "3"


def test_replicas_are_a_range() -> None:
    with pytest.raises(ValidationError, match="max 1 is below min 4"):
        Replicas(min=4)


def test_replicas_that_share_a_node_are_not_bound_to_the_same_cores() -> None:
    engine = VllmEngine(replicas=Replicas(max=2, cpus=4))
    environment = engine_environment(engine, False, list(range(8)), shared_node=True)
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind" and environment["OMP_NUM_THREADS"] == "4"
    assert "GOMP_SPINCOUNT" not in environment, "threads that share cores with others must not spin"


def test_on_gpus_tensor_parallel_and_memory_share() -> None:
    engine = VllmEngine(tensor_parallel=4, gpu_memory_utilization=0.8, replicas=Replicas(cpus=2, gpus=1))
    arguments = engine_arguments(engine, "Qwen/Qwen3-14B", gpu=True)
    assert arguments["tensor_parallel_size"] == 4 and arguments["gpu_memory_utilization"] == 0.8
    assert arguments["distributed_executor_backend"] == "mp", "Ray is not asked for the GPUs that the actor holds"
    assert engine_arguments(VllmEngine(), "m", gpu=True)["distributed_executor_backend"] == "uni"
    assert replica_resources(engine) == {"num_cpus": 2, "num_gpus": 4}
    assert not any(name.startswith("VLLM_CPU") for name in engine_environment(engine, True, [0], shared_node=True))


@pytest.mark.parametrize(
    ("settings", "gpu", "seed"),
    [({}, True, 5), ({"top_p": 0.9}, True, None), ({"temperature": 0}, True, None), ({}, False, None)],
)
def test_a_request_has_a_seed_where_it_costs_no_speed(settings: dict[str, Any], gpu: bool, seed: int | None) -> None:
    assert own_seed(AnswerSettings(**settings), Ask("k", CHAT, 5), gpu) == seed


def test_a_model_of_the_hub_is_loaded_at_its_commit() -> None:
    arguments = engine_arguments(VllmEngine(), "Qwen/Qwen3-14B@5c0d", gpu=True)
    named = {name: arguments[name] for name in ("model", "revision", "tokenizer_revision")}
    assert named == {"model": "Qwen/Qwen3-14B", "revision": "5c0d", "tokenizer_revision": "5c0d"}
    assert not {"revision", "tokenizer_revision"} & engine_arguments(VllmEngine(), "models/small", gpu=True).keys()


@pytest.mark.parametrize("gpu", [True, False])
def test_the_prefix_is_cached_and_no_foreign_code_runs(gpu: bool) -> None:
    arguments = engine_arguments(VllmEngine(), "m", gpu)
    assert arguments["enable_prefix_caching"] is True and arguments["trust_remote_code"] is False


def test_a_missing_engine_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="Install the extra `cpu` or `gpu`"):
        start_engine(VllmEngine(), "m", ESCI, AnswerSettings())


def test_a_further_try_at_temperature_0_is_warmer_or_it_would_end_alike() -> None:
    greedy, warm = AnswerSettings(temperature=0, retry_temperature=0.4), AnswerSettings(temperature=1.0)
    assert [sampling(greedy, ".", [1], 7, tried).temperature for tried in (0, 1, 2)] == [0, 0.4, 0.4]
    assert [sampling(warm, ".", [1], 7, tried).temperature for tried in (0, 1)] == [1.0, 1.0]


def replies(engine: ScriptedEngine, count: int = 2000, gold: str | None = "S") -> list[object]:
    scripted = Scripted(engine, ESCI)

    async def ask_all() -> list[object]:
        return [await scripted.reply(Ask(f"key{i}", CHAT, i, gold)) for i in range(count)]

    return asyncio.run(ask_all())


def test_the_scripted_engine_is_right_and_fails_as_often_as_asked() -> None:
    parsed = [parse_answer(r.text, ESCI) for r in replies(ScriptedEngine(accuracy=0.7, failure_share=0.2))]
    failed = sum(p.reason is not None for p in parsed)
    right = sum(p.verdict == "S" for p in parsed)
    assert failed == pytest.approx(400, abs=70)
    assert right == pytest.approx(0.7 * (2000 - failed), abs=90)
    assert {p.verdict for p in parsed} == {None, "E", "S", "C", "I"}


def test_the_scripted_engine_repeats_itself_for_the_same_key_only() -> None:
    first, second = replies(ScriptedEngine(), 50), replies(ScriptedEngine(), 50)
    assert first == second and len({r.text for r in first}) > 40
    assert all(r.logprobs[ESCI.index(r.text[-1])] == max(r.logprobs) for r in first)
