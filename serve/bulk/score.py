"""Scores a table of pairs with copies of a student on Ray Data.

Rows are read, cleaned and dealt in parts; each part is scored by one copy and written at once. A part's name comes from
its file and its place in it, so a rerun scores only what is missing. No row passes through the driver.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.base.errors import UserError
from cluster.base.progress import Board, progress
from cluster.base.ray_session import READERS
from cluster.base.shared_folder import SharedFolder
from cluster.base.stage_folder import digest
from distill.student.model import read_student_config
from distill.student.rationale_index import VECTORS
from mpcot.sources.candidate_file import READ
from mpcot.sources.clean_rows import ROW, Cleaning, reason_of
from mpcot.sources.config import REQUIRED, TableSource
from mpcot.sources.files import to_rows
from mpcot.sources.filesets import MAPPED, FileSet, batches_of_task, find, tasks_of
from mpcot.sources.places import resolve
from serve.bulk.config import BulkSettings
from serve.bulk.output import FAILED, Wish, begin, parts_of, scored_table, write_part
from serve.config import ServeSettings
from serve.scoring.scorer import Scorer, check_export, export_name, load_proven

PART = pa.schema([pa.field("name", pa.string()), pa.field("file", pa.string()), pa.field("rows", pa.binary())])
SHOWN_S = 1.0
BLOCK_BYTES = 1  # one part is one block: an actor gets them one by one, so that none has many while others have none


@dataclass(frozen=True)
class Table:
    """A table of pairs: its files, and which of their columns are ours.

    `states` has size in bytes and modification time in nanoseconds of each file, by its name below the folder.
    """

    files: FileSet
    columns: dict[str, str]
    cleaning: Cleaning
    rows_per_part: int
    states: dict[str, list[int]]

    @classmethod
    def open(cls, source: TableSource, rows_per_part: int) -> Table:
        """Look at the files of a table.

        Raises:
            UserError: they cannot be read (see `filesets.find`), or a column is missing.
        """
        files = find(source.path, source.format, "FILE")
        files.need([theirs for ours, theirs in source.columns.items() if ours in READ], "source.columns", MAPPED)
        columns = {name: source.columns.get(name, name) for name in READ}
        files.need([columns[name] for name in REQUIRED], "FILE", MAPPED)
        root = resolve(source.path, "FILE")[1]
        names = [path.removeprefix(root).lstrip("/") or path.rpartition("/")[2] for path in files.paths]
        infos = files.filesystem.get_file_info(list(files.paths))
        states = {name: [info.size, info.mtime_ns] for name, info in zip(names, infos, strict=True)}
        return cls(files, columns, Cleaning((), {}, source.default_locale.lower()), rows_per_part, states)

    @cached_property
    def keys(self) -> list[str]:
        """How the names of the parts of each file begin."""
        return [digest([name, *state], 12) for name, state in self.states.items()]

    def parts(self, task: dict[str, int], done: set[str]) -> Iterator[pa.Table]:
        """Yield the parts of a task that are not done, as one row of `PART` each."""
        file = list(self.states)[task["part"]]
        raw = itertools.chain.from_iterable(batches_of_task(self.files, task, list(self.columns.values())))
        for n in itertools.count():
            if not (rows := list(itertools.islice(raw, self.rows_per_part))):
                return
            name = f"{self.keys[task['part']]}-{task['first']:06d}-{n:06d}"
            if name not in done:
                cleaned = to_rows(rows, self.columns, self.cleaning)
                first = task["row"] + n * self.rows_per_part
                numbers = pa.array(range(first, first + len(cleaned)), pa.int64())
                cleaned = cleaned.set_column(0, ROW.field(0), numbers)
                yield pa.table([[name], [file], [packed(cleaned)]], schema=PART)


def packed(table: pa.Table) -> bytes:
    """Return a table as bytes, which Ray Data never divides."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


class PartScorer:
    """The Ray Data actor that has a copy of the student, and scores and writes one part at a time."""

    def __init__(self, export_dir: Path, settings: BulkSettings, folder: SharedFolder, wish: Wish, board: Any) -> None:
        self.scorer = load(export_dir, settings)
        self.folder, self.wish, self.board = folder, wish, board
        self.name, self.done, self.failed = uuid.uuid4().hex[:12], 0, 0
        self.began = time.monotonic()

    def __call__(self, batch: pa.Table) -> pa.Table:
        for part in batch.to_pylist():
            rows = pa.ipc.open_stream(part["rows"]).read_all().to_pylist()
            scored, failed = scored_table(self.scorer, part["file"], rows, self.wish)
            write_part(self.folder, part["name"], scored, failed)
            self.done, self.failed = self.done + len(rows), self.failed + failed.num_rows
            figures = {"rows/s": self.done / (time.monotonic() - self.began), "failed": self.failed}
            self.board.put.remote(self.name, self.done, None, figures)
        return batch.select(["name"])


def load(export_dir: Path, settings: BulkSettings) -> Scorer:
    """Load a copy of the student.

    Raises:
        UserError: the folder is not an export, it is damaged, or there is no GPU.
    """
    given = ServeSettings(
        cpus_per_replica=settings.cpus_per_replica,
        gpus_per_replica=settings.gpus_per_replica,
        precision=settings.precision,
        kept_products=0,  # products come back far apart in a table, and keeping them would let memory grow
    )
    return load_proven(export_dir, given)


@dataclass(frozen=True)
class Outcome:
    """What a table came to: how many rows were scored in all and by this call, and why how many failed."""

    scored: int
    new: int
    failed: Counter[str]


def score_table(
    export_dir: Path, source: TableSource, out: SharedFolder, settings: BulkSettings, wish: Wish
) -> tuple[Outcome, Iterator[str]]:
    """Score every row of a table that has no score in `out` yet; Ray must be connected.

    Returns: the outcome, and the names of all parts in the order of the table's rows.

    Raises:
        UserError: the export, the table or `out` cannot be used, a copy failed, or too many rows failed. What was
            scored is kept, and another call goes on from there.
    """
    check_export(export_dir)
    wish.check(read_student_config(export_dir), (export_dir / VECTORS).exists())
    table = Table.open(source, settings.rows_per_part)
    made_with = {"student": export_name(export_dir), "columns": source.columns, "latents": wish.latents}
    made_with |= {"explanations": wish.explanations, "rows_per_part": settings.rows_per_part}
    done = begin(out, made_with, table.states)
    before = counted(out)[0] if done else 0
    _run(export_dir.resolve(), table, done, out, settings, wish)
    scored, failed = counted(out)
    share = failed.total() / max(1, scored + failed.total())
    if share > settings.max_failed_share:
        why = "; ".join(f"{count:,} x {reason}" for reason, count in failed.most_common(3))
        raise UserError(
            f"{share:.0%} of the rows failed, more than bulk.max_failed_share {settings.max_failed_share:.0%}: {why}. "
            f"The others are scored, and {FAILED} in --out lists these. Correct them, or raise the share."
        )
    return Outcome(scored, scored - before, failed), parts_of(out, table.keys)


def counted(out: SharedFolder) -> tuple[int, Counter[str]]:
    """Return how many rows are scored, and how many failed for which reason."""
    import pyarrow.parquet as pq

    scored = sum(pq.read_metadata(out.path(e.name), filesystem=out.filesystem).num_rows for e in out.files(".parquet"))
    failed: Counter[str] = Counter()
    inside = out.child(FAILED)
    for entry in inside.files(".parquet"):
        for batch in inside.batches(entry.name, ["reason"]):
            failed.update(map(reason_of, batch["reason"].to_pylist()))
    return scored, failed


def replicas_that_fit(settings: BulkSettings, nodes: Sequence[dict[str, float]]) -> int:
    """Return how many copies run at once.

    Raises:
        UserError: no node has what one copy needs.
    """
    most = 0
    for node in nodes:
        by_cpu = node.get("CPU", 0) // settings.cpus_per_replica
        by_gpu = node.get("GPU", 0) / settings.gpus_per_replica if settings.gpus_per_replica else by_cpu
        most += int(min(by_cpu, by_gpu))
    if not most:
        raise UserError(
            f"bulk: no node has the {settings.cpus_per_replica} CPUs and {settings.gpus_per_replica:g} GPUs of a copy. "
            "Lower bulk.cpus_per_replica or bulk.gpus_per_replica."
        )
    return min(most, settings.replicas or most)


def _run(export_dir: Path, table: Table, done: set[str], out: SharedFolder, settings: BulkSettings, wish: Wish) -> None:
    import ray.data
    import ray.exceptions

    context = ray.data.DataContext.get_current()
    before = context.raise_original_map_exception, context.target_max_block_size
    context.raise_original_map_exception, context.target_max_block_size = True, BLOCK_BYTES
    tasks = list(tasks_of(table.files))
    copies = replicas_that_fit(settings, [node["Resources"] for node in ray.nodes() if node["Alive"]])

    def read(batch: pa.Table) -> Iterator[pa.Table]:
        for task in batch.to_pylist():
            yield from table.parts(task, done)

    with progress("scoring", unit="row") as bar:
        board = Board.start(bar, "the first rows")
        try:
            listed = ray.data.from_items(tasks, override_num_blocks=len(tasks))
            readers = ray.data.TaskPoolStrategy(size=min(max(READERS, copies), len(tasks)))
            parts = listed.map_batches(read, batch_format="pyarrow", batch_size=1, num_cpus=0, compute=readers)
            scored = parts.map_batches(
                PartScorer,
                fn_constructor_args=(export_dir, settings, out, wish, board.actor),
                batch_format="pyarrow",
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=copies),
                num_cpus=settings.cpus_per_replica,
                num_gpus=settings.gpus_per_replica or None,
            )
            for _ in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
                pass
        except (ray.exceptions.RayError, RuntimeError) as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            raise UserError(f"scoring stopped: {line} What was scored is kept; run the same command again.") from error
        finally:
            board.stop()
            context.raise_original_map_exception, context.target_max_block_size = before
