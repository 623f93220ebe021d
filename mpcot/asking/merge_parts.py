"""Merges small parts of answers into large ones, so that a stage of many million answers has few files."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from cluster.base.shared_folder import SharedFolder
from cluster.base.tables import batches_of, conformed, table_writer
from mpcot.asking.answers import OF_BATCH
from mpcot.records import ANSWER

MERGED = "merged-"  # how the names of parts begin that hold the answers of others
SOURCES = b"sources"  # the entry of a part's metadata that names those others
SMALL_BYTES = 32 * 2**20
MANY = 64
ROWS = 65536


def bring_parts(shared: SharedFolder, answers: Path) -> None:
    """Copy the parts of the shared folder that are not here yet, and merge small ones if there are many.

    A merged part names those that it holds. So a run that was killed between writing it and removing them, and a store
    that still has them, count no answer twice. Call it while nobody writes parts of this run.
    """
    held = set(_finish_merges(answers))
    shared.bring(answers, ".parquet", besides=held)
    small = [part for part in sorted(answers.glob("*.parquet")) if _small(part)]
    if len(small) >= MANY:
        for parts in _groups(small):
            _merge(parts, answers)


def _small(part: Path) -> bool:
    # Answers of a batch cost less, which only the names of their parts say. What another version wrote stays as it is.
    return (
        not part.name.startswith(OF_BATCH)
        and part.stat().st_size < SMALL_BYTES
        and pq.read_schema(part).names == ANSWER.names
    )


def _groups(parts: list[Path]) -> Iterator[list[Path]]:
    """Yield parts that have `SMALL_BYTES` to twice as many together, or fewer at the end."""
    group: list[Path] = []
    held = 0
    for part in parts:
        group.append(part)
        held += part.stat().st_size
        if held >= SMALL_BYTES:
            yield group
            group, held = [], 0
    if len(group) > 1:
        yield group


def _merge(parts: list[Path], answers: Path) -> None:
    names = [name for part in parts for name in (part.name, *_sources(part))]
    with table_writer(answers / f"{MERGED}{uuid.uuid4().hex[:12]}-000000.parquet", ANSWER) as writer:
        for part in parts:
            for batch in batches_of(part, batch=ROWS):
                writer.write_table(conformed([batch], ANSWER))
        writer.add_key_value_metadata({SOURCES: json.dumps(names)})
    for part in parts:
        part.unlink()


def _finish_merges(answers: Path) -> Iterator[str]:
    """Remove the parts that merged ones hold, and yield their names."""
    for merged in answers.glob(f"{MERGED}*.parquet"):
        for name in _sources(merged):
            (answers / name).unlink(missing_ok=True)
            yield name


def _sources(part: Path) -> list[str]:
    return json.loads((pq.read_metadata(part).metadata or {}).get(SOURCES, b"[]"))
