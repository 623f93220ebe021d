"""Answers the same prompts through `vllm serve` on loopback and through vLLM in this process, for `asking.py`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.base.free_port import free_port
from cluster.base.processor import cores
from cluster.base.progress import waiting_for
from cluster.models.folders import check_model, model_fingerprint
from mpcot.asking.address.meter import Grant
from mpcot.asking.engines.config import OpenAiEngine
from mpcot.asking.engines.engine import Ask
from mpcot.asking.engines.start import start_engine
from mpcot.asking.engines.vllm_engine import engine_arguments, engine_environment
from mpcot.asking.plan import GenerationPlan
from mpcot.config import JudgeSettings, PerspectiveSettings, VllmEngine
from mpcot.perspectives.perspective import load_perspectives
from mpcot.schemes.scheme import load_scheme
from mpcot.sources.catalogue.source import read_catalogue
from mpcot.sources.clean_rows import Cleaning
from mpcot.sources.config import CatalogueSource

ARMS = ("in process", "address")
ENGINE = VllmEngine(max_model_len=4096, max_num_seqs=48, enforce_eager=True)
NAME = "teacher"
START_S = 900.0


class FreeMeter:
    """Grants every request at once, as here nothing limits them."""

    async def reserve(self, prompt_tokens: int, output_tokens: int) -> Grant:
        return Grant(True)

    async def settle(self, reserved: tuple[int, int], prompt: int, cached: int, output: int) -> float:
        return 0.0

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def catalogue_asks(model: str, count: int) -> tuple[GenerationPlan, list[Ask]]:
    """Return the plan and the requests about `count` pairs of the catalogue, with the prompts of stage 7."""
    scheme, perspectives = load_scheme("esci"), load_perspectives(PerspectiveSettings())
    plan = GenerationPlan(model, model_fingerprint(model), ENGINE, scheme, perspectives, JudgeSettings(), seed=13)
    rows = read_catalogue(CatalogueSource(pairs=count), Cleaning(scheme.codes, {}, "us")).rows.to_pylist()
    pairs = [row | {"pair_id": str(row["source_row"])} for row in rows]
    return plan, [ask for pair in pairs for _, _, ask in plan.asks(pair)]


@contextmanager
def served(model: str) -> Iterator[str]:
    """Serve the model with the arguments and environment of the engine in the process; yield the address."""
    port = free_port()
    given = engine_arguments(ENGINE, model, gpu=False)
    flags = [f"--{name.replace('_', '-')}" if value is True else f"--{name.replace('_', '-')}={value}"
             for name, value in given.items() if name != "model" and value is not False]  # fmt: skip
    # What `vllm serve` starts; the command itself asks for the metadata of `vllm`, which the CPU build does not have.
    server_module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command = [*server_module, "--model", model, "--served-model-name", NAME, *flags]
    command += ["--host", "127.0.0.1", "--port", str(port), "--uvicorn-log-level", "warning"]
    environment = os.environ | engine_environment(ENGINE, False, cores(), shared_node=False)
    with subprocess.Popen(command, env=environment) as server:
        try:
            with waiting_for("vllm serve to load the model"):
                _wait(f"http://127.0.0.1:{port}/health", server)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def _wait(address: str, server: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < ends:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise SystemExit("vllm serve did not start")


async def _answered(engine: Any, asks: list[Ask]) -> dict[str, Any]:
    """Answer one request to warm up, then all of the others; return counts and seconds."""
    warm = await engine.reply(asks[0])
    assert warm.error is None, warm.error
    started = time.monotonic()
    replies = await asyncio.gather(*(engine.reply(ask) for ask in asks[1:]))
    seconds = time.monotonic() - started
    failed = sum(reply.error is not None for reply in replies)
    written, read = (sum(getattr(reply, name) for reply in replies) for name in ("output_tokens", "prompt_tokens"))
    counts = {"answers": len(replies), "failed": failed, "prompt_tokens": read, "output_tokens": written}
    return counts | {"seconds": seconds, "output_tokens_per_s": written / seconds}


async def _in_process(plan: GenerationPlan, asks: list[Ask]) -> dict[str, Any]:
    return await _answered(start_engine(ENGINE, plan.model, plan.scheme, plan.ask), asks)


async def _behind(address: str, plan: GenerationPlan, asks: list[Ask]) -> dict[str, Any]:
    engine = OpenAiEngine(base_url=address, model=NAME, max_in_flight=len(asks), timeout_s=3600)
    return await _answered(start_engine(engine, "", plan.scheme, plan.ask, FreeMeter()), asks)


def run_arm(arm: str, model: str, count: int) -> dict[str, Any]:
    """Return the row of one arm."""
    plan, asks = catalogue_asks(check_model("--model", model), count)
    if arm == "in process":
        found = asyncio.run(_in_process(plan, asks))
    else:
        with served(plan.model) as address:
            found = asyncio.run(_behind(address, plan, asks))
    return {"model": Path(plan.model).name, "arm": arm} | found
