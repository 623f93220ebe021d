"""Joins requests with their answers, some pairs at a time, so that memory does not grow with the number of rows.

DuckDB sorts both by pair, on disk if they have no room in memory. What belongs together is then read side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from cluster.base.sql import Ordered, database
from cluster.base.tables import conformed
from mpcot.asking.failure_reasons import ENGINE_ERROR, PROMPT_TOO_LONG
from mpcot.asking.read_parts import parts_with_keys
from mpcot.records import ANSWER, PAIR, texts

# One row per pair: all that is known of it, what stages need to sort its answers, and the keys of its requests.
REQUEST = PAIR.append(pa.field("text", pa.string(), nullable=False)).append(
    pa.field("keys", pa.list_(pa.string()), nullable=False)
)
KNOWN = pa.schema(texts("pair_id", "label?", "split", "text"))
SORTED_PAIRS = 4096


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


def join_by_pair(requests: Path, answers: Path) -> Iterator[AnsweredPairs]:
    """Yield the requests with their answers in the order of pair ids.

    A key that was answered twice (because a worker died after writing, or an engine failed) counts once. Answers to
    requests that are no longer made are left out.

    Raises:
        UserError: the disk is full.
    """
    parts = parts_with_keys(answers)
    with database(requests.parent) as data:
        by_file = "SELECT * FROM parts ORDER BY pair_id, filename, file_row_number"
        answered = Ordered(data.stream(by_file, parts=parts) if parts else (), "pair_id")
        wanted = f"SELECT {', '.join(KNOWN.names)}, keys FROM requests ORDER BY pair_id"
        for batch in data.stream(wanted, requests=[requests]):
            for start in range(0, len(batch), SORTED_PAIRS):
                asked = batch.slice(start, SORTED_PAIRS)
                yield _join(asked, conformed(answered.upto(asked["pair_id"][-1].as_py()), ANSWER))


def _join(asked: pa.RecordBatch, answered: pa.Table) -> AnsweredPairs:
    keys = pc.list_flatten(asked["keys"])
    found = _first_of_each(answered.filter(pc.is_in(answered["key"], keys)))
    lost = [] if len(found) == len(keys) else keys.filter(pc.invert(pc.is_in(keys, found["key"]))).to_pylist()
    order = [(name, "ascending") for name in ("pair_id", "perspective", "sample")]
    return AnsweredPairs(found.sort_by(order), conformed([asked], KNOWN), lost)


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
