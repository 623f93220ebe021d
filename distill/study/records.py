"""Finished runs on disk: one line of JSON each in `RECORDS/DATA/ROW.jsonl`, small enough to commit.

A record is found by its key, a digest of everything that decides the run, so that a study can be continued on any
machine that has its records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.base.errors import UserError
from cluster.base.whole_files import whole_file

Record = dict[str, Any]


class Records:
    """The records of a study. Each file is read when it is first needed, and always written whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read: dict[Path, dict[str, Record]] = {}

    def of(self, data: str, row: str) -> dict[str, Record]:
        """Return the finished runs of one row on one data set, by key."""
        path = self._path(data, row)
        if path not in self.read:
            self.read[path] = _read(path) if path.is_file() else {}
        return self.read[path]

    def add(self, data: str, row: str, record: Mapping[str, Any]) -> None:
        """Add a finished run.

        Raises:
            UserError: the disk is full or read-only.
        """
        path = self._path(data, row)
        records = self.of(data, row) | {record["key"]: dict(record)}
        with whole_file(path) as partial:
            # Sorted, so that the records of two machines can be merged line by line.
            lines = (json.dumps(records[key], ensure_ascii=False, sort_keys=True) for key in sorted(records))
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self.read[path] = records

    def _path(self, data: str, row: str) -> Path:
        return self.folder / data / f"{row}.jsonl"


def _read(path: Path) -> dict[str, Record]:
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            found[record["key"]] = record
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise UserError(f"{path}:{number} is damaged ({error}). Delete the line to make the run again.") from error
    return found
