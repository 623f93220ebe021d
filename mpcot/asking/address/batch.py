"""Requests for an offline batch in the format of OpenAI's batch API, and its answers taken into a stage's parts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.base.errors import UserError
from cluster.base.whole_files import whole_file
from mpcot.asking.address.chat_requests import read_reply, request_body
from mpcot.asking.address.estimate import SAMPLE, Estimate, estimated
from mpcot.asking.answers import ANSWERS, OF_BATCH
from mpcot.asking.engines.config import OpenAiEngine
from mpcot.asking.engines.engine import Ask, Reply
from mpcot.asking.generate import answered, missing_asks
from mpcot.asking.missing_requests import shared_folder
from mpcot.asking.plan import GenerationPlan
from mpcot.asking.worker import answer_row
from mpcot.records import ANSWER

URL = "/v1/chat/completions"
MOST_REQUESTS, MOST_BYTES = 50_000, 190 * 10**6  # of one file; hosts take 50,000 requests and 200 MB
NAMED = 3
Pairs = Iterable[pa.RecordBatch]


@dataclass
class BatchRead:
    """What a file of answers held. `bad` are lines that are no answers, `failed` requests that the host failed at."""

    taken: int = 0
    answered_before: int = 0
    bad: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def write_batch(plan: GenerationPlan, pairs: Pairs, folder: Path, target: Path) -> tuple[Estimate, dict[Path, int]]:
    """Write the requests that have no answer yet; return an estimate of them, and how many are in each file.

    Args:
        folder: the stage's folder.
        target: the first file; further ones are numbered.

    Raises:
        UserError: the files cannot be written.
    """
    missing = missing_asks(plan, pairs, folder)
    sample = list(islice(missing, SAMPLE))
    files = _write(plan, chain(sample, missing), target)
    return estimated(plan, sample, sum(files.values()), batch=True), files


def _write(plan: GenerationPlan, asks: Iterable[Ask], target: Path) -> dict[Path, int]:
    assert isinstance(plan.engine, OpenAiEngine)
    engine, files = plan.engine, dict[Path, int]()
    lines = (_line(plan, engine, ask) for ask in asks)
    target.parent.mkdir(parents=True, exist_ok=True)
    waiting = next(lines, None)
    while waiting is not None:
        path = target if not files else target.with_stem(f"{target.stem}-{len(files) + 1}")
        with whole_file(path) as partial, partial.open("wb") as file:
            files[path] = 0
            while waiting is not None and files[path] < MOST_REQUESTS and file.tell() + len(waiting) <= MOST_BYTES:
                file.write(waiting)
                files[path] += 1
                waiting = next(lines, None)
    return files


def _line(plan: GenerationPlan, engine: OpenAiEngine, ask: Ask) -> bytes:
    body = request_body(engine, plan.scheme, plan.ask, ask.chat)
    line = {"custom_id": ask.key, "method": "POST", "url": URL, "body": body}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _owned(plan: GenerationPlan, pairs: Pairs) -> Iterator[dict[str, Any]]:
    """Yield the key of every request with the columns that say whose answer it gets."""
    for pair in (row for batch in pairs for row in batch.to_pylist()):
        for perspective, sample, ask in plan.asks(pair):
            yield {"key": ask.key, "pair_id": pair["pair_id"], "perspective": perspective.name, "sample": sample}


def read_batch(plan: GenerationPlan, pairs: Pairs, folder: Path, file: Path) -> BatchRead:
    """Take the answers of a file into a part of the stage. A file that was read before adds nothing.

    Raises:
        UserError: the file cannot be read, or holds answers to requests that this stage does not make; nothing is
            taken then.
    """
    found = BatchRead()
    replies = _replies(file, plan, found)
    owners = {owner["key"]: owner for owner in _owned(plan, pairs) if owner["key"] in replies}
    if unknown := [key for key in replies if key not in owners]:
        raise UserError(
            f"{file}: {len(unknown):,} of its {len(replies):,} answers belong to no request of {folder.name} in "
            f"{folder.parent}, first custom_id {unknown[0]}. It is the file of another run, or settings have changed "
            "since `broadfast batch write`. Write the requests again."
        )
    missing = ~answered(plan, folder).has(replies)
    found.answered_before = int((~missing).sum())
    asked = [(reply, owners[key]) for (key, reply), lacks in zip(replies.items(), missing, strict=True) if lacks]
    rows = [answer_row(reply, plan.scheme, plan.ask.asks_confidence) | owner | {"tries": 1} for reply, owner in asked]
    with file.open("rb") as whole:
        part = f"{OF_BATCH}{hashlib.file_digest(whole, 'sha256').hexdigest()[:12]}-000000.parquet"
    parts = shared_folder(plan, folder, begin=True).child(ANSWERS)
    if rows and part not in {entry.name for entry in parts.files()}:
        parts.write_table(part, pa.Table.from_pylist(rows, ANSWER))
        found.taken = len(rows)
    return found


def _replies(file: Path, plan: GenerationPlan, found: BatchRead) -> dict[str, Reply]:
    """Return the answers in a file by the key of the request. Of equal keys the first counts."""
    replies: dict[str, Reply] = {}
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    _take(line, f"line {number}", plan, replies, found)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error}. Give the file of answers that the host made.") from error
    return replies


def _take(line: bytes, place: str, plan: GenerationPlan, replies: dict[str, Reply], found: BatchRead) -> None:
    try:
        said = json.loads(line)
        key, response = str(said["custom_id"]), said["response"] or {}
        if response.get("status_code") == 200:
            replies.setdefault(key, read_reply(response["body"], [], plan.scheme, plan.ask.asks_confidence))
            return
        why = said.get("error") or (response.get("body") or {}).get("error") or {}
        found.failed.append(f"{place} ({why.get('message', 'no answer')})"[:200])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        found.bad.append(place)


def said_of(found: BatchRead) -> Iterator[str]:
    """Yield lines about what a file held."""
    counts = Counter(taken=found.taken, answered_before=found.answered_before, failed=len(found.failed))
    yield ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
    for title, lines in (("no answers in", found.bad), ("the host failed at", found.failed)):
        if lines:
            more = f" and {len(lines) - NAMED:,} more" if len(lines) > NAMED else ""
            yield f"{title} {', '.join(lines[:NAMED])}{more}: to be asked again"
