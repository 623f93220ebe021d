"""Asks the teacher about pairs, from every perspective and as often as configured. Three stages use it.

Workers write answers to parquet parts as they finish, under keys that depend on all that an answer depends on. A rerun
reads the parts and asks only for what is missing, in whatever order the rows come.
"""

from __future__ import annotations

import gc
import heapq
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.base.errors import UserError
from cluster.base.id_sets import IdSet
from cluster.base.ordered_tasks import in_tasks
from cluster.base.progress import Board, progress
from cluster.base.ray_session import stream_parquet
from cluster.base.shared_folder import SharedFolder
from cluster.base.tables import batches_of, rows_of
from mpcot.asking.address.meter import SharedMeter, spent_in, usage_figures
from mpcot.asking.answers import ANSWERS, Answers, TooManyFailed, too_many_failed
from mpcot.asking.engines.config import OpenAiEngine
from mpcot.asking.engines.engine import Ask
from mpcot.asking.engines.start import replica_resources
from mpcot.asking.merge_parts import bring_parts
from mpcot.asking.missing_requests import MISSING, PAIRS_PER_TASK, given_up, shared_folder, write_missing
from mpcot.asking.plan import GenerationPlan
from mpcot.asking.read_parts import answers_in
from mpcot.asking.worker import AnswerWorker
from mpcot.config import AnswerSettings, JudgeSettings, VllmEngine

TRIED = "tried"
FILES_AT_A_TIME = 2  # per replica: one begins while the last answers of the other are awaited
PAIRS_AT_A_TIME = 8192


def select_pairs(pairs: Path, ask: AnswerSettings) -> Iterator[pa.RecordBatch]:
    """Yield the pairs of the wanted splits, some at a time, of each split at most the first `pairs_per_split` by id.

    Of the unlabelled ones at most the first `judge.budget_pairs` are among them, in the order of the file.
    """
    left = ask.budget_pairs if isinstance(ask, JudgeSettings) else None
    for batch in _of_splits(pairs, ask):
        chosen = batch
        if left is not None:
            unlabelled = pc.equal(batch["split"], "unlabelled")
            within = pc.less_equal(pc.cumulative_sum(unlabelled.cast(pa.int64())), left)
            chosen, left = batch.filter(pc.or_(pc.invert(unlabelled), within)), max(0, left - unlabelled.true_count)
        if len(chosen):
            yield chosen


def _of_splits(pairs: Path, ask: AnswerSettings) -> Iterator[pa.RecordBatch]:
    column, wanted = "split", set[str](ask.splits)
    if ask.pairs_per_split is not None:
        column, wanted = "pair_id", set()
        for split in ask.splits:
            ids = (row["pair_id"] for row in rows_of(pairs, ["pair_id", "split"]) if row["split"] == split)
            wanted.update(heapq.nsmallest(ask.pairs_per_split, ids))
    among = pa.array(wanted, pa.string())
    for batch in batches_of(pairs, batch=PAIRS_PER_TASK):
        yield batch.filter(pc.is_in(batch[column], among))


def generate(plan: GenerationPlan, pairs: Iterable[pa.RecordBatch], folder: Path, label: str) -> Answers:
    """Ask all requests that have no answer yet.

    Args:
        folder: the stage's folder. Parts go to `folder/answers`, by way of `engine.replicas.store` if that is set.

    Raises:
        UserError: there are no pairs, or the engine cannot start or has stopped.
    """
    shared = shared_folder(plan, folder, begin=True)
    for place in (shared, *_of_one_run(plan, folder)):
        bring_parts(place.child(ANSWERS), folder / ANSWERS)
    requested, missing = write_missing(plan, pairs, folder, in_tasks)
    if not requested:
        raise UserError(f"{label}: no pairs in the splits {', '.join(plan.ask.splits)}. Check 1-pairs and `splits`.")
    told = {}
    if missing:
        failed, most = given_up(plan, folder), plan.ask.max_failed_share
        if failed / requested > most:
            said = too_many_failed(failed / requested, most, Counter({"given up in earlier runs": failed}))
            raise UserError(f"{label}: {said} Raise retries to ask them again, or max_failed_share to go on.")
        plan.check()
        told = _run_workers(plan, folder, shared, label, (requested, missing, failed))
    bring_parts(shared.child(ANSWERS), folder / ANSWERS)
    for left in (folder / ANSWERS).glob("*.partial"):  # workers were killed while they wrote these
        left.unlink(missing_ok=True)
    shared.child(MISSING).delete()
    usage = usage_figures(plan.engine, folder)
    return Answers(folder, label, plan.ask.max_failed_share, requested, missing, plan.hinted, told, usage)


def _of_one_run(plan: GenerationPlan, folder: Path) -> list[SharedFolder]:
    """Return where the stage's answers are in a store that holds one run alone: they were paid for."""
    store = plan.engine.replicas.store
    return [SharedFolder.at(store).child(folder.name)] if store else []


def answered(plan: GenerationPlan, folder: Path) -> IdSet:
    """Return the keys of the requests that need not be asked again, from the parts of the stage in `folder`."""
    shared = shared_folder(plan, folder)
    if not shared.local:
        bring_parts(shared.child(ANSWERS), folder / ANSWERS)
    if not (folder / ANSWERS).is_dir():
        return IdSet()
    batches = answers_in(folder / ANSWERS, ["key", "reason", "tries"], PAIRS_AT_A_TIME)
    return IdSet(batch["key"].filter(plan.settled(batch)).to_pylist() for batch in batches)


def missing_asks(plan: GenerationPlan, pairs: Iterable[pa.RecordBatch], folder: Path) -> Iterator[Ask]:
    """Return the requests of the stage in `folder` that have no answer yet."""
    done = answered(plan, folder)
    rows = (pair for batch in pairs for pair in batch.to_pylist())
    return (ask for pair in rows for *_, ask in plan.asks(pair) if not done.has([ask.key])[0])


@contextmanager
def _metered(plan: GenerationPlan, folder: Path) -> Iterator[SharedMeter | None]:
    """Yield a meter that knows what the run has spent before, where there is something to measure."""
    if not isinstance(plan.engine, OpenAiEngine):
        yield None
        return
    meter = SharedMeter.start(plan.engine, spent_in(plan.engine, folder.parent))
    try:
        yield meter
    finally:
        meter.stop()


def _run_workers(
    plan: GenerationPlan, folder: Path, shared: SharedFolder, label: str, counts: tuple[int, int, int]
) -> dict[str, float]:
    """Run the workers. `counts` are the requests, those without an answer, and those that were given up before."""
    import ray.data
    import ray.exceptions

    replicas, (requested, missing, failed) = plan.engine.replicas, counts
    # An error of a worker arrives as it is, without Ray Data's own words.
    ray.data.DataContext.get_current().raise_original_map_exception = True
    with progress(label, unit="answer", total=missing) as bar, _metered(plan, folder) as meter:
        board = Board.start(
            bar, "vLLM to start and load the model" if isinstance(plan.engine, VllmEngine) else "the engine to start"
        )
        try:
            answered = stream_parquet(shared.child(MISSING)).map_batches(
                AnswerWorker,
                fn_constructor_args=(
                    plan,
                    shared.child(ANSWERS),
                    shared.child(MISSING).child(TRIED),
                    board.actor,
                    requested,
                    failed,
                    meter,
                ),
                batch_size=replicas.pairs_per_task,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(
                    min_size=replicas.min, max_size=replicas.max, max_concurrent_calls_per_actor=FILES_AT_A_TIME
                ),
                **replica_resources(plan.engine),
            )
            return _told(answered.iter_batches(batch_size=None))
        except (ray.exceptions.RayError, RuntimeError) as error:
            del answered
            _forget_frames(error)
            raise UserError(f"{label}: {_what_happened(error)}") from error
        finally:
            board.stop()


def _forget_frames(error: BaseException) -> None:
    """Drop the frames that led to an error, and what they hold: Ray Data's workers and their place on the cluster.

    Otherwise it keeps them for as long as somebody keeps the error, and another run in this process waits.
    """
    error.__cause__ = error.__context__ = None
    traceback.clear_frames(error.__traceback__)
    gc.collect()


def _told(batches: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Return what the workers report about their engines: the longest start, and the tokens of the prompts."""
    start_s, prompt, cached = 0.0, 0, 0
    for batch in batches:
        start_s = max(start_s, float(batch["engine_start_s"].max()))
        prompt, cached = prompt + int(batch["prompt_tokens"].sum()), cached + int(batch["cached_tokens"].sum())
    return {"start_s": round(start_s, 2), "prompt_tokens": prompt, "cached_tokens": cached}


def _what_happened(error: BaseException) -> str:
    """Return the error of the worker itself, or the last line of Ray's message."""
    import ray.exceptions

    said = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    lines = [line.strip() for line in str(said).splitlines() if line.strip()] or [type(said).__name__]
    # Ray Data appends lines about its own retries to an error of a worker.
    line = lines[-1] if said is error else lines[0]
    if isinstance(said, TooManyFailed):  # running again would only fail again
        return line
    what = line if isinstance(said, UserError) else f"the engine stopped: {line.rstrip('.')}."
    return f"{what} Finished answers are kept; run again."
