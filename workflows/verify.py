"""`broadfast verify`: every manifest's files, and every stage's ledger by id set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.artifacts import read_manifest
from cluster.errors import UsageError
from cluster.storage import read_table
from mpcot.generate import ANSWERS, REQUESTED
from workflows.stages import STAGES

Result = tuple[str, str, list[str]]


def verify_run(run_dir: Path) -> list[Result]:
    """Return per finished stage its name, its counts in words, and what does not balance.

    Raises:
        UsageError: not a run folder.
    """
    if not any((run_dir / stage.name).is_dir() for stage in STAGES):
        raise UsageError(f"{run_dir} is not a run folder: none of {STAGES[0].name} to {STAGES[-1].name} is in it")
    results = []
    for stage in STAGES:
        folder = run_dir / stage.name
        if not folder.is_dir():
            continue
        manifest = read_manifest(folder)
        if manifest is None:
            results.append((stage.name, "", ["has not finished: no manifest"]))
            continue
        wrong = _files(folder, manifest) + _inputs(run_dir, manifest)
        try:
            wrong += LEDGERS.get(stage.name, _no_ledger)(run_dir, manifest)
        except (OSError, pa.ArrowException) as error:
            wrong = wrong or [f"cannot be read: {error}"]
        results.append((stage.name, ", ".join(f"{k} {v:,}" for k, v in manifest["counts"].items()), wrong))
    return results


def _files(folder: Path, manifest: dict[str, Any]) -> list[str]:
    wrong = []
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != size:
            wrong.append(f"{name} has {path.stat().st_size:,} bytes, the manifest says {size:,}")
    return wrong


def _inputs(run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    wrong = []
    for name, fingerprint in manifest["inputs"].items():
        made = read_manifest(run_dir / name)
        if made is None or made["fingerprint"] != fingerprint:
            wrong.append(f"{name} was made again after this stage read it")
    return wrong


def _no_ledger(run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    return []


def _ids(path: Path, column: str = "pair_id") -> list[str]:
    return read_table(path, [column])[column].to_pylist()


def _rows(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    return read_table(path, columns).to_pylist()


def _compare(what: str, expected: set[str], found: list[str]) -> list[str]:
    """Name what is missing, what nobody asked for, and what is there twice."""
    wrong = []
    present = set(found)
    for name, ids in (("lost", expected - present), ("unknown", present - expected)):
        if ids:
            wrong.append(f"{what}: {len(ids)} {name}, first {', '.join(sorted(ids)[:3])}")
    if twice := sorted(i for i, times in Counter(found).items() if times > 1):
        wrong.append(f"{what}: {len(twice)} ids are there twice, first {', '.join(twice[:3])}")
    return wrong


def _pairs(run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    folder, counts = run_dir / "1-pairs", manifest["counts"]
    ids = _ids(folder / "pairs.parquet")
    failed = len(read_table(folder / "failed.parquet", ["source_row"]))
    wrong = _compare("pairs", set(ids), ids)
    if counts["read"] != len(ids) + failed:
        wrong.append(f"read {counts['read']:,}, but {len(ids):,} pairs and {failed:,} failed are there")
    return wrong


def _answers(name: str) -> Callable[[Path, dict[str, Any]], list[str]]:
    def check(run_dir: Path, manifest: dict[str, Any]) -> list[str]:
        folder, counts = run_dir / name, manifest["counts"]
        keys = {part: _ids(folder / f"{part}.parquet", "key") for part in ("kept", "filtered", "failed")}
        found = [key for part in keys.values() for key in part]
        names = _requests(folder)
        wrong = _compare("answers", set(names.values()), [names.get(key, key) for key in found])
        wrong += [
            f"{part}: {len(k):,} rows, the manifest says {counts[part]:,}"
            for part, k in keys.items()
            if len(k) != counts[part]
        ]
        if counts["requested"] != len(found):
            wrong.append(f"requested {counts['requested']:,}, answered {len(found):,}")
        return wrong

    return check


def _requests(folder: Path) -> dict[str, str]:
    """Return what was asked: the answer's key -> pair/perspective/sample, or the key itself where none came."""
    columns = ["key", "pair_id", "perspective", "sample"]
    came = {r["key"]: f"{r['pair_id']}/{r['perspective']}/{r['sample']}" for r in _rows(folder / ANSWERS, columns)}
    return {key: came.get(key, key) for key in _ids(folder / REQUESTED, "key")}


def _preferences(run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    columns = ["preference_id", "pair_id", "chosen_reference_logprob", "rejected_reference_logprob"]
    rows = _rows(run_dir / "5-preferences" / "preferences.parquet", columns)
    ids = [row["preference_id"] for row in rows]
    pairs = set(_ids(run_dir / "1-pairs" / "pairs.parquet"))
    wrong = _compare("preferences", set(ids), ids)
    wrong += _compare("preferences' pairs", pairs & {r["pair_id"] for r in rows}, list({r["pair_id"] for r in rows}))
    if len(rows) != manifest["counts"]["preferences"]:
        wrong.append(f"{len(rows):,} preferences, the manifest says {manifest['counts']['preferences']:,}")
    if unscored := [row["preference_id"] for row in rows if None in row.values()]:
        wrong.append(f"{len(unscored)} preferences have no reference log-probabilities, first {unscored[0]}")
    return wrong


def _judgements(run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    folder, counts = run_dir / "7-judgements", manifest["counts"]
    judged = _ids(folder / "judgements.parquet")
    pairs = set(_ids(run_dir / "1-pairs" / "pairs.parquet"))
    asked = {name.partition("/")[0] for name in _requests(folder).values()}
    failed = set(_ids(folder / "failed.parquet")) - set(judged)
    wrong = _compare("judgements", asked & pairs - failed, judged)
    if counts["requested"] != counts["judged"] + counts["failed"] or counts["judged"] != len(judged):
        wrong.append(f"requested {counts['requested']:,}, judged {len(judged):,}, failed {counts['failed']:,}")
    return wrong


def _targets(run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    expected = set(_ids(run_dir / "7-judgements" / "judgements.parquet"))
    found = [i for part in ("targets", "failed") for i in _ids(run_dir / "8-targets" / f"{part}.parquet")]
    return _compare("targets", expected, found)


def _student(run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    table = read_table(run_dir / "1-pairs" / "pairs.parquet", ["pair_id", "split"]).to_pylist()
    expected = {row["pair_id"] for row in table if row["split"] in ("dev", "test")}
    wrong = []
    for path in sorted((run_dir / "9-student").glob("*/predictions.parquet")):
        rows = read_table(path, ["pair_id", "split"]).to_pylist()
        found = [row["pair_id"] for row in rows if row["split"] in ("dev", "test")]
        wrong += _compare(f"predictions of {path.parent.name}", expected, found)
    return wrong


LEDGERS: dict[str, Callable[[Path, dict[str, Any]], list[str]]] = {
    "1-pairs": _pairs,
    "2-rationales": _answers("2-rationales"),
    "4-samples": _answers("4-samples"),
    "5-preferences": _preferences,
    "7-judgements": _judgements,
    "8-targets": _targets,
    "9-student": _student,
}
