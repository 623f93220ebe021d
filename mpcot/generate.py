"""Asking the teacher: pairs x perspectives x samples through Ray Data and an engine, shared by three stages.

Workers append answers to parquet parts as they finish, keyed by all that decides an answer. A rerun
reads the parts and asks only for what is missing, however the rows are laid out or ordered.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.artifacts import digest, result_settings
from cluster.errors import UserError
from cluster.progress import Board, progress
from cluster.ray_session import stream_parquet
from cluster.storage import read_table, rows_of, write_table
from mpcot.config import AnswerSettings, Engine
from mpcot.engine import ENGINE_ERROR, Ask, replica_resources
from mpcot.labels import Scheme
from mpcot.perspective import Perspective
from mpcot.prompts import answer_regex, messages
from mpcot.records import ANSWER, PAIR

ANSWERS, MISSING, REQUESTED = "answers", "missing", "requested.parquet"
NOT_SAMPLING = {"splits", "pairs_per_split", "max_failed_share", "retries", "samples", "few_shot", "description_chars"}
PAIRS_PER_FILE = 256


@dataclass(frozen=True)
class GenerationPlan:
    """All that a worker needs to ask; pickled to the workers."""

    model: str
    model_digest: str
    engine: Engine
    scheme: Scheme
    perspectives: tuple[Perspective, ...]
    ask: AnswerSettings
    seed: int

    def __getstate__(self) -> dict[str, Any]:
        # A worker comes to its own digest, so that another version of the code there is noticed.
        return {name: value for name, value in vars(self).items() if name != "parameters"}

    @cached_property
    def parameters(self) -> str:
        """Digest of what decides an answer beside its prompt: the model and how it is sampled."""
        kept = {k: v for k, v in result_settings(self.ask).items() if k not in NOT_SAMPLING}
        regex = answer_regex(self.scheme, self.ask.min_chars, self.ask.max_chars)
        return digest([self.model_digest, kept, regex, self.engine.kind, result_settings(self.engine), self.seed])

    def asks(self, pair: dict[str, Any]) -> Iterator[tuple[Perspective, int, Ask]]:
        """Yield every request of a pair: perspectives, then samples, so that they share the cached prompt."""
        for perspective in self.perspectives:
            chat = messages(pair, perspective, self.scheme, self.ask.few_shot, self.ask.description_chars)
            base = digest([pair["pair_id"], perspective.name, chat, self.parameters], 32)
            for sample in range(self.ask.samples):
                key = digest([base, sample], 32)
                yield perspective, sample, Ask(key, chat, int(key[:8], 16) & 0x7FFFFFFF, pair["label"])


def select_pairs(pairs: Path, ask: AnswerSettings) -> Iterator[dict[str, Any]]:
    """Yield the pairs of the asked splits; of each at most `pairs_per_split`, taken in the order of their ids."""
    limit = ask.pairs_per_split
    if limit is None:
        yield from (row for row in rows_of(pairs) if row["split"] in ask.splits)
        return
    ids = read_table(pairs, ["pair_id", "split"]).sort_by("pair_id")
    chosen: set[str] = set()
    for split in ask.splits:
        chosen.update(ids.filter(pc.equal(ids["split"], split))["pair_id"].to_pylist()[:limit])
    yield from (row for row in rows_of(pairs) if row["pair_id"] in chosen)


def generate(plan: GenerationPlan, pairs: Iterable[dict[str, Any]], folder: Path, label: str) -> pa.Table:
    """Ask all that is missing and return one answer per request, sorted by pair, perspective and sample.

    Args:
        folder: the stage's folder; parts go to `folder/answers`.

    Returns:
        Table of schema ANSWER; `reason` is set on failed rows only.

    Raises:
        UserError: no pairs, the engine cannot start, or too large a share of the answers failed.
    """
    answers = folder / ANSWERS
    wanted, missing = _write_missing(plan, pairs, folder / MISSING, _answered(answers))
    if not wanted:
        raise UserError(
            f"{label}: no pairs in the splits {', '.join(plan.ask.splits)}. Look at 1-pairs and at `splits`."
        )
    if missing:
        _run_workers(plan, folder, label, missing)
    shutil.rmtree(folder / MISSING, ignore_errors=True)
    table = _collect(answers, wanted, label)
    write_table(folder / REQUESTED, pa.table({"key": pa.array(sorted(wanted), pa.string())}))
    _check_failures(table, plan.ask, label)
    return table.replace_schema_metadata({"asked": str(missing), "reused": str(len(wanted) - missing)})


def _read(answers: Path, columns: list[str] | None = None) -> pa.Table:
    if any(answers.glob("*.parquet")):
        return read_table(answers, columns)
    return ANSWER.empty_table().select(columns or ANSWER.names)


def _engine_failed(answers: pa.Table) -> pa.Array:
    """Mark the rows that failed by no fault of their own: a rerun asks them again."""
    return pc.fill_null(pc.starts_with(answers["reason"], ENGINE_ERROR), False)


def _answered(answers: Path) -> set[str]:
    table = _read(answers, ["key", "reason"])
    return set(table.filter(pc.invert(_engine_failed(table)))["key"].to_pylist())


def _write_missing(
    plan: GenerationPlan, pairs: Iterable[dict[str, Any]], folder: Path, done: set[str]
) -> tuple[set[str], int]:
    """Write the pairs that lack an answer, and return all wanted keys and the number of missing ones."""
    shutil.rmtree(folder, ignore_errors=True)
    wanted: set[str] = set()
    waiting: list[dict[str, Any]] = []
    missing = files = 0
    schema = PAIR.append(pa.field("keys", pa.list_(pa.string())))
    for pair in pairs:
        keys = [ask.key for _, _, ask in plan.asks(pair)]
        wanted.update(keys)
        lacking = [key for key in keys if key not in done]
        missing += len(lacking)
        if lacking:
            waiting.append(pair | {"keys": lacking})
        if len(waiting) == PAIRS_PER_FILE:
            write_table(folder / f"{files:06d}.parquet", pa.Table.from_pylist(waiting, schema))
            waiting, files = [], files + 1
    if waiting:
        write_table(folder / f"{files:06d}.parquet", pa.Table.from_pylist(waiting, schema))
    return wanted, missing


def _run_workers(plan: GenerationPlan, folder: Path, label: str, missing: int) -> None:
    import ray.data
    import ray.exceptions

    from mpcot.worker import AnswerWorker

    replicas = plan.engine.replicas
    with progress(label, unit="answer", total=missing) as bar:
        board = Board.start(bar)
        try:
            dataset = stream_parquet(folder / MISSING).map_batches(
                AnswerWorker,
                fn_constructor_args=(plan, str((folder / ANSWERS).resolve()), board.actor),
                batch_size=replicas.pairs_per_task,
                compute=ray.data.ActorPoolStrategy(min_size=replicas.min, max_size=replicas.max),
                **replica_resources(plan.engine),
            )
            for _ in dataset.iter_batches(batch_size=None):
                pass
        except (ray.exceptions.RayError, RuntimeError) as error:
            raise UserError(
                f"{label}: the engine stopped: {_cause(error)}. Finished answers are kept; run again."
            ) from error
        finally:
            board.stop()


def _cause(error: BaseException) -> str:
    """Return what the worker itself said: the last line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _collect(answers: Path, wanted: set[str], label: str) -> pa.Table:
    """Return one row per wanted key. A key answered twice (a worker died after writing, an engine failed) counts once.

    Raises:
        UserError: keys without an answer; names the first few.
    """
    table = _read(answers)
    failed = _engine_failed(table)
    table = pa.concat_tables([table.filter(pc.invert(failed)), table.filter(failed)])
    table = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    first = table.group_by("key").aggregate([("row", "min")])
    table = table.take(first["row_min"].sort()).drop_columns("row").select(ANSWER.names).cast(ANSWER)
    table = table.filter(pc.is_in(table["key"], pa.array(sorted(wanted), pa.string())))
    if len(table) != len(wanted):
        lost = sorted(wanted - set(table["key"].to_pylist()))
        raise UserError(
            f"{label}: {len(lost)} answers are missing, first {', '.join(lost[:3])}. Run the command again."
        )
    return table.sort_by([("pair_id", "ascending"), ("perspective", "ascending"), ("sample", "ascending")])


def _check_failures(table: pa.Table, ask: AnswerSettings, label: str) -> None:
    failed = table.filter(pc.is_valid(table["reason"]))
    share = len(failed) / len(table)
    if share <= ask.max_failed_share:
        return
    counted = {
        r["reason"]: r["reason_count"] for r in failed.group_by("reason").aggregate([("reason", "count")]).to_pylist()
    }
    worst = sorted(counted.items(), key=lambda item: -item[1])[:3]
    why = "; ".join(f"{count} x {reason}" for reason, count in worst)
    raise UserError(
        f"{label}: {share:.0%} of the answers failed, more than max_failed_share {ask.max_failed_share:.0%}: {why}."
    )
