"""Joins requests with their answers, some pairs at a time, so that memory does not grow with the number of rows.

Both are first split on disk into buckets: folders of the pairs whose ids begin alike. Then a few buckets at a time
are read, sorted and handed on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from cluster.base.whole_files import disk_error
from mpcot.asking.failure_reasons import ENGINE_ERROR, PROMPT_TOO_LONG
from mpcot.asking.read_parts import answers_in
from mpcot.records import ANSWER, texts

# One row per pair: the keys of its requests, and what stages need to know to sort its answers.
REQUEST = pa.schema(
    [*texts("pair_id", "label?", "split", "text"), pa.field("keys", pa.list_(pa.string()), nullable=False)]
)
BUCKET = "bucket"
ID_START = 2  # pair ids are hex digits of a hash: their first two make 256 buckets of about the same size
SPLIT_ROWS = 32768
SORTED_ROWS = 16384
IPC = pads.IpcFileFormat()


@dataclass(frozen=True)
class AnsweredPairs:
    """Some pairs with all their answers. No pair comes twice.

    `answers` has the schema ANSWER and is sorted by pair, perspective and sample. `pairs` has the columns
    `pair_id`, `label`, `split` and `text`, which is all that is known of query and product. `lost` holds the keys of
    requests that have no answer.
    """

    answers: pa.Table
    pairs: pa.Table
    lost: list[str]


def split_by_pair(tables: Iterable[pa.Table], schema: pa.Schema, folder: Path) -> None:
    """Write rows that have a `pair_id` into the buckets of `folder`, which is emptied first.

    Raises:
        UserError: the disk is full, read-only or closed to this user.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with_bucket = schema.append(pa.field(BUCKET, pa.string()))

    def batches() -> Iterator[pa.RecordBatch]:
        for table in tables:
            named = table.append_column(BUCKET, pc.utf8_slice_codeunits(table["pair_id"], 0, ID_START))
            yield from named.cast(with_bucket).combine_chunks().to_batches()

    try:
        folder.mkdir(parents=True)
        pads.write_dataset(
            batches(),
            folder,
            schema=with_bucket,
            format=IPC,
            file_options=IPC.make_write_options(compression="lz4"),
            partitioning=pads.partitioning(pa.schema([with_bucket.field(BUCKET)])),
            use_threads=False,
        )
    except OSError as error:
        raise disk_error(error, folder) from error
    # Otherwise Arrow's pool keeps memory for later, more of it the more rows there are.
    pa.default_memory_pool().release_unused()


def split_answers(parts: Path, folder: Path) -> None:
    """Write the answers of all parts into the buckets of `folder`."""
    split_by_pair(_gathered(answers_in(parts, batch=SPLIT_ROWS)), ANSWER, folder)


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Gather small batches into tables of at least `SPLIT_ROWS` rows: each table makes a block in every bucket."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= SPLIT_ROWS:
            yield pa.Table.from_batches(waiting, ANSWER)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting, ANSWER)


def join_by_pair(requests: Path, answers: Path) -> Iterator[AnsweredPairs]:
    """Yield the requests with their answers in the order of pair ids.

    A key that was answered twice (because a worker died after writing, or an engine failed) counts once. Answers to
    requests that are no longer made are left out.
    """
    wanted: dict[str, pa.Table] = {}
    buckets = sorted(requests.iterdir())
    for bucket in buckets:
        wanted[bucket.name] = _read(bucket, REQUEST)
        rows = sum(pc.sum(pc.list_value_length(table["keys"])).as_py() for table in wanted.values())
        if rows >= SORTED_ROWS or bucket == buckets[-1]:
            yield _join(list(wanted.values()), [_read(answers / name, ANSWER) for name in wanted])
            wanted = {}


def _read(bucket: Path, schema: pa.Schema) -> pa.Table:
    tables = [schema.empty_table()]
    for path in sorted(bucket.glob("*")):
        with pa.OSFile(str(path)) as file:
            tables.append(pa.ipc.open_file(file).read_all().cast(schema))
    return pa.concat_tables(tables)


def _join(wanted: list[pa.Table], answered: list[pa.Table]) -> AnsweredPairs:
    asked = pa.concat_tables(wanted)
    keys = pc.list_flatten(asked["keys"]).combine_chunks()
    found = pa.concat_tables(answered)
    found = _first_of_each(found.filter(pc.is_in(found["key"], keys)))
    lost = [] if len(found) == len(keys) else keys.filter(pc.invert(pc.is_in(keys, found["key"]))).to_pylist()
    order = [(name, "ascending") for name in ("pair_id", "perspective", "sample")]
    return AnsweredPairs(found.sort_by(order), asked.select(["pair_id", "label", "split", "text"]), lost)


def _first_of_each(table: pa.Table) -> pa.Table:
    """Return one row per key: the first that did not fail, else the first that the engine did not fail on."""
    whole, broken = pc.is_null(table["reason"]), engine_failed(table["reason"])
    unusable = pc.invert(pc.or_(whole, broken))
    table = pa.concat_tables([table.filter(kind) for kind in (whole, unusable, broken)])
    table = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    first = table.group_by("key").aggregate([("row", "min")])
    return table.take(first["row_min"].sort()).select(ANSWER.names).cast(ANSWER)


def engine_failed(reasons: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Mark the answers that failed because of the engine, which a rerun asks for again."""
    return _begins_with(reasons, ENGINE_ERROR)


def settled(answers: pa.RecordBatch, retries: int, too_long: str = "") -> pa.Array:
    """Mark the answers that a rerun does not ask for again: usable ones, and those that failed too often.

    Args:
        too_long: how the reason of a prompt ends that is too long under the present settings. Prompts that were too
            long under other settings are asked again.
    """
    reasons = answers["reason"]
    long = _begins_with(reasons, PROMPT_TOO_LONG)
    still_too_long = pc.and_(long, pc.fill_null(pc.ends_with(reasons, too_long), False))
    tried_too_often = pc.greater(pc.fill_null(answers["tries"], 1), retries)
    failed_too_often = pc.and_(tried_too_often, pc.invert(pc.or_(engine_failed(reasons), long)))
    return pc.or_(pc.is_null(reasons), pc.or_(still_too_long, failed_too_often))


def _begins_with(reasons: pa.Array | pa.ChunkedArray, start: str) -> pa.Array:
    return pc.fill_null(pc.starts_with(reasons, start), False)
