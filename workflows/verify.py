"""What `broadfast verify` checks: the files of every manifest, and the ledger of every stage as sets of ids.

Ids are compared by digests of 16 bytes, and only those that a message names are kept as text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.base.errors import UsageError
from cluster.base.id_sets import IdSet
from cluster.base.stage_folder import read_manifest
from cluster.base.tables import batches_of, rows_of, values_of
from mpcot.asking.answers import ANSWERS
from mpcot.asking.generate import REQUESTED, REQUESTED_HINTED
from mpcot.asking.prompts import VERDICT
from mpcot.pairs.given_judgements import FAILED, GIVEN
from workflows.stages import STAGES

BATCH = 65536
NAMED = 1000  # with more wrong ids than this, the message may name others than the first
Result = tuple[str, str, list[str]]


def verify_run(run_dir: Path) -> list[Result]:
    """Return for each stage its name, its counts in words, and what is wrong with it.

    Raises:
        UsageError: this is not a run folder.
    """
    if not any((run_dir / stage.name).is_dir() for stage in STAGES):
        raise UsageError(f"{run_dir} is not a run folder: none of {STAGES[0].name} to {STAGES[-1].name} is in it")
    results = []
    for stage in STAGES:
        folder = run_dir / stage.name
        manifest = read_manifest(folder)
        if manifest is None:
            results += [(stage.name, "", ["has not finished: no manifest"])] if folder.is_dir() else []
            continue
        wrong = _files(folder, manifest) + _inputs(run_dir, manifest)
        try:
            wrong += LEDGERS[stage.name](run_dir, manifest) if stage.name in LEDGERS else []
        except (OSError, pa.ArrowException) as error:
            wrong = wrong or [f"cannot be read: {error}"]
        results.append((stage.name, ", ".join(f"{k} {v:,}" for k, v in manifest["counts"].items()), wrong))
    return results


def _files(folder: Path, manifest: dict[str, Any]) -> list[str]:
    there = {name: (folder / name).stat().st_size for name in manifest["files"] if (folder / name).is_file()}
    return [
        f"{name} has {there[name]:,} bytes, the manifest says {size:,}" if name in there else f"{name} is missing"
        for name, size in manifest["files"].items()
        if there.get(name) != size
    ]


def _inputs(run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    return [
        f"{name} was made again after this stage read it"
        for name, fingerprint in manifest["inputs"].items()
        if (read_manifest(run_dir / name) or {}).get("fingerprint") != fingerprint
    ]


@dataclass(frozen=True)
class Ids:
    """A column of ids in parquet files, which are read again whenever the ids are needed."""

    paths: tuple[Path, ...]
    column: str = "pair_id"
    beside: tuple[str, ...] = ()
    where: Callable[[pa.RecordBatch], Any] | None = None

    def batches(self) -> Iterator[list[str]]:
        """Yield some of the ids at a time: those that `where`, which also gets the columns `beside`, marks as true."""
        for path in self.paths:
            for batch in batches_of(path, [self.column, *self.beside], BATCH):
                kept = batch if self.where is None else batch.filter(pa.array(self.where(batch)))
                yield kept[self.column].to_pylist()

    def set(self) -> IdSet:
        """Return the ids as a set."""
        return IdSet(self.batches())


@dataclass(frozen=True)
class Several:
    """The ids of several columns, which a message may name."""

    parts: tuple[Ids, ...]

    def batches(self) -> Iterator[list[str]]:
        """Yield some of the ids at a time."""
        for part in self.parts:
            yield from part.batches()


def _ids(folder: Path, *names: str, column: str = "pair_id") -> Ids:
    return Ids(tuple(folder / f"{name}.parquet" for name in names), column)


def _compare(
    what: str, expected: IdSet, found: Ids, lost: Ids | Several, name: Callable[[list[str]], Iterable[str]] = list
) -> list[str]:
    """Name the ids that are missing, those that nobody asked for, and those that occur twice.

    Args:
        lost: contains the texts of the expected ids.
        name: turns ids into their names in the message.
    """
    wrong = []
    present = found.set()
    kinds = (("lost", expected.minus(present), lost), ("unknown", present.minus(expected), found))
    for kind, ids, texts in (*kinds, ("ids occur twice", present.repeated(), found)):
        if len(ids):
            first = sorted(name(ids.first(texts.batches(), NAMED)))[:3]
            wrong.append(f"{what}: {len(ids)} {kind}, first {', '.join(first)}")
    return wrong


def _pairs(run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    folder, counts = run_dir / "1-pairs", manifest["counts"]
    pairs = _ids(folder, "pairs")
    found = pairs.set()
    failed = sum(len(batch) for batch in values_of(folder / "failed.parquet", "source_row"))
    wrong = _compare("pairs", found, pairs, pairs)
    if counts["read"] != len(found) + failed:
        wrong.append(f"read {counts['read']:,}, but there are {len(found):,} pairs and {failed:,} failed rows")
    return wrong + _given(folder, counts, found)


def _given(folder: Path, counts: dict[str, int], pairs: IdSet) -> list[str]:
    """Check the judgements from elsewhere, if there are any: as many as counted, and all of known pairs."""
    if "judgements" not in counts:
        return []
    tables = {"judgements": GIVEN, "judgements_failed": FAILED}
    rows = {name: _rows(folder / table) for name, table in tables.items()}
    said = [f"{name}: {n:,} rows, the manifest says {counts[name]:,}" for name, n in rows.items() if n != counts[name]]
    judged = Ids((folder / GIVEN,))
    unknown = judged.set().minus(pairs)
    if len(unknown):
        said.append(f"judgements of {len(unknown)} unknown pairs, first {unknown.first(judged.batches(), 1)[0]}")
    return said


def _answers(run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    folder, counts = run_dir / manifest["stage"], manifest["counts"]
    sizes = {part: _rows(folder / f"{part}.parquet") for part in ("kept", "filtered", "failed")}
    hinted = folder / REQUESTED_HINTED
    asked = Ids((folder / REQUESTED, *([hinted] if hinted.exists() else [])), "key")
    found = _ids(folder, *sizes, column="key")
    wrong = _compare("answers", asked.set(), found, asked, lambda keys: _places(folder, keys))
    wrong += [
        f"{part}: {rows:,} rows, the manifest says {counts[part]:,}"
        for part, rows in sizes.items()
        if rows != counts[part]
    ]
    if counts["requested"] != sum(sizes.values()):
        wrong.append(f"requested {counts['requested']:,}, answered {sum(sizes.values()):,}")
    return wrong


def _rows(path: Path) -> int:
    return pq.read_metadata(path).num_rows


def _places(folder: Path, keys: list[str]) -> list[str]:
    """Return what was asked as pair/perspective/sample, or the key itself where there is no answer."""
    named = {key: key for key in keys}
    wanted = pa.array(keys, pa.string())
    for batch in batches_of(folder / ANSWERS, ["key", "pair_id", "perspective", "sample"], BATCH):
        for row in batch.filter(pc.is_in(batch["key"], wanted)).to_pylist():
            named[row["key"]] = f"{row['pair_id']}/{row['perspective']}/{row['sample']}"
    return list(named.values())


def _preferences(run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    path, pairs = run_dir / "5-preferences" / "preferences.parquet", _ids(run_dir / "1-pairs", "pairs")
    scores = ("chosen_reference_logprob", "rejected_reference_logprob")
    own = Ids((path,), "preference_id")
    wrong = _compare("preferences", own.set(), own, own)
    unknown = Ids((path,)).set().minus(pairs.set())
    if len(unknown):
        first = unknown.first(Ids((path,)).batches(), 3)
        wrong.append(f"preferences' pairs: {len(unknown)} unknown, first {', '.join(first)}")
    if _rows(path) != manifest["counts"]["preferences"]:
        wrong.append(f"{_rows(path):,} preferences, the manifest says {manifest['counts']['preferences']:,}")
    wrong += _one_right_one_wrong(run_dir / "1-pairs" / "pairs.parquet", path)
    unscored = [row["preference_id"] for row in rows_of(path, ["preference_id", *scores]) if None in row.values()]
    if unscored:
        wrong.append(f"{len(unscored)} preferences have no reference log-probabilities, first {unscored[0]}")
    return wrong


def _one_right_one_wrong(pairs: Path, preferences: Path) -> list[str]:
    """Name the preferences whose chosen verdict is not the gold label, and those whose rejected one is."""
    gold = IdSet(
        [f"{row['pair_id']}/{row['label']}" for row in batch.to_pylist()]
        for batch in batches_of(pairs, ["pair_id", "label"], BATCH)
    )
    found = []
    for side, right in (("chosen", True), ("rejected", False)):
        swapped: list[str] = []
        for batch in batches_of(preferences, ["preference_id", "pair_id", side], BATCH):
            ids, pair_ids, texts = (batch[name].to_pylist() for name in ("preference_id", "pair_id", side))
            said = [f"{pair}/{text.rpartition(VERDICT)[2].strip()}" for pair, text in zip(pair_ids, texts, strict=True)]
            swapped += [i for i, has in zip(ids, gold.has(said).tolist(), strict=True) if has is not right]
        if swapped:
            found.append(f"{len(swapped)} {side} answers are {'wrong' if right else 'right'}, first {swapped[0]}")
    return found


def _judgements(run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    folder, counts = run_dir / "7-judgements", manifest["counts"]
    judged, rows = _ids(folder, "judgements"), _rows(folder / "judgements.parquet")
    sources = [_ids(folder, "given")] if (folder / "given.parquet").exists() else []
    if (folder / REQUESTED).exists():  # somebody was asked
        requested = Ids((folder / REQUESTED,), "key").set()
        sources.append(
            Ids((folder / ANSWERS,), beside=("key",), where=lambda batch: requested.has(batch["key"].to_pylist()))
        )
    spoken = Several(tuple(sources))
    known = IdSet(spoken.batches()).both(_ids(run_dir / "1-pairs", "pairs").set())
    failed = _ids(folder, "failed").set().minus(judged.set())
    wrong = _compare("judgements", known.minus(failed), judged, spoken)
    unjudged = counts.get("failed", 0) + counts.get("left_out", 0)
    if counts["requested"] != counts["judged"] + unjudged or counts["judged"] != rows:
        wrong.append(f"requested {counts['requested']:,}, judged {rows:,}, failed or left out {unjudged:,}")
    return wrong


def _targets(run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    expected = _ids(run_dir / "7-judgements", "judgements")
    return _compare("targets", expected.set(), _ids(run_dir / "8-targets", "targets", "failed"), expected)


def _student(run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    held_out = Ids((run_dir / "1-pairs" / "pairs.parquet",), beside=("split",), where=_held_out)
    expected = held_out.set()
    wrong = []
    for path in sorted((run_dir / "9-student").glob("*/predictions.parquet")):
        found = Ids((path,), beside=("split",), where=_held_out)
        wrong += _compare(f"predictions of {path.parent.name}", expected, found, held_out)
    return wrong


def _held_out(batch: pa.RecordBatch) -> Any:
    return pc.is_in(batch["split"], pa.array(["dev", "test"]))


LEDGERS: dict[str, Callable[[Path, dict[str, Any]], list[str]]] = {
    "1-pairs": _pairs,
    "2-rationales": _answers,
    "4-samples": _answers,
    "5-preferences": _preferences,
    "7-judgements": _judgements,
    "8-targets": _targets,
    "9-student": _student,
}
