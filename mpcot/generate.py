"""Asking the teacher: pairs x perspectives x samples through Ray Data and an engine, shared by three stages.

Workers append answers to parquet parts as they finish, keyed by all that decides an answer. A rerun
reads the parts and asks only for what is missing, however the rows are laid out or ordered. Of each
answered request the driver holds 16 bytes while it finds out what is missing; all else is in pieces.
"""

from __future__ import annotations

import hashlib
import heapq
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.artifacts import digest, result_settings
from cluster.errors import UserError
from cluster.ids import IdSet
from cluster.progress import Board, progress
from cluster.ray_session import stream_parquet
from cluster.storage import batches_of, rows_of, table_writer, write_table
from mpcot.config import AnswerSettings, Engine
from mpcot.engine import Ask, replica_resources
from mpcot.labels import Scheme
from mpcot.perspective import Perspective
from mpcot.prompts import Message, answer_regex, messages
from mpcot.records import PAIR
from mpcot.shelves import REQUEST, Shelf, deal, deal_answers, engine_failed, put_together

ANSWERS, MISSING, TRIED, SHELVES = "answers", "missing", "tried", "shelves"
REQUESTED, REQUESTED_HINTED = "requested.parquet", "requested-hinted.parquet"
NOT_SAMPLING = {
    "splits", "pairs_per_split", "max_failed_share", "retries", "samples", "few_shot", "description_chars", "filters",
    "hinted_retry",
}  # fmt: skip
PAIRS_PER_FILE = 256
PAIRS_AT_A_TIME = 8192
KEY = pa.schema([pa.field("key", pa.string())])
MISSING_PAIR = PAIR.append(pa.field("keys", pa.list_(pa.string()))).append(pa.field("file", pa.string()))


@dataclass(frozen=True)
class GenerationPlan:
    """All that a worker needs to ask; pickled to the workers. `hinted` gives the gold label away in the prompt."""

    model: str
    model_digest: str
    engine: Engine
    scheme: Scheme
    perspectives: tuple[Perspective, ...]
    ask: AnswerSettings
    seed: int
    hinted: bool = False

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
            chat = self._chat(pair, perspective, self.ask.description_chars)
            shorter = partial(self._chat, pair, perspective) if self.ask.when_too_long == "cut" else None
            told = [text for message in chat for text in (message["role"], message["content"])]
            base = _key(self.parameters, pair["pair_id"], perspective.name, *told)
            for sample in range(self.ask.samples):
                key = _key(base, str(sample))
                yield perspective, sample, Ask(key, chat, int(key[:8], 16) & 0x7FFFFFFF, pair["label"], shorter)

    def _chat(self, pair: dict[str, Any], perspective: Perspective, description_chars: int) -> list[Message]:
        hint = pair["label"] if self.hinted else None
        return messages(pair, perspective, self.scheme, self.ask.few_shot, description_chars, hint)


def _key(*texts: str) -> str:
    """Return 32 hex digits of the texts; their lengths are hashed too, so that no border can move."""
    joined = "".join(f"{len(text)}:{text}" for text in texts)
    return hashlib.sha256(joined.encode()).hexdigest()[:32]


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


@dataclass(frozen=True)
class Answers:
    """What was asked and answered: read it shelf by shelf.

    `requested` are all requests, `asked` those of them that this call asked; `hinted` as in the plan.
    """

    folder: Path
    label: str
    most_failed: float
    requested: int
    asked: int
    hinted: bool = False

    def shelves(self, again: bool = False) -> Iterator[Shelf]:
        """Yield every request's answer once, sorted by pair, perspective and sample; failed ones have a `reason`.

        Args:
            again: they will be read once more.

        Raises:
            UserError: after the last shelf, when answers are missing or too large a share of them failed: what
                was written from the shelves must not be kept then.
        """
        place = shelves_of(self.folder, self.hinted)
        deal_answers(self.folder / ANSWERS, place / "answers")
        lost, some = 0, list[str]()
        reasons: Counter[str] = Counter()
        for shelf in put_together(place / "requests", place / "answers"):
            lost, some = lost + len(shelf.lost), sorted([*some, *shelf.lost])[:3]
            reasons.update(shelf.answers["reason"].drop_null().to_pylist())
            yield shelf
        if lost:
            raise UserError(
                f"{self.label}: {lost} answers are missing, first {', '.join(some)}. Run the command again."
            )
        self._check_failures(reasons)
        if not again:
            shutil.rmtree(place)

    def _check_failures(self, reasons: Counter[str]) -> None:
        share = reasons.total() / self.requested
        if share > self.most_failed:
            raise UserError(f"{self.label}: {too_many_failed(share, self.most_failed, reasons)}")


def shelves_of(folder: Path, hinted: bool) -> Path:
    """Return where requests and answers are put together."""
    return folder / (f"{SHELVES}-hinted" if hinted else SHELVES)


class TooManyFailed(RuntimeError):
    """So many answers have failed that the stage cannot end well."""


def too_many_failed(share: float, most: float, reasons: Counter[str]) -> str:
    """Return the message about failed answers, with the most frequent reasons."""
    why = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
    return f"{share:.0%} of the answers failed, more than max_failed_share {most:.0%}: {why}."


def generate(plan: GenerationPlan, pairs: Iterable[dict[str, Any]], folder: Path, label: str) -> Answers:
    """Ask all that is missing.

    Args:
        folder: the stage's folder; parts go to `folder/answers`.

    Raises:
        UserError: no pairs, or the engine cannot start or stopped.
    """
    requested, missing = _write_missing(plan, pairs, folder)
    if not requested:
        raise UserError(
            f"{label}: no pairs in the splits {', '.join(plan.ask.splits)}. Look at 1-pairs and at `splits`."
        )
    if missing:
        _run_workers(plan, folder, label, requested, missing)
    shutil.rmtree(folder / MISSING, ignore_errors=True)
    return Answers(folder, label, plan.ask.max_failed_share, requested, missing, plan.hinted)


def _answered(answers: Path) -> IdSet:
    def keys() -> Iterator[list[str]]:
        for batch in batches_of(answers, ["key", "reason"], PAIRS_AT_A_TIME):
            yield batch["key"].filter(pc.invert(engine_failed(batch["reason"]))).to_pylist()

    return IdSet(keys())


def _write_missing(plan: GenerationPlan, pairs: Iterable[dict[str, Any]], folder: Path) -> tuple[int, int]:
    """Write all requests and the pairs that lack an answer; return the numbers of requests, all and missing."""
    shutil.rmtree(folder / MISSING, ignore_errors=True)
    (folder / REQUESTED_HINTED).unlink(missing_ok=True)
    (folder / ANSWERS).mkdir(parents=True, exist_ok=True)
    done = _answered(folder / ANSWERS)
    counts: Counter[str] = Counter()

    def requests() -> Iterator[pa.Table]:
        stream = iter(pairs)
        while rows := list(islice(stream, PAIRS_AT_A_TIME)):
            keys = [[ask.key for _, _, ask in plan.asks(row)] for row in rows]
            flat = [key for own in keys for key in own]
            known = iter(done.has(flat).tolist())
            lacking = [[key for key in own if not next(known)] for own in keys]
            waiting = [row | {"keys": own} for row, own in zip(rows, lacking, strict=True) if own]
            counts["files"] += _write_pairs(waiting, folder / MISSING, counts["files"])
            counts["missing"] += sum(map(len, lacking))
            counts["requested"] += len(flat)
            written.write_table(pa.table([flat], schema=KEY))
            yield pa.table([*([row[name] for row in rows] for name in REQUEST.names[:-1]), keys], schema=REQUEST)

    with table_writer(folder / (REQUESTED_HINTED if plan.hinted else REQUESTED), KEY) as written:
        deal(requests(), REQUEST, shelves_of(folder, plan.hinted) / "requests")
    return counts["requested"], counts["missing"]


def _write_pairs(rows: list[dict[str, Any]], folder: Path, first: int) -> int:
    """Write pairs with their missing keys to files numbered from `first` on; return how many files."""
    starts = range(0, len(rows), PAIRS_PER_FILE)
    for number, start in enumerate(starts, first):
        name = f"{number:06d}"
        named = [row | {"file": name} for row in rows[start : start + PAIRS_PER_FILE]]
        write_table(folder / f"{name}.parquet", pa.Table.from_pylist(named, MISSING_PAIR))
    return len(starts)


def _run_workers(plan: GenerationPlan, folder: Path, label: str, requested: int, missing: int) -> None:
    import ray.data
    import ray.exceptions

    from mpcot.worker import AnswerWorker

    replicas = plan.engine.replicas
    # What a worker raises arrives as what it is, not as words of Ray Data about it.
    ray.data.DataContext.get_current().raise_original_map_exception = True
    with progress(label, unit="answer", total=missing) as bar:
        board = Board.start(bar)
        try:
            dataset = stream_parquet(folder / MISSING).map_batches(
                AnswerWorker,
                fn_constructor_args=(
                    plan,
                    str((folder / ANSWERS).resolve()),
                    str((folder / MISSING / TRIED).resolve()),
                    board.actor,
                    requested,
                ),
                batch_size=replicas.pairs_per_task,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(min_size=replicas.min, max_size=replicas.max),
                **replica_resources(plan.engine),
            )
            for _ in dataset.iter_batches(batch_size=None):
                pass
        except (ray.exceptions.RayError, RuntimeError) as error:
            raise UserError(f"{label}: {_what_happened(error)} Finished answers are kept; run again.") from error
        finally:
            board.stop()


def _what_happened(error: BaseException) -> str:
    """Return what the worker itself said, or the last line of what Ray says."""
    import ray.exceptions

    said = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    if isinstance(said, TooManyFailed | UserError):
        return str(said)
    lines = [line.strip() for line in str(said).splitlines() if line.strip()]
    return f"the engine stopped: {(lines[-1] if lines else type(said).__name__).rstrip('.')}."
