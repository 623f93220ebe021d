"""Finds the requests of a stage that have no answer yet, and writes them for the workers.

DuckDB compares keys, so that nothing in the driver's memory grows with the number of requests.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.base.progress import console
from cluster.base.run_folder import RUN_ID, run_id
from cluster.base.shared_folder import SharedFolder
from cluster.base.sql import Ordered, database
from cluster.base.tables import batches_of, conformed, table_writer
from mpcot.asking.answers import ANSWERS, ASKED, joined_folder
from mpcot.asking.join_answers import REQUEST
from mpcot.asking.plan import GenerationPlan
from mpcot.asking.prompts import EVERYTHING, pair_text
from mpcot.asking.read_parts import answers_in
from mpcot.records import PAIR

MISSING = "missing"
REQUESTED, REQUESTED_HINTED = "requested.parquet", "requested-hinted.parquet"
TASKS_PER_FILE = 4  # as many tasks of one file as Ray Data has in flight
FILES_PER_REPLICA = 100  # so that at the end no replica works on more than a hundredth of its share alone
MOST_PAIRS = 4096  # in one file, which is a block of Ray's
PAIRS_AT_A_TIME = 8192
PAIRS_PER_TASK = 2048  # some MB, of which two for each core are in Ray's object store
KEY = pa.schema([pa.field("key", pa.string())])
STATE = pa.schema([*KEY, pa.field("settled", pa.bool_()), pa.field("failed", pa.bool_())])
MISSING_PAIR = PAIR.append(pa.field("keys", pa.list_(pa.string()))).append(pa.field("file", pa.string()))


def shared_folder(plan: GenerationPlan, folder: Path, begin: bool = False) -> SharedFolder:
    """Return the folder that driver and workers share: the stage's, or one of its name in this run's part of the store.

    Args:
        begin: give the run a part of the store if it has none yet.
    """
    store, own = plan.engine.replicas.store, run_id(folder.parent)
    if store and own is None and begin:
        own = run_id(folder.parent, begin=True)
        _say_others(SharedFolder.at(store), folder.parent)
    return SharedFolder.at(store).child(own).child(folder.name) if store and own else SharedFolder.at(folder)


def _say_others(store: SharedFolder, run_dir: Path) -> None:
    """Say how to go on with answers in the store that a run of this name left there, if its folder was lost."""
    name = run_dir.resolve().name
    others = [other for other in store.folders() if other.rpartition("-")[0] == name]
    if others:
        console().print(
            f"  the store has answers of {', '.join(others)}. If that is this run, whose folder was lost, stop and "
            f"write its name into {run_dir / RUN_ID}, so that they are not asked for again",
            style="yellow",
            highlight=False,
        )


def given_up(plan: GenerationPlan, folder: Path) -> int:
    """Return how many requests failed too often in earlier runs. They are not asked again, but count as failed."""
    query = """SELECT count(*) FROM requested SEMI JOIN (
        SELECT key FROM answers GROUP BY key HAVING bool_or(settled AND failed) AND bool_and(failed)) USING (key)"""
    requested = [folder / (REQUESTED_HINTED if plan.hinted else REQUESTED)]
    with database(folder) as data:
        return int(data.value(query, requested=requested, answers=_states(plan, folder / ANSWERS)))


def _states(plan: GenerationPlan, answers: Path) -> pa.RecordBatchReader:
    """Return a reader of the keys of all answers: whether each is settled, and whether it failed."""

    def states() -> Iterator[pa.RecordBatch]:
        for batch in answers_in(answers, ["key", "reason", "tries"], PAIRS_AT_A_TIME):
            columns = [batch["key"], plan.settled(batch), pc.is_valid(batch["reason"])]
            yield pa.record_batch(columns, schema=STATE)

    return pa.RecordBatchReader.from_batches(STATE, states())


def write_missing(
    plan: GenerationPlan, pairs: Iterable[pa.RecordBatch], folder: Path, mapped: Callable[..., Iterable[Any]] = map
) -> tuple[int, int]:
    """Write all requests, and the pairs that lack answers. Return the number of requests and of missing answers.

    Args:
        pairs: up to `PAIRS_PER_TASK` at a time; they become Python objects only where their keys are made.
        mapped: what `map` does, perhaps on several cores. It makes the keys, which takes the most time.
    """
    missing = shared_folder(plan, folder).child(MISSING)
    missing.delete()
    (folder / REQUESTED_HINTED).unlink(missing_ok=True)
    (folder / ANSWERS).mkdir(parents=True, exist_ok=True)
    asked = joined_folder(folder, plan.hinted) / ASKED
    shutil.rmtree(asked.parent, ignore_errors=True)
    keyed = mapped(partial(_with_keys, plan), pairs)
    requested = _write_requests(keyed, asked, folder / (REQUESTED_HINTED if plan.hinted else REQUESTED))
    return requested, _write_lacking(plan, asked, folder, missing, requested)


def _with_keys(plan: GenerationPlan, pairs: pa.RecordBatch) -> pa.Table:
    """Return pairs with the keys of their requests."""
    rows = pairs.to_pylist()
    text, keys = [pair_text(row, EVERYTHING) for row in rows], [plan.keys(row) for row in rows]
    return pa.table([*conformed([pairs], PAIR).columns, text, keys], schema=REQUEST)


def _write_requests(keyed: Iterable[pa.Table], asked: Path, requested: Path) -> int:
    """Write the pairs with the keys of their requests, and the keys alone in the same order. Return their number."""
    count = 0
    with table_writer(asked, REQUEST) as whole, table_writer(requested, KEY) as alone:
        for table in keyed:
            keys = pc.list_flatten(table["keys"])
            whole.write_table(table)
            alone.write_table(pa.table([keys], schema=KEY))
            count += len(keys)
    return count


def _write_lacking(plan: GenerationPlan, asked: Path, folder: Path, store: SharedFolder, requested: int) -> int:
    """Write the pairs that lack answers with the keys of these to numbered files, and return how many keys there are.

    The place of a key among all is its row in `requested.parquet`, by which the pairs are found again.
    """
    query = """SELECT file_row_number AS place FROM requested ANTI JOIN (
        SELECT key FROM answers WHERE settled) USING (key) ORDER BY place"""
    keys = [folder / (REQUESTED_HINTED if plan.hinted else REQUESTED)]
    per_file = _pairs_per_file(plan, requested)
    end = missing = files = 0
    with database(folder) as data:
        answers = _states(plan, folder / ANSWERS)
        places = Ordered(data.stream(query, requested=keys, answers=answers), "place")
        for batch in batches_of(asked, batch=max(per_file, PAIRS_AT_A_TIME)):
            if places.held is None:  # nothing is missing from here on
                break
            start, end = end, end + len(pc.list_flatten(batch["keys"]))
            here = [found["place"].to_numpy() - start for found in places.upto(end - 1)]
            lacking = _lacking(batch, np.concatenate(here) if here else np.empty(0, np.int64))
            missing += sum(map(len, here))
            for first in range(0, len(lacking), per_file):
                name = f"{files:06d}"
                named = lacking.slice(first, per_file)
                named = named.append_column("file", pa.array([name] * len(named), pa.string()))
                store.write_table(f"{name}.parquet", named.select(MISSING_PAIR.names).cast(MISSING_PAIR))
                files += 1
    return missing


def _pairs_per_file(plan: GenerationPlan, requested: int) -> int:
    """Return how many pairs a file of missing requests has: more of many, as each file is a message to a worker."""
    replicas = plan.engine.replicas
    pairs = requested // (len(plan.perspectives) * plan.ask.samples)
    even = pairs // (FILES_PER_REPLICA * replicas.max)
    return max(TASKS_PER_FILE * replicas.pairs_per_task, min(MOST_PAIRS, even))


def _lacking(batch: pa.RecordBatch, places: np.ndarray) -> pa.Table:
    """Return the pairs of a batch that have any of the places, which count the batch's keys, with these keys alone."""
    marked = np.zeros(len(pc.list_flatten(batch["keys"])), bool)
    marked[places] = True
    ends = np.cumsum(pc.list_value_length(batch["keys"]).to_numpy(zero_copy_only=False))
    offsets = np.concatenate([[0], np.concatenate([[0], np.cumsum(marked)])[ends]]).astype(np.int32)
    keys = pa.ListArray.from_arrays(offsets, pc.list_flatten(batch["keys"]).filter(pa.array(marked)))
    table = pa.Table.from_batches([batch])
    table = table.set_column(table.column_names.index("keys"), "keys", keys)
    return table.filter(pa.array(np.diff(offsets) > 0))
