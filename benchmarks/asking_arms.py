"""Asks a model about judged pairs with the short prompt and with ours, for `asking.py`.

Answers go to a JSONL file one by one, under keys that depend on model, prompt and settings, so that a run that was
cut short goes on. The file holds no text of a data set or of an answer.
"""

from __future__ import annotations

import asyncio
import copy
import json
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from results import RESULTS

from cluster.base.progress import progress
from cluster.base.stage_folder import StageFolder, digest
from cluster.base.tables import read_table
from cluster.models.folders import check_model, model_fingerprint
from mpcot.asking.engines.engine import Ask, Reply
from mpcot.asking.engines.vllm_engine import Vllm
from mpcot.asking.parsing import parse_answer
from mpcot.asking.plan import GenerationPlan
from mpcot.asking.prompts import EVERYTHING, VERDICT, pair_text
from mpcot.config import JudgeSettings, PerspectiveSettings, VllmEngine
from mpcot.filters.chain import Chain, WellFormed
from mpcot.filters.config import DEFAULT
from mpcot.pairs.splits import unit_hash
from mpcot.pairs.stage import run as write_pairs
from mpcot.perspectives.perspective import load_perspectives
from mpcot.schemes.scheme import Scheme, load_scheme
from mpcot.sources.clean_rows import reason_of
from mpcot.sources.config import ChorusSource, EsciSource, LabelSettings, PairsStage, SplitSettings
from mpcot.votes import Wanted

RECORDS = RESULTS / "asking.jsonl"
SHORT = tomllib.loads((Path(__file__).parent / "short_prompt.toml").read_text(encoding="utf-8"))
SEED, IN_FLIGHT = 13, 48
SPLIT = SplitSettings(train=0.6, dev=0.15, test=0.25)  # as in workflows/configs/chorus.toml
SCHEMES = {"esci": "esci", "chorus": "graded"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """One question about a pair; `prompt` is "short" or "ours"."""

    prompt: str
    pair: Row
    perspective: str
    ask: Ask


def labelled_pairs(data: str, path: str) -> list[Row]:
    """Return the judged pairs of a data set as stage 1 makes them; of Chorus those of the train and test queries."""
    source = EsciSource(path=path, locales=("us",)) if data == "esci" else ChorusSource(path=path)
    with tempfile.TemporaryDirectory(prefix="broadfast-asking-") as work:
        folder = StageFolder(Path(work), "1-pairs")
        labels = LabelSettings(scheme=SCHEMES[data])
        write_pairs(PairsStage(seed=SEED, source=source, labels=labels, split=SPLIT), folder)
        rows = read_table(folder.path / "pairs.parquet").to_pylist()
    return [row for row in rows if data == "esci" or row["split"] in ("train", "test")]


def balanced(pairs: Sequence[Row], wanted: int) -> list[Row]:
    """Return `wanted` pairs, equally many of each label as far as there are so many; fewer pairs are the first ones."""
    by_label: dict[str, list[Row]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: unit_hash("asking", pair["pair_id"], SEED)):
        by_label[pair["label"]].append(pair)
    most = -(-wanted // len(by_label))
    turns = [by_label[label][turn] for turn in range(most) for label in by_label if turn < len(by_label[label])]
    return turns[:wanted]


def plan_of(model: str, scheme: Scheme, engine: VllmEngine, examples: int) -> GenerationPlan:
    """Return the plan by which we ask as stage 7 does, with the defaults of its settings but for worked examples."""
    perspectives, ask = load_perspectives(PerspectiveSettings()), JudgeSettings(few_shot=examples)
    return GenerationPlan(model, model_fingerprint(model), engine, scheme, perspectives, ask, SEED)


def requests(plan: GenerationPlan, pairs: Sequence[Row]) -> Iterator[Request]:
    """Yield the requests pair by pair, so that what is answered early is balanced as well."""
    for pair in pairs:
        for perspective, _, ask in plan.asks(pair):
            chat = short_chat(pair, perspective.name, plan.scheme)
            key = digest(["short", plan.model_digest, SHORT, chat])
            yield Request("short", pair, perspective.name, Ask(key, chat, ask.seed, pair["label"]))
            yield Request("ours", pair, perspective.name, ask)


def short_chat(pair: Row, perspective: str, scheme: Scheme) -> list[dict[str, str]]:
    """Return the short prompt for a pair and a perspective."""
    lines = [f"{code} = {SHORT['schemes'][scheme.name][code]}" for code in scheme.codes]
    product = [f"Query: {pair['query']}", f"Product: {pair['title']}"]
    if pair["brand"] and pair["brand"].lower() not in pair["title"].lower():
        product.append(f"Brand: {pair['brand']}")
    user = "\n".join(product) + "\n\n" + SHORT["questions"][perspective]
    return [{"role": "system", "content": "\n".join([SHORT["task"], *lines])}, {"role": "user", "content": user}]


def short_engine(engine: Vllm, scheme: Scheme) -> Vllm:
    """Return the engine with the form and length of the short prompt's answers; both share one loaded model."""
    short = copy.copy(engine)
    bounds = f"{{{SHORT['min_chars']},{SHORT['max_chars']}}}"
    short.regex = f"[^\\n]{bounds}\\n{VERDICT} ({'|'.join(scheme.codes)})"
    short.ask = engine.ask.model_copy(update={name: SHORT[name] for name in ("max_tokens", "min_chars", "max_chars")})
    return short


def recorded() -> dict[str, Row]:
    """Return the recorded answers by key; a line that was cut off by a killed run is left out."""
    lines = RECORDS.read_text(encoding="utf-8").splitlines() if RECORDS.exists() else ()
    rows = (json.loads(line) for line in lines if line.endswith("}"))
    return {row["key"]: row for row in rows}


def record(data: str, model: str, request: Request, reply: Reply, scheme: Scheme, chain: Chain) -> Row:
    """Return what is kept of an answer. `reason` says why there is no verdict, `objection` what a filter objects to."""
    parsed = parse_answer(reply.text, scheme)
    reason = reply.error or parsed.reason
    objection = None
    if not reason:
        assert parsed.rationale and parsed.verdict
        wanted = Wanted(parsed.verdict, 1.0, True)  # so that the verdict itself meets no objection
        objection = chain.reason(
            WellFormed(
                request.pair["pair_id"],
                request.perspective,
                parsed.rationale,
                parsed.verdict,
                wanted,
                text=pair_text(request.pair, EVERYTHING),
            )
        )
    return {
        "key": request.ask.key,
        "model": model,
        "data": data,
        "prompt": request.prompt,
        **about(request.pair),
        "perspective": request.perspective,
        "verdict": None if reason else parsed.verdict,
        "logprobs": reply.logprobs and [round(value, 4) for value in reply.logprobs],
        "prompt_tokens": reply.prompt_tokens,
        "output_tokens": reply.output_tokens,
        "reason": reason and reason_of(reason),
        "objection": objection and reason_of(objection),
    }


def answer(data: str, path: str, model: str, wanted: int, examples: int) -> Row:
    """Answer what is not recorded yet, and return the key of each answer with the pair that it is about.

    Pairs that a prompt does not tell apart, as two offers of one title, share an answer.
    """
    folder = check_model("--model", model)
    scheme = load_scheme(SCHEMES[data])
    engine = VllmEngine(max_model_len=4096, max_num_seqs=IN_FLIGHT, enforce_eager=True, cpu_kv_cache_gib=2)
    plan = plan_of(folder, scheme, engine, examples)
    asked = list(requests(plan, balanced(labelled_pairs(data, path), wanted)))
    known = recorded()
    missing = [request for request in asked if request.ask.key not in known]
    if missing:
        asyncio.run(_answer(data, Path(folder).name, plan, engine, missing, len(asked)))
    return {"asked": [{"key": request.ask.key} | about(request.pair) for request in asked]}


def about(pair: Row) -> Row:
    """Return what a record says of its pair."""
    return {"pair": pair["pair_id"], "query": pair["query_id"], "gold": pair["label"]}


async def _answer(
    data: str, model: str, plan: GenerationPlan, settings: VllmEngine, missing: list[Request], total: int
) -> None:
    chain = Chain([step for step in DEFAULT if step.kind != "verdict"], plan.scheme, plan.perspectives)
    known = total - len(missing)
    bar_of = progress(f"{data}, {model}", unit="answer", total=total, done=known)
    with bar_of as bar, RECORDS.open("a", encoding="utf-8") as file:
        bar.wait("vLLM to start and load the model")
        ours = Vllm(settings, plan.model, plan.scheme, plan.ask)
        engines = {"ours": ours, "short": short_engine(ours, plan.scheme)}
        done, seats = count(known + 1), asyncio.Semaphore(IN_FLIGHT)
        bar.update(known)

        async def one(request: Request) -> None:
            async with seats:
                reply = await engines[request.prompt].reply(request.ask)
            assert reply.output_tokens or reply.error, "no answer: the engine's log says why"
            file.write(json.dumps(record(data, model, request, reply, plan.scheme, chain)) + "\n")
            file.flush()
            bar.update(next(done))

        await asyncio.gather(*map(one, missing))
        ours.engine.shutdown()
