"""What `broadfast verify` checks: the files of every manifest, and the ledger of every stage as sets of ids."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.base.errors import UsageError
from cluster.base.sql import Database, database, scan
from cluster.base.stage_folder import read_manifest
from cluster.base.tables import parquet_files
from mpcot.asking.answers import ANSWERS
from mpcot.asking.missing_requests import REQUESTED, REQUESTED_HINTED
from mpcot.asking.prompts import VERDICT
from mpcot.pairs.given_judgements import FAILED, GIVEN
from workflows.stages import STAGES

FIRST = "ORDER BY id LIMIT 1000"  # with more wrong ids than this, the message may name others than the first
FIRST_PREFERENCE = "arg_min(preference_id, file_row_number)"
Naming = Callable[[list[str]], list[str]]
Result = tuple[str, str, list[str]]


def verify_run(run_dir: Path) -> list[Result]:
    """Return for each stage its name, its counts in words, and what is wrong with it.

    Raises:
        UsageError: this is not a run folder.
    """
    if not any((run_dir / stage.name).is_dir() for stage in STAGES):
        raise UsageError(f"{run_dir} is not a run folder: none of {STAGES[0].name} to {STAGES[-1].name} is in it")
    with database(run_dir) as data:
        folders = (run_dir / stage.name for stage in STAGES)
        return [_verified(data, folder) for folder in folders if folder.is_dir()]


def _verified(data: Database, folder: Path) -> Result:
    manifest, run_dir = read_manifest(folder), folder.parent
    if manifest is None:
        return folder.name, "", ["has not finished: no manifest"]
    wrong = _files(folder, manifest) + _inputs(run_dir, manifest)
    try:
        wrong += LEDGERS[folder.name](data, run_dir, manifest) if folder.name in LEDGERS else []
    except (OSError, pa.ArrowException, duckdb.Error) as error:
        wrong = wrong or [f"cannot be read: {error}"]
    return folder.name, ", ".join(f"{k} {v:,}" for k, v in manifest["counts"].items()), wrong


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


def _ids(*paths: Path, column: str = "pair_id", where: str = "true") -> str:
    """Return the SQL of a column of ids in parquet files."""
    return f"SELECT {column} AS id FROM {scan(*paths)} WHERE {where}"


def _files_of(folder: Path, *names: str) -> list[Path]:
    return [folder / f"{name}.parquet" for name in names]


def _compare(data: Database, what: str, expected: str, found: str, name: Naming = list) -> list[str]:
    """Name the ids that are missing, those that nobody asked for, and those that occur twice.

    Args:
        expected: SQL of the ids that should be there; `found` of those that are.
        name: turns ids into their names in the message.
    """
    kinds = {
        "lost": f"SELECT DISTINCT id FROM ({expected}) ANTI JOIN ({found}) USING (id)",
        "unknown": f"SELECT DISTINCT id FROM ({found}) ANTI JOIN ({expected}) USING (id)",
        "ids occur twice": f"SELECT id FROM ({found}) GROUP BY id HAVING count(*) > 1",
    }
    wrong = []
    for kind, query in kinds.items():
        rows = data.rows(f"WITH wrong AS ({query}) SELECT id, (SELECT count(*) FROM wrong) FROM wrong {FIRST}")
        if rows:
            first = sorted(name([row[0] for row in rows]))[:3]
            wrong.append(f"{what}: {rows[0][1]} {kind}, first {', '.join(first)}")
    return wrong


def _pairs(data: Database, run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    folder, counts = run_dir / "1-pairs", manifest["counts"]
    pairs = _ids(folder / "pairs.parquet")
    wrong = _compare(data, "pairs", pairs, pairs)
    found, failed = _rows(folder / "pairs.parquet"), _rows(folder / "failed.parquet")
    if counts["read"] != found + failed:
        wrong.append(f"read {counts['read']:,}, but there are {found:,} pairs and {failed:,} failed rows")
    return wrong + _given(data, folder, counts)


def _given(data: Database, folder: Path, counts: dict[str, int]) -> list[str]:
    """Check the judgements from elsewhere, if there are any: as many as counted, and all of known pairs."""
    if "judgements" not in counts:
        return []
    tables = {"judgements": GIVEN, "judgements_failed": FAILED}
    rows = {name: _rows(folder / table) for name, table in tables.items()}
    said = [f"{name}: {n:,} rows, the manifest says {counts[name]:,}" for name, n in rows.items() if n != counts[name]]
    return said + _unknown(data, "judgements", folder / GIVEN, folder / "pairs.parquet")


def _unknown(data: Database, what: str, rows: Path, pairs: Path) -> list[str]:
    query = f"SELECT count(DISTINCT id), min(id) FROM ({_ids(rows)}) ANTI JOIN ({_ids(pairs)}) USING (id)"
    ((count, first),) = data.rows(query)
    return [f"{what} of {count} unknown pairs, first {first}"] if count else []


def _answers(data: Database, run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    folder, counts = run_dir / manifest["stage"], manifest["counts"]
    sizes = {part: _rows(folder / f"{part}.parquet") for part in ("kept", "filtered", "failed")}
    asked = [path for path in (folder / REQUESTED, folder / REQUESTED_HINTED) if path.exists()]
    found = _ids(*_files_of(folder, *sizes), column="key")
    wrong = _compare(data, "answers", _ids(*asked, column="key"), found, partial(_places, data, folder))
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


def _places(data: Database, folder: Path, keys: list[str]) -> list[str]:
    """Return what was asked as pair/perspective/sample, or the key itself where there is no answer."""
    if not parquet_files(folder / ANSWERS):
        return keys
    query = f"""SELECT DISTINCT coalesce(pair_id || '/' || perspective || '/' || sample, key)
        FROM wrong LEFT JOIN {scan(folder / ANSWERS)} USING (key)"""
    return [name for (name,) in data.rows(query, wrong=pa.table({"key": keys}))]


def _preferences(data: Database, run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    path, pairs = run_dir / "5-preferences" / "preferences.parquet", run_dir / "1-pairs" / "pairs.parquet"
    own = _ids(path, column="preference_id")
    wrong = _compare(data, "preferences", own, own) + _unknown(data, "preferences", path, pairs)
    if _rows(path) != manifest["counts"]["preferences"]:
        wrong.append(f"{_rows(path):,} preferences, the manifest says {manifest['counts']['preferences']:,}")
    wrong += _one_right_one_wrong(data, pairs, path)
    unscored = "chosen_reference_logprob IS NULL OR rejected_reference_logprob IS NULL"
    ((count, first),) = data.rows(f"SELECT count(*), {FIRST_PREFERENCE} FROM {scan(path)} WHERE {unscored}")
    if count:
        wrong.append(f"{count} preferences have no reference log-probabilities, first {first}")
    return wrong


def _one_right_one_wrong(data: Database, pairs: Path, preferences: Path) -> list[str]:
    """Name the preferences whose chosen verdict is not the gold label, and those whose rejected one is."""
    found = []
    for side, right in (("chosen", "right"), ("rejected", "wrong")):
        verdict = f"trim(string_split({side}, '{VERDICT}')[-1], ' \n')"
        query = f"""SELECT count(*), {FIRST_PREFERENCE} FROM {scan(preferences)} LEFT JOIN
            (SELECT pair_id, label FROM {scan(pairs)}) USING (pair_id)
            WHERE coalesce({verdict} = label, false) != {right == "right"}"""
        ((count, first),) = data.rows(query)
        if count:
            found.append(f"{count} {side} answers are {'wrong' if right == 'right' else 'right'}, first {first}")
    return found


def _judgements(data: Database, run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    folder, counts = run_dir / "7-judgements", manifest["counts"]
    judged, rows = _ids(folder / "judgements.parquet"), _rows(folder / "judgements.parquet")
    spoken = [_ids(path) for path in _files_of(folder, "given") if path.exists()]
    if (folder / REQUESTED).exists() and parquet_files(folder / ANSWERS):  # somebody was asked
        spoken.append(f"{_ids(folder / ANSWERS)} AND key IN (SELECT key FROM {scan(folder / REQUESTED)})")
    expected = f"""(({" UNION ".join(spoken)}) INTERSECT {_ids(run_dir / "1-pairs" / "pairs.parquet")})
        EXCEPT ({_ids(folder / "failed.parquet")} EXCEPT {judged})"""
    wrong = _compare(data, "judgements", expected, judged)
    unjudged = counts.get("failed", 0) + counts.get("left_out", 0)
    if counts["requested"] != counts["judged"] + unjudged or counts["judged"] != rows:
        wrong.append(f"requested {counts['requested']:,}, judged {rows:,}, failed or left out {unjudged:,}")
    return wrong


def _targets(data: Database, run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    expected = _ids(run_dir / "7-judgements" / "judgements.parquet")
    return _compare(data, "targets", expected, _ids(*_files_of(run_dir / "8-targets", "targets", "failed")))


def _student(data: Database, run_dir: Path, manifest: dict[str, Any]) -> list[str]:
    held_out = "split IN ('dev', 'test')"
    expected = _ids(run_dir / "1-pairs" / "pairs.parquet", where=held_out)
    return [
        said
        for path in sorted((run_dir / "9-student").glob("*/predictions.parquet"))
        for said in _compare(data, f"predictions of {path.parent.name}", expected, _ids(path, where=held_out))
    ]


LEDGERS: dict[str, Callable[[Database, Path, dict[str, Any]], list[str]]] = {
    "1-pairs": _pairs,
    "2-rationales": _answers,
    "4-samples": _answers,
    "5-preferences": _preferences,
    "7-judgements": _judgements,
    "8-targets": _targets,
    "9-student": _student,
}
