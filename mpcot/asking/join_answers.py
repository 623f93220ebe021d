"""Requests and answers dealt to shelves by pair id and put together shelf by shelf.

What is in memory at a time does not grow with the number of rows: a shelf is a folder on disk that holds
the pairs whose ids begin alike, and a few shelves are read, sorted and handed on at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from cluster.base.tables import batches_of
from cluster.base.whole_files import disk_error
from mpcot.asking.failure_reasons import ENGINE_ERROR, PROMPT_TOO_LONG
from mpcot.records import ANSWER

# One row per pair: what is asked about it, and what the stages need to know to sort its answers.
REQUEST = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("split", pa.string(), nullable=False),
        pa.field("keys", pa.list_(pa.string()), nullable=False),
    ]
)
SHELF = "shelf"
ID_START = 2  # pair ids are hex digits of a hash, so their beginnings make 256 shelves of like size
DEALT_ROWS = 32768
SORTED_ROWS = 16384
IPC = pads.IpcFileFormat()


@dataclass(frozen=True)
class Shelf:
    """Pairs with all their answers; no pair is on two shelves.

    `answers` has the schema ANSWER and is sorted by pair, perspective and sample; `pairs` has the columns
    `pair_id`, `label`, `split`. `lost` are the keys of requests without an answer.
    """

    answers: pa.Table
    pairs: pa.Table
    lost: list[str]


def deal(tables: Iterable[pa.Table], schema: pa.Schema, folder: Path) -> None:
    """Deal rows with a `pair_id` to shelves in `folder`, which is made anew.

    Raises:
        UserError: the disk is full, read-only or closed to this user.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shelved = schema.append(pa.field(SHELF, pa.string()))

    def batches() -> Iterator[pa.RecordBatch]:
        for table in tables:
            named = table.append_column(SHELF, pc.utf8_slice_codeunits(table["pair_id"], 0, ID_START))
            yield from named.cast(shelved).combine_chunks().to_batches()

    try:
        folder.mkdir(parents=True)
        pads.write_dataset(
            batches(),
            folder,
            schema=shelved,
            format=IPC,
            file_options=IPC.make_write_options(compression="lz4"),
            partitioning=pads.partitioning(pa.schema([shelved.field(SHELF)])),
            use_threads=False,
        )
    except OSError as error:
        raise disk_error(error, folder) from error
    # What Arrow's pool keeps for later is memory that nothing else can have, and grows with the number of rows.
    pa.default_memory_pool().release_unused()


def thick(batches: Iterable[pa.RecordBatch], schema: pa.Schema, rows: int = DEALT_ROWS) -> Iterator[pa.Table]:
    """Yield the rows as tables of at least `rows` rows, the last one excepted."""
    waiting: list[pa.RecordBatch] = []
    have = 0
    for batch in batches:
        waiting.append(batch)
        have += len(batch)
        if have >= rows:
            yield pa.Table.from_batches(waiting, schema)
            waiting, have = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting, schema)


def deal_answers(parts: Path, folder: Path) -> None:
    """Deal the answers of all parts to shelves in `folder`."""
    deal(thick(batches_of(parts, batch=DEALT_ROWS), ANSWER), ANSWER, folder)


def put_together(requests: Path, answers: Path) -> Iterator[Shelf]:
    """Yield what was asked with its answers, in the order of pair ids.

    A key that was answered twice (a worker died after writing, an engine failed) counts once, an answer
    that nobody asks for any more not at all.
    """
    wanted: list[pa.Table] = []
    names: list[str] = []
    for place in sorted(requests.iterdir()):
        wanted.append(_read(place, REQUEST))
        names.append(place.name)
        if sum(pc.sum(pc.list_value_length(table["keys"])).as_py() for table in wanted) >= SORTED_ROWS:
            yield _shelf(wanted, [_read(answers / name, ANSWER) for name in names])
            wanted, names = [], []
    if wanted:
        yield _shelf(wanted, [_read(answers / name, ANSWER) for name in names])


def _read(shelf: Path, schema: pa.Schema) -> pa.Table:
    tables = [schema.empty_table()]
    for path in sorted(shelf.glob("*")):
        with pa.OSFile(str(path)) as file:
            tables.append(pa.ipc.open_file(file).read_all().cast(schema))
    return pa.concat_tables(tables)


def _shelf(wanted: list[pa.Table], answered: list[pa.Table]) -> Shelf:
    asked = pa.concat_tables(wanted)
    keys = pc.list_flatten(asked["keys"]).combine_chunks()
    found = pa.concat_tables(answered)
    found = _first_of_each(found.filter(pc.is_in(found["key"], keys)))
    lost = [] if len(found) == len(keys) else keys.filter(pc.invert(pc.is_in(keys, found["key"]))).to_pylist()
    order = [(name, "ascending") for name in ("pair_id", "perspective", "sample")]
    return Shelf(found.sort_by(order), asked.select(["pair_id", "label", "split"]), lost)


def _first_of_each(table: pa.Table) -> pa.Table:
    """Return one row per key: the first that did not fail, else the first that the engine did not fail on."""
    whole, broken = pc.is_null(table["reason"]), engine_failed(table["reason"])
    unusable = pc.invert(pc.or_(whole, broken))
    table = pa.concat_tables([table.filter(kind) for kind in (whole, unusable, broken)])
    table = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    first = table.group_by("key").aggregate([("row", "min")])
    return table.take(first["row_min"].sort()).select(ANSWER.names).cast(ANSWER)


def engine_failed(reasons: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Mark the rows that failed by no fault of their own: a rerun asks them again."""
    return _begin(reasons, ENGINE_ERROR)


def settled(answers: pa.RecordBatch, retries: int, too_long: str = "") -> pa.Array:
    """Mark the answers that a rerun takes over: usable ones, and those that failed as often as they may.

    Args:
        too_long: how the reason ends of prompts that are too long under the settings of now: others are asked again.
    """
    reasons = answers["reason"]
    long = _begin(reasons, PROMPT_TOO_LONG)
    hopeless = pc.and_(long, pc.fill_null(pc.ends_with(reasons, too_long), False))
    tired = pc.and_(pc.greater(answers["tries"], retries), pc.invert(pc.or_(engine_failed(reasons), long)))
    return pc.or_(pc.is_null(reasons), pc.or_(hopeless, tired))


def _begin(reasons: pa.Array | pa.ChunkedArray, how: str) -> pa.Array:
    return pc.fill_null(pc.starts_with(reasons, how), False)
