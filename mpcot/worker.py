"""The Ray Data actor that holds an engine and appends its answers to parquet parts."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.errors import UserError
from cluster.storage import write_table
from mpcot.config import Replicas
from mpcot.engine import ENGINE_ERROR, PROMPT_TOO_LONG, Ask, EngineStopped, Reply, start_engine
from mpcot.generate import GenerationPlan
from mpcot.labels import Scheme
from mpcot.parsing import parse_answer
from mpcot.perspective import Perspective
from mpcot.records import ANSWER

ASKS_IN_FLIGHT = 1024


class AnswerWorker:
    """Answers batches of pairs; several batches are in flight at once, so that the engine never idles."""

    def __init__(self, plan: GenerationPlan, answers: str, board: Any) -> None:
        self.plan, self.board = plan, board
        self.name = uuid.uuid4().hex[:12]
        self.parts = PartWriter(Path(answers), self.name, plan.engine.replicas)
        self.done = self.tokens = 0
        self.engine = start_engine(plan.engine, plan.model, plan.scheme, plan.ask)
        self.started = time.monotonic()

    async def __call__(self, batch: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        rows = pa.Table.from_pydict({k: list(v) for k, v in batch.items()}).to_pylist()
        asked = [self._answer(pair, *ask) for pair in rows for ask in requests_of(self.plan, pair)]
        gate = asyncio.Semaphore(ASKS_IN_FLIGHT)

        async def bounded(work: Any) -> int:
            async with gate:
                return await work

        tokens = await asyncio.gather(*(bounded(work) for work in asked))
        # Ray takes the batch as done once it is yielded, so its answers must be on disk by then.
        self.parts.flush()
        self._show()
        yield {"answers": [len(tokens)], "output_tokens": [sum(tokens)]}

    async def _answer(self, pair: dict[str, Any], perspective: Perspective, sample: int, ask: Ask) -> int:
        for attempt in range(self.plan.ask.retries + 1):
            reply = await self._reply(Ask(ask.key, ask.chat, ask.seed + attempt, ask.gold))
            row = answer_row(reply, self.plan.scheme)
            if row["reason"] is None or row["reason"].startswith(PROMPT_TOO_LONG):
                break
        self.parts.add(
            row | {"key": ask.key, "pair_id": pair["pair_id"], "perspective": perspective.name, "sample": sample}
        )
        self.done, self.tokens = self.done + 1, self.tokens + reply.output_tokens
        if self.done % 16 == 0:
            self._show()
        return reply.output_tokens

    def _show(self) -> None:
        speed = self.tokens / (time.monotonic() - self.started)
        self.board.put.remote(self.name, self.done, None, {"tokens/s": round(speed, 1)})

    async def _reply(self, ask: Ask) -> Reply:
        try:
            return await self.engine.reply(ask)
        except EngineStopped:
            raise
        except Exception as error:
            return Reply("", None, 0, 0, f"{ENGINE_ERROR}: {type(error).__name__}: {str(error)[:200]}")


def requests_of(plan: GenerationPlan, pair: dict[str, Any]) -> list[tuple[Perspective, int, Ask]]:
    """Return the requests of `pair` that are still missing, by its column `keys`.

    Raises:
        UserError: this worker comes to other keys than the driver.
    """
    missing = set(pair["keys"])
    found = [ask for ask in plan.asks(pair) if ask[2].key in missing]
    if len(found) != len(missing):
        raise UserError("this worker would ask otherwise than the driver: run one version of broadfast on all nodes")
    return found


def answer_row(reply: Reply, scheme: Scheme) -> dict[str, Any]:
    """Return a reply as the columns of an answer; `reason` is set when it failed."""
    parsed = parse_answer(reply.text, scheme)
    return {
        "rationale": parsed.rationale,
        "verdict": parsed.verdict,
        "logprobs": reply.logprobs,
        "prompt_tokens": reply.prompt_tokens,
        "output_tokens": reply.output_tokens,
        "reason": reply.error or parsed.reason,
    }


class PartWriter:
    """Appends answers to numbered parts, bounded by rows and by seconds."""

    def __init__(self, folder: Path, worker: str, bounds: Replicas) -> None:
        self.folder, self.worker, self.bounds = folder, worker, bounds
        self.rows: list[dict[str, Any]] = []
        self.number = 0
        self.flushed = time.monotonic()
        os.makedirs(folder, exist_ok=True)

    def add(self, row: dict[str, Any]) -> None:
        """Take one answer; write the part when it is full or old enough."""
        self.rows.append(row)
        waited = time.monotonic() - self.flushed
        if len(self.rows) >= self.bounds.flush_rows or waited >= self.bounds.flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        self.flushed = time.monotonic()
        if not self.rows:
            return
        rows, self.rows = self.rows, []
        write_table(self.folder / f"{self.worker}-{self.number:06d}.parquet", pa.Table.from_pylist(rows, ANSWER))
        self.number += 1
