"""The engine vLLM, and its arguments and environment as plain data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from cluster.base.processor import cores, inference_precision
from cluster.models.folders import hub_arguments, name_and_commit
from mpcot.asking.engines.engine import Ask, EngineStopped, Reply
from mpcot.asking.engines.processes import descendants, kill_all
from mpcot.asking.failure_reasons import too_long
from mpcot.asking.parsing import LabelTokens
from mpcot.asking.prompt_length import longest_that_fits
from mpcot.asking.prompts import Message, answer_regex
from mpcot.asking.rendering import end_of_thought, render
from mpcot.config import AnswerSettings, VllmEngine
from mpcot.schemes.scheme import Scheme

# Prefixes are cached in whole blocks. vLLM's default on a CPU is 128 tokens, more than the prompts of a pair share.
CPU_BLOCK_TOKENS = 32
# Turns of a waiting OpenMP thread, some 30 ms: where Ray's processes hold up one thread for a moment, the others are
# back at once. Asleep they would come back late, at every one of a step's many barriers.
SPIN = "10000000"


def engine_arguments(engine: VllmEngine, model: str, gpu: bool) -> dict[str, Any]:
    """Return vLLM's engine arguments as plain data, so that tests and `--dry-run` can look at them."""
    name, commit = name_and_commit(model)
    shared: dict[str, Any] = {
        "model": name,
        **({"revision": commit, "tokenizer_revision": commit} if commit else {}),
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
        # Left to itself, vLLM may give its workers to Ray, since it runs in an actor, and wait for GPUs that we hold.
        backend = "mp" if engine.tensor_parallel > 1 else "uni"
        memory = {"gpu_memory_utilization": engine.gpu_memory_utilization}
        return shared | memory | {"distributed_executor_backend": backend}
    return shared | {"distributed_executor_backend": "uni", "block_size": CPU_BLOCK_TOKENS}


def engine_dtype(engine: VllmEngine, gpu: bool) -> str:
    """Return the number format. On a CPU, `auto` is bf16 only if the processor multiplies it."""
    if engine.dtype != "auto" or gpu:
        return engine.dtype
    return {"fp32": "float32", "bf16": "bfloat16"}[inference_precision("auto", gpu=False)]


def engine_environment(engine: VllmEngine, gpu: bool, cores: list[int], shared_node: bool) -> dict[str, str]:
    """Return the environment of one replica.

    On a CPU the model runs in the process of the engine's core: vLLM's own default puts it into one more, which costs
    another import of vLLM and keeps a core back. A replica that has the node to itself takes all of its cores, and its
    threads spin while they wait for each other; replicas that share a node take as many threads as they ask for.
    """
    shared = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    # The form is ours and no attack: where other processes take the cores, its 5 s are too few, and no answer comes.
    shared |= {"VLLM_REGEX_COMPILATION_TIMEOUT_S": "600"}
    if gpu:
        return shared
    shared |= {"VLLM_CPU_KVCACHE_SPACE": str(engine.cpu_kv_cache_gib), "VLLM_TARGET_DEVICE": "cpu"}
    shared |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    if engine.enforce_eager:  # vLLM would still compile some helpers of the sampler, at every start
        shared |= {"TORCHDYNAMO_DISABLE": "1"}
    if shared_node:
        return shared | {"OMP_NUM_THREADS": str(engine.replicas.cpus)}
    return shared | {"OMP_NUM_THREADS": str(len(cores)), "GOMP_SPINCOUNT": SPIN}


def sampling(ask: AnswerSettings, regex: str, labels: list[int], seed: int | None, tried: int = 0) -> Any:
    """Return vLLM's parameters for a request, with the enforced form and log-probabilities of `labels`.

    The engine writes no text: at every token it would spell all labels too, on the one thread that serves all requests.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    return SamplingParams(
        temperature=ask.temperature_after(tried),
        top_p=ask.top_p,
        max_tokens=ask.max_tokens,
        seed=seed,
        structured_outputs=StructuredOutputsParams(regex=regex),
        logprob_token_ids=labels,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def own_seed(settings: AnswerSettings, ask: Ask, gpu: bool) -> int | None:
    """Return the seed of a request, with which its answer can be repeated, or None where it would cost speed.

    On GPUs, vLLM reads the seeds in the kernel that draws for all requests, and loses nothing (`gumbel_sample` in
    vllm/v1/worker/gpu/sample/sampler.py). With top_p below 1 one seeded request takes the fused kernel for top_p from
    all that are with it in a step, so there is none then. On a CPU, its generators per request fail if a prompt is
    prefilled in pieces (they have no offset).
    """
    return ask.seed if gpu and settings.temperature_after(ask.tried) and settings.top_p == 1 else None


def steps_from_end(said: Any) -> Iterator[tuple[int, dict[int, float]]]:
    """Yield each token of an answer from the last one on, with the log-probabilities at its place by token id.

    They are looked up as they are asked for, and the verdict is at the end.
    """
    known = said.logprobs or ()
    for place in reversed(range(min(len(known), len(said.token_ids)))):
        yield said.token_ids[place], {token: one.logprob for token, one in known[place].items()}


class Vllm:
    """vLLM's asynchronous engine."""

    never_hangs = False
    spent: float | None = None

    def __init__(self, engine: VllmEngine, model: str, scheme: Scheme, ask: AnswerSettings) -> None:
        gpu = engine.replicas.gpus > 0
        shared_node = engine.replicas.max > 1
        os.environ.update(engine_environment(engine, gpu, cores(), shared_node))
        from transformers import AutoTokenizer
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        self.tokenizer = AutoTokenizer.from_pretrained(**hub_arguments(model), trust_remote_code=False)
        self.labels = LabelTokens.of(self.tokenizer, scheme)
        self.limit = engine.prompt_tokens(ask)
        self.regex = answer_regex(scheme, ask.min_chars, ask.max_chars)
        self.ask, self.gpu = ask, gpu
        self.thinking = engine.thinking_tokens if engine.thinking == "on" else 0
        arguments = AsyncEngineArgs(**engine_arguments(engine, model, gpu))
        # In the class for many prompts at once it prefills more of them in a step than in the one for a server.
        self.engine = AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)
        self.processes = descendants()

    def kill(self) -> None:
        """End vLLM's processes at once, hung ones too."""
        kill_all(self.processes)

    def _sampling(self, ask: Ask) -> Any:
        own = own_seed(self.ask, ask, self.gpu)
        return sampling(self.ask, self.regex, self.labels.all, own, ask.tried)

    def _encode(self, chat: list[Message]) -> Sequence[int]:
        return self.tokenizer.encode(render(self.tokenizer, chat, self.thinking > 0), add_special_tokens=False)

    async def _think(self, prompt: Sequence[int], ask: Ask) -> tuple[Sequence[int], int]:
        """Let the model think. Return the prompt with its thoughts, ended, and how many tokens it wrote."""
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        end = end_of_thought(str(self.tokenizer.decode(list(prompt[-16:]))))
        closing = self.tokenizer.encode(f"\n{end}\n\n", add_special_tokens=False)
        freely = SamplingParams(
            temperature=self.ask.temperature_after(ask.tried),
            top_p=self.ask.top_p,
            max_tokens=self.thinking - len(closing),
            seed=self._sampling(ask).seed,
            stop=[end],
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        final = None
        asked = TokensPrompt(prompt_token_ids=list(prompt))
        async for output in self.engine.generate(asked, freely, f"{ask.key}-{ask.seed}-thoughts"):
            final = output
        assert final is not None
        thought = self.tokenizer.encode(final.outputs[0].text.rstrip(), add_special_tokens=False)
        return [*prompt, *thought[: freely.max_tokens], *closing], len(final.outputs[0].token_ids)

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

        final, thoughts = None, 0
        request = f"{ask.key}-{ask.seed}"
        try:
            if self.thinking:
                prompt, thoughts = await self._think(prompt, ask)
            asked = TokensPrompt(prompt_token_ids=list(prompt))
            async for output in self.engine.generate(asked, self._sampling(ask), request):
                final = output
        except EngineDeadError as dead:
            raise EngineStopped(str(dead)) from dead
        assert final is not None
        said = final.outputs[0]
        logprobs = self.labels.logprobs(steps_from_end(said))
        error = "too long: the answer met max_tokens" if said.finish_reason == "length" else None
        written, cached = thoughts + len(said.token_ids), final.num_cached_tokens or 0
        return Reply(self._text(said), logprobs, len(prompt) - thoughts, written, error, cached)

    def _text(self, said: Any) -> str:
        """Return what vLLM itself would write: no control tokens, and not the token that ended the answer."""
        ids = list(said.token_ids[:-1] if said.finish_reason == "stop" else said.token_ids)
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
