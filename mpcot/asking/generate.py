"""Asking the teacher: pairs x perspectives x samples through Ray Data and an engine, shared by three stages.

Workers append answers to parquet parts as they finish, keyed by all that decides an answer. A rerun
reads the parts and asks only for what is missing, however the rows are laid out or ordered. Of each
answered request the driver holds 16 bytes while it finds out what is missing; all else is in pieces.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.base.errors import UserError
from cluster.base.id_sets import IdSet
from cluster.base.progress import Board, progress
from cluster.base.ray_session import stream_parquet
from cluster.base.shared_folder import Store
from cluster.base.tables import batches_of, rows_of, table_writer
from mpcot.asking.answers import ANSWERS, Answers, TooManyFailed, shelves_of, too_many_failed
from mpcot.asking.engines.start import replica_resources
from mpcot.asking.join_answers import REQUEST, deal
from mpcot.asking.plan import GenerationPlan
from mpcot.asking.worker import AnswerWorker
from mpcot.config import AnswerSettings
from mpcot.records import ANSWER, PAIR

MISSING, TRIED = "missing", "tried"
REQUESTED, REQUESTED_HINTED = "requested.parquet", "requested-hinted.parquet"
TASKS_PER_FILE = 4  # as many as Ray Data has of one file in flight
FILES_AT_A_TIME = 2  # that a replica works on: one begins while the other's last answers are awaited
PAIRS_AT_A_TIME = 8192
KEY = pa.schema([pa.field("key", pa.string())])
MISSING_PAIR = PAIR.append(pa.field("keys", pa.list_(pa.string()))).append(pa.field("file", pa.string()))


def select_pairs(pairs: Path, ask: AnswerSettings) -> Iterator[dict[str, Any]]:
    """Yield the pairs of the asked splits; of each at most `pairs_per_split`, taken in the order of their ids."""
    limit = ask.pairs_per_split
    if limit is None:
        yield from (row for row in rows_of(pairs) if row["split"] in ask.splits)
        return
    chosen: set[str] = set()
    for split in ask.splits:
        ids = (row["pair_id"] for row in rows_of(pairs, ["pair_id", "split"]) if row["split"] == split)
        chosen.update(heapq.nsmallest(limit, ids))
    yield from (row for row in rows_of(pairs) if row["pair_id"] in chosen)


def generate(plan: GenerationPlan, pairs: Iterable[dict[str, Any]], folder: Path, label: str) -> Answers:
    """Ask all that is missing.

    Args:
        folder: the stage's folder; parts go to `folder/answers`, by way of `engine.replicas.store` where it is set.

    Raises:
        UserError: no pairs, or the engine cannot start or stopped.
    """
    shared = _shared(plan, folder)
    shared.child(ANSWERS).bring(folder / ANSWERS, ".parquet")
    _remove_others(folder / ANSWERS, shared.child(ANSWERS))
    requested, missing = _write_missing(plan, pairs, folder)
    if not requested:
        raise UserError(
            f"{label}: no pairs in the splits {', '.join(plan.ask.splits)}. Look at 1-pairs and at `splits`."
        )
    told = {}
    if missing:
        failed, most = _given_up(plan, folder), plan.ask.max_failed_share
        if failed / requested > most:
            said = too_many_failed(failed / requested, most, Counter({"given up in earlier runs": failed}))
            raise UserError(f"{label}: {said} Raise retries to ask them again, or max_failed_share to go on.")
        told = _run_workers(plan, shared, label, (requested, missing, failed))
    shared.child(ANSWERS).bring(folder / ANSWERS, ".parquet")
    for left in (folder / ANSWERS).glob("*.partial"):  # by workers that were killed while they wrote
        left.unlink(missing_ok=True)
    shared.child(MISSING).delete()
    return Answers(folder, label, plan.ask.max_failed_share, requested, missing, plan.hinted, told)


def _shared(plan: GenerationPlan, folder: Path) -> Store:
    """Return what driver and workers share: the stage's folder, or one of its name in the configured store."""
    store = plan.engine.replicas.store
    return Store.at(store).child(folder.name) if store else Store.at(folder)


def _remove_others(answers: Path, shared: Store) -> None:
    """Remove the parts of another version, none of whose keys can be asked for, also where they were brought from."""
    for part in answers.glob("*.parquet"):
        if pq.read_schema(part).names != ANSWER.names:
            part.unlink()
            shared.remove(part.name)


def _keys(answers: Path, chosen: Callable[[pa.RecordBatch], pa.Array]) -> IdSet:
    """Return the keys of the answers that `chosen` marks."""
    batches = batches_of(answers, ["key", "reason", "tries"], PAIRS_AT_A_TIME)
    return IdSet(batch["key"].filter(chosen(batch)).to_pylist() for batch in batches)


def _given_up(plan: GenerationPlan, folder: Path) -> int:
    """Return how many requests failed as often as they may in earlier runs: they are not asked, but count."""
    failed = _keys(folder / ANSWERS, lambda batch: pc.and_(plan.settled(batch), pc.is_valid(batch["reason"])))
    if not len(failed):
        return 0
    failed = failed.minus(_keys(folder / ANSWERS, lambda batch: pc.is_null(batch["reason"])))
    requests = batches_of(folder / (REQUESTED_HINTED if plan.hinted else REQUESTED), ["key"], PAIRS_AT_A_TIME)
    return sum(int(failed.has(batch["key"].to_pylist()).sum()) for batch in requests)


def _write_missing(plan: GenerationPlan, pairs: Iterable[dict[str, Any]], folder: Path) -> tuple[int, int]:
    """Write all requests and the pairs that lack an answer; return the numbers of requests, all and missing."""
    missing = _shared(plan, folder).child(MISSING)
    missing.delete()
    (folder / REQUESTED_HINTED).unlink(missing_ok=True)
    (folder / ANSWERS).mkdir(parents=True, exist_ok=True)
    done = _keys(folder / ANSWERS, plan.settled)
    pairs_per_file = TASKS_PER_FILE * plan.engine.replicas.pairs_per_task
    counts: Counter[str] = Counter()

    def requests() -> Iterator[pa.Table]:
        stream = iter(pairs)
        while rows := list(islice(stream, PAIRS_AT_A_TIME)):
            keys = [[ask.key for _, _, ask in plan.asks(row)] for row in rows]
            flat = [key for own in keys for key in own]
            known = iter(done.has(flat).tolist())
            lacking = [[key for key in own if not next(known)] for own in keys]
            waiting = [row | {"keys": own} for row, own in zip(rows, lacking, strict=True) if own]
            counts["files"] += _write_pairs(waiting, missing, counts["files"], pairs_per_file)
            counts["missing"] += sum(map(len, lacking))
            counts["requested"] += len(flat)
            written.write_table(pa.table([flat], schema=KEY))
            yield pa.table([*([row[name] for row in rows] for name in REQUEST.names[:-1]), keys], schema=REQUEST)

    with table_writer(folder / (REQUESTED_HINTED if plan.hinted else REQUESTED), KEY) as written:
        deal(requests(), REQUEST, shelves_of(folder, plan.hinted) / "requests")
    return counts["requested"], counts["missing"]


def _write_pairs(rows: list[dict[str, Any]], store: Store, first: int, per_file: int) -> int:
    """Write pairs with their missing keys to files numbered from `first` on; return how many files."""
    starts = range(0, len(rows), per_file)
    for number, start in enumerate(starts, first):
        name = f"{number:06d}"
        named = [row | {"file": name} for row in rows[start : start + per_file]]
        store.write_table(f"{name}.parquet", pa.Table.from_pylist(named, MISSING_PAIR))
    return len(starts)


def _run_workers(plan: GenerationPlan, shared: Store, label: str, counts: tuple[int, int, int]) -> dict[str, float]:
    """Ask; `counts` are the requests, those that are missing, and those that were given up before."""
    import ray.data
    import ray.exceptions

    replicas, (requested, missing, failed) = plan.engine.replicas, counts
    # What a worker raises arrives as what it is, not as words of Ray Data about it.
    ray.data.DataContext.get_current().raise_original_map_exception = True
    with progress(label, unit="answer", total=missing) as bar:
        board = Board.start(bar)
        try:
            dataset = stream_parquet(shared.child(MISSING)).map_batches(
                AnswerWorker,
                fn_constructor_args=(
                    plan,
                    shared.child(ANSWERS),
                    shared.child(MISSING).child(TRIED),
                    board.actor,
                    requested,
                    failed,
                ),
                batch_size=replicas.pairs_per_task,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(
                    min_size=replicas.min, max_size=replicas.max, max_concurrent_calls_per_actor=FILES_AT_A_TIME
                ),
                **replica_resources(plan.engine),
            )
            return _told(dataset.iter_batches(batch_size=None))
        except (ray.exceptions.RayError, RuntimeError) as error:
            raise UserError(f"{label}: {_what_happened(error)}") from error
        finally:
            board.stop()


def _told(batches: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Return what the workers told of their engines: the longest start, and how many tokens the prompts had."""
    start_s, prompt, cached = 0.0, 0, 0
    for batch in batches:
        start_s = max(start_s, float(batch["engine_start_s"].max()))
        prompt, cached = prompt + int(batch["prompt_tokens"].sum()), cached + int(batch["cached_tokens"].sum())
    return {"start_s": round(start_s, 2), "prompt_tokens": prompt, "cached_tokens": cached}


def _what_happened(error: BaseException) -> str:
    """Return what the worker itself said, or the last line of what Ray says."""
    import ray.exceptions

    said = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    lines = [line.strip() for line in str(said).splitlines() if line.strip()] or [type(said).__name__]
    # To what a worker raises Ray Data appends lines about its own retries.
    line = lines[-1] if said is error else lines[0]
    if isinstance(said, TooManyFailed):  # to run again would only fail more
        return line
    what = line if isinstance(said, UserError) else f"the engine stopped: {line.rstrip('.')}."
    return f"{what} Finished answers are kept; run again."
