"""The engines that answer: vLLM, and a scripted one for tests of everything around a model."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import xxhash

from cluster.errors import UserError
from cluster.precision import inference_precision
from mpcot.config import AnswerSettings, Engine, ScriptedEngine, VllmEngine
from mpcot.labels import Scheme
from mpcot.length import longest_that_fits
from mpcot.parsing import LabelTokens
from mpcot.prompts import Message, answer, answer_regex, render
from mpcot.reasons import too_long

# Prefixes are cached in whole blocks, and vLLM's default on a CPU is 128 tokens: a pair's prompts share fewer.
CPU_BLOCK_TOKENS = 32
# Turns of a waiting OpenMP thread, some 30 ms: where Ray's processes hold up one thread for a moment, the others are
# back at once. Asleep they would come back late, at every one of a step's many barriers.
SPIN = "10000000"


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

    def close(self) -> None:
        """Free the engine's processes."""
        ...


def engine_arguments(engine: VllmEngine, model: str, gpu: bool) -> dict[str, Any]:
    """Return vLLM's engine arguments as plain data: the plan that tests and `--dry-run` look at."""
    shared: dict[str, Any] = {
        "model": model,
        "dtype": engine_dtype(engine, gpu),
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "enforce_eager": engine.enforce_eager,
        "tensor_parallel_size": engine.tensor_parallel,
        "enable_prefix_caching": True,
        "trust_remote_code": False,
        "disable_log_stats": True,
        "seed": 0,
    }
    if gpu:
        return shared | {"gpu_memory_utilization": engine.gpu_memory_utilization}
    return shared | {"distributed_executor_backend": "mp", "block_size": CPU_BLOCK_TOKENS}


def engine_dtype(engine: VllmEngine, gpu: bool) -> str:
    """Return the number format: on a CPU, `auto` is bf16 only where the processor multiplies it."""
    if engine.dtype != "auto" or gpu:
        return engine.dtype
    return {"fp32": "float32", "bf16": "bfloat16"}[inference_precision("auto", gpu=False)]


def engine_environment(engine: VllmEngine, gpu: bool, cores: list[int], shared_node: bool) -> dict[str, str]:
    """Return the environment of one replica.

    vLLM's own default on a CPU keeps a core back. A replica that has the node to itself is bound to all of its cores,
    and its threads spin while they wait for each other; replicas that share a node are left to the scheduler, with as
    many threads as they ask for.
    """
    quiet = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if gpu:
        return quiet
    quiet |= {"VLLM_CPU_KVCACHE_SPACE": str(engine.cpu_kv_cache_gib), "VLLM_TARGET_DEVICE": "cpu"}
    if shared_node:
        return quiet | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(engine.replicas.cpus)}
    bound = {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)), "OMP_NUM_THREADS": str(len(cores))}
    return quiet | bound | {"GOMP_SPINCOUNT": SPIN}


def sampling(ask: AnswerSettings, regex: str, labels: list[int], seed: int | None, tried: int = 0) -> Any:
    """Return vLLM's parameters of one request: the enforced form, and log-probabilities of the `labels` tokens."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    return SamplingParams(
        temperature=temperature_of(ask, tried),
        top_p=ask.top_p,
        max_tokens=ask.max_tokens,
        seed=seed,
        structured_outputs=StructuredOutputsParams(regex=regex),
        logprob_token_ids=labels,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def temperature_of(ask: AnswerSettings, tried: int) -> float:
    """Return the temperature of a request that was tried `tried` times."""
    return ask.retry_temperature if tried and not ask.temperature else ask.temperature


class Vllm:
    """vLLM's asynchronous engine inside a Ray Data actor."""

    def __init__(self, engine: VllmEngine, model: str, scheme: Scheme, ask: AnswerSettings) -> None:
        gpu = engine.replicas.gpus > 0
        shared_node = engine.replicas.max > 1
        os.environ.update(engine_environment(engine, gpu, sorted(os.sched_getaffinity(0)), shared_node))
        from transformers import AutoTokenizer
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        self.tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        self.labels = LabelTokens.of(self.tokenizer, scheme)
        self.limit = engine.prompt_tokens(ask)
        self.regex = answer_regex(scheme, ask.min_chars, ask.max_chars)
        self.ask, self.gpu = ask, gpu
        arguments = AsyncEngineArgs(**engine_arguments(engine, model, gpu))
        # As an engine for many prompts at once it prefills more of them in a step than as a server.
        self.engine = AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)

    def _sampling(self, ask: Ask) -> Any:
        # On a CPU, vLLM's per-request generators die when a prompt is prefilled in pieces (no offset).
        own = ask.seed if self.gpu and temperature_of(self.ask, ask.tried) else None
        return sampling(self.ask, self.regex, self.labels.all, own, ask.tried)

    def _encode(self, chat: list[Message]) -> Sequence[int]:
        return self.tokenizer.encode(render(self.tokenizer, chat), add_special_tokens=False)

    async def reply(self, ask: Ask) -> Reply:
        prompt = self._encode(ask.chat)
        if len(prompt) > self.limit:
            length, most = len(prompt), self.ask.description_chars
            cut = longest_that_fits(ask.shorter, most, self._encode, self.limit) if ask.shorter else None
            if cut is None:
                return Reply("", None, length, 0, too_long(length, self.limit, ask.shorter is not None))
            prompt = cut
        from vllm.inputs import TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError

        final = None
        request = f"{ask.key}-{ask.seed}"
        try:
            asked = TokensPrompt(prompt_token_ids=list(prompt))
            async for output in self.engine.generate(asked, self._sampling(ask), request):
                final = output
        except EngineDeadError as dead:
            raise EngineStopped(str(dead)) from dead
        assert final is not None
        said = final.outputs[0]
        known = [{i: p.logprob for i, p in step.items()} for step in said.logprobs or []]
        logprobs = self.labels.logprobs(list(zip(said.token_ids, known, strict=False)))
        error = "too long: the answer met max_tokens" if said.finish_reason == "length" else None
        return Reply(said.text, logprobs, len(prompt), len(said.token_ids), error, final.num_cached_tokens or 0)

    def close(self) -> None:
        self.engine.shutdown()


class Scripted:
    """Answers by rule: right with a given share, each answer a function of its key and seed alone."""

    def __init__(self, engine: ScriptedEngine, scheme: Scheme) -> None:
        self.engine, self.scheme = engine, scheme
        self.asked = 0

    async def reply(self, ask: Ask) -> Reply:
        await self._misbehave(ask)
        draw = xxhash.xxh3_64_intdigest(f"{ask.key}/{ask.seed}".encode())
        chance, other = (draw & 0xFFFF) / 65536, (draw >> 16) & 0xFFFF
        if chance < self.engine.failure_share:
            return Reply("no form", None, 1, 2)
        codes = self.scheme.codes
        right = ((draw >> 32) & 0xFFFF) / 65536 < self.engine.accuracy and ask.gold in codes
        wrong = [c for c in codes if c != ask.gold]
        verdict = str(ask.gold) if right else wrong[other % len(wrong)]
        question = ask.chat[-1]["content"].splitlines()
        rationale = f"{question[0]} was compared with {question[1]}: remark {draw % 997}."
        logprobs = [-0.2 if code == verdict else -2.5 for code in codes]
        return Reply(answer(rationale, verdict), logprobs, 60, 20)

    async def _misbehave(self, ask: Ask) -> None:
        """Do what the settings ask for: log, take time, hang, or be gone."""
        script = self.engine
        self.asked += 1
        number = self.asked
        if script.log:
            with open(script.log, "a", encoding="utf-8") as file:
                file.write(f"{ask.key}\n")
        if script.delay_s:
            await asyncio.sleep(script.delay_s)
        if script.hangs_after is not None and number > script.hangs_after:
            await asyncio.Event().wait()
        if script.stops_after is not None and number > script.stops_after:
            raise EngineStopped(f"its processes are gone after {script.stops_after} answers")
        if script.stops_on and any(script.stops_on in message["content"] for message in ask.chat):
            raise EngineStopped(f"its processes are gone since it was asked about {script.stops_on!r}")

    def close(self) -> None:
        return None


def start_engine(engine: Engine, model: str, scheme: Scheme, ask: AnswerSettings) -> AnswerEngine:
    """Start the engine that the config names.

    Raises:
        UserError: the engine's package is not installed.
    """
    if isinstance(engine, ScriptedEngine):
        return Scripted(engine, scheme)
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise UserError("engine.kind 'vllm': vLLM is not installed. Install the extra `cpu` or `gpu`.") from error
    return Vllm(engine, model, scheme, ask)


def replica_resources(engine: Engine) -> Mapping[str, float]:
    """Return what Ray reserves for one replica; tensor parallel takes that many GPUs."""
    replicas = engine.replicas
    gpus = replicas.gpus
    if isinstance(engine, VllmEngine) and gpus:
        gpus = max(gpus, engine.tensor_parallel)
    return {"num_cpus": replicas.cpus, **({"num_gpus": gpus} if gpus else {})}
