"""Compares the generation stage with the bare engine, and its order of the prompt with the usual one.

Three arms answer the same pairs with the same engine arguments, threads and sampling, each in a process of its own:
`bare` hands the stage's prompts to vllm.LLM, `stage` is the stage from pairs to sorted tables, and `perspective_first`
is the stage with the perspective's question before the product. Times do not include the start of the engine.
With `--distilabel-python`, an interpreter that has distilabel and this vLLM, distilabel's pipeline does the job too.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from results import Figure, in_own_process, write_results

from cluster.base.ray_session import ray_session
from cluster.base.stage_folder import StageFolder, digest, write_json
from cluster.config import ClusterSettings
from cluster.models.folders import check_model, model_fingerprint
from mpcot.asking.engines.vllm_engine import engine_arguments, engine_environment, sampling
from mpcot.asking.generate import generate
from mpcot.asking.parsing import LabelTokens
from mpcot.asking.plan import GenerationPlan
from mpcot.asking.prompts import Frame, Message, answer_regex, pair_text, question
from mpcot.asking.rendering import render
from mpcot.config import AnswerSettings, PerspectiveSettings, Replicas, VllmEngine
from mpcot.filters.chain import Chain
from mpcot.filters.config import DEFAULT
from mpcot.perspectives.perspective import Perspective, load_perspectives
from mpcot.rationales import write_outcomes
from mpcot.schemes.scheme import load_scheme

MODEL = Path(__file__).parents[1] / "models" / "smollm2-135m-instruct"
ARMS = ("bare", "stage", "perspective_first")
DISTILABEL, DISTILABEL_BATCH = "distilabel", 512
DISTILABEL_SCRIPT = Path(__file__).parent / "contest" / "distilabel_arm.py"
LEAST_TOKENS = 250
# Greedy, so that all arms write the same amount. Answers are short, as in a run that needs verdicts most.
ASK = AnswerSettings(
    temperature=0, max_tokens=40, min_chars=20, max_chars=60, description_chars=4000, guide="short", retries=0
)
ENGINE = VllmEngine(max_model_len=1024, enforce_eager=True, replicas=Replicas(cpus=2))
KINDS = ("cordless drill", "espresso machine", "hiking rucksack", "desk lamp", "water filter", "tool case")
PARTS = ("housing", "handle", "cover", "frame", "clasp", "switch", "base", "strap", "hinge", "lining", "cable", "foot")
STUFFS = ("brushed steel", "oak", "felt", "glass fibre", "rubber", "cast aluminium", "cork", "nylon", "brass", "linen")
GOODS = ("keeps its shape", "is easy to clean", "comes off without tools", "can be had as a spare", "does not rust")


class PerspectiveFirst(GenerationPlan):
    """The same requests with the question first, as a prompt template for each perspective would have it."""

    def _asked(self, pair: dict[str, Any]) -> Iterator[tuple[Perspective, Frame, list[Message], list[str]]]:
        for perspective, frame, (system, user), keys in super()._asked(pair):
            asked = question(perspective, self.ask.guide)
            text = f"{asked}\n\n{user['content'].removesuffix(asked).rstrip()}"
            yield perspective, frame, [system, user | {"content": text}], keys


def product(number: int) -> dict[str, Any]:
    """Return a pair whose product has a long invented description; no two descriptions begin alike."""
    draw = random.Random(number)
    kind = draw.choice(KINDS)
    details = [
        f"The {draw.choice(PARTS)} of {draw.choice(STUFFS)}, {draw.randint(11, 989)} mm, {draw.choice(GOODS)}."
        for _ in range(draw.randint(17, 36))
    ]
    row: dict[str, Any] = {"pair_id": digest(["product", number]), "query_id": digest(kind), "locale": "us"}
    row |= {"product_id": str(number), "query": kind, "title": f"{kind.title()} No. {number}", "brand": None}
    return row | {"description": " ".join(details), "label": draw.choice("ESCI"), "split": "train"}


def plan(order: type[GenerationPlan]) -> GenerationPlan:
    model = check_model("benchmark", str(MODEL))
    scheme, perspectives = load_scheme("esci"), load_perspectives(PerspectiveSettings())
    return order(model, model_fingerprint(model), ENGINE, scheme, perspectives, ASK, seed=1)


def run_bare(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Answer with vllm.LLM. Building and encoding the prompts counts, as it does in the stage."""
    own = plan(GenerationPlan)
    os.environ.update(engine_environment(ENGINE, False, sorted(os.sched_getaffinity(0)), shared_node=False))
    from transformers import AutoTokenizer
    from vllm import LLM
    from vllm.inputs import TokensPrompt

    began = time.monotonic()
    engine = LLM(**engine_arguments(ENGINE, own.model, gpu=False))
    tokenizer = AutoTokenizer.from_pretrained(own.model, trust_remote_code=False)
    shortest = min(len(tokenizer.encode(pair_text(pair, ASK.description_chars))) for pair in pairs)
    assert shortest >= LEAST_TOKENS, f"a product of {shortest} tokens, not {LEAST_TOKENS}"
    form = answer_regex(own.scheme, ASK.min_chars, ASK.max_chars)
    parameters = sampling(ASK, form, LabelTokens.of(tokenizer, own.scheme).all, None)
    start_s, started = time.monotonic() - began, time.monotonic()
    chats = [ask.chat for pair in pairs for _, _, ask in own.asks(pair)]
    prompts = [tokenizer.encode(render(tokenizer, chat), add_special_tokens=False) for chat in chats]
    asked = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
    said = engine.generate(asked, parameters, use_tqdm=False)
    seconds = time.monotonic() - started
    cached = sum(output.num_cached_tokens or 0 for output in said)
    written = sum(len(output.outputs[0].token_ids) for output in said)
    counts = {"answers": len(said), "prompt_tokens": sum(map(len, prompts)), "cached_tokens": cached}
    return counts | {"output_tokens": written, "seconds": seconds, "engine_start_s": start_s}


def run_stage(pairs: list[dict[str, Any]], order: type[GenerationPlan]) -> dict[str, Any]:
    """Answer with the stage, from the requests to the manifest."""
    own = plan(order)
    with tempfile.TemporaryDirectory(prefix="broadfast-generation-") as work:
        folder = StageFolder(Path(work), "2-rationales", {}, {"1-pairs": "made"})
        with ray_session(ClusterSettings(num_cpus=2, object_store_mb=200)):
            started = time.monotonic()
            answers = generate(own, [pa.RecordBatch.from_pylist(pairs)], folder.path, "rationales")
            tally = write_outcomes([answers], Chain(DEFAULT, own.scheme), folder)
            folder.finish(tally.counts([answers]), tally.figures([answers]))
            seconds = time.monotonic() - started
    told = answers.engine
    prompt, written = tally.tokens["prompt_tokens"], tally.tokens["output_tokens"]
    counts = {"answers": answers.requested, "prompt_tokens": prompt, "cached_tokens": told["cached_tokens"]}
    times = {"seconds": seconds - told["start_s"], "engine_start_s": told["start_s"]}
    return counts | {"output_tokens": written} | times


def distilabel_job(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the job for `contest/distilabel_arm.py`: the same prompts, order, engine and form of answer."""
    own = plan(GenerationPlan)
    chats = [ask.chat for pair in pairs for _, _, ask in own.asks(pair)]
    return {
        "rows": [{"system_prompt": system["content"], "instruction": user["content"]} for system, user in chats],
        "batch": DISTILABEL_BATCH,
        "form": answer_regex(own.scheme, ASK.min_chars, ASK.max_chars),
        "sampling": {"temperature": ASK.temperature, "max_new_tokens": ASK.max_tokens},
        "engine": engine_arguments(ENGINE, own.model, gpu=False),
        "environment": engine_environment(ENGINE, False, sorted(os.sched_getaffinity(0)), shared_node=False),
    }


def run_arm(arm: str, count: int) -> dict[str, Any]:
    pairs = [product(number) for number in range(count)]
    if arm == "bare":
        return run_bare(pairs)
    return run_stage(pairs, GenerationPlan if arm == "stage" else PerspectiveFirst)


def measure(arm: str, count: int, distilabel: str = "") -> dict[str, Any]:
    """Run one arm in a process of its own and return its row."""
    with tempfile.TemporaryDirectory(prefix="broadfast-generation-") as work:
        if arm == DISTILABEL:
            write_json(job := Path(work) / "job.json", distilabel_job([product(number) for number in range(count)]))
            row = in_own_process(DISTILABEL_SCRIPT, job, python=distilabel)
        else:
            row = in_own_process(__file__, "--pairs", count, "--arm", arm)
    row = {"arm": arm} | row
    row["prefill_tokens"] = row["prompt_tokens"] - row["cached_tokens"]
    row["output_tokens_per_s"] = round(row["output_tokens"] / row["seconds"], 2)
    print(row, flush=True)
    return row


def figures(bare: dict[str, Any], stage: dict[str, Any], first: dict[str, Any]) -> list[Figure]:
    speed = stage["output_tokens_per_s"] / bare["output_tokens_per_s"]
    prefill = stage["prefill_tokens"] / first["prefill_tokens"]
    faster = first["seconds"] / stage["seconds"]
    hits = stage["cached_tokens"] / stage["prompt_tokens"]
    return [
        Figure("pipeline_over_bare_engine", speed, "ratio of output tokens/s", at_least=0.97),
        Figure("prefill_tokens_over_perspective_first", prefill, "ratio of tokens", at_most=0.45),
        Figure("speedup_over_perspective_first", faster, "ratio of times", at_least=1.3),
        Figure("prefix_cache_hit_rate", hits, "share of prompt tokens, as vLLM reports"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=400, help="pairs, three requests each")
    parser.add_argument("--distilabel-python", help="interpreter of an environment with distilabel and this vLLM")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--told", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.arm:
        write_json(given.told, run_arm(given.arm, given.pairs))
        return
    rows = [measure(arm, given.pairs) for arm in ARMS]
    found = figures(*rows)
    if given.distilabel_python:
        rows.append(measure(DISTILABEL, given.pairs, given.distilabel_python))
        ratio = rows[1]["output_tokens_per_s"] / rows[-1]["output_tokens_per_s"]
        found.append(Figure("pipeline_over_distilabel", ratio, "ratio of output tokens/s"))
    write_results("generation", found, rows)


if __name__ == "__main__":
    main()
