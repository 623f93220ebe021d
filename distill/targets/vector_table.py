"""Reads the vectors of stage 8 for the student: a pair's own, or those of a control, transformed as stage 8 fitted it.

Shapes: P perspectives, H encoder width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cluster.base.errors import UserError
from cluster.base.tables import read_table
from distill.targets.linear_map import COLUMNS, MAP, TargetMap, Vectors, load_maps, query_title


class TargetTable:
    """The vectors of pairs, read from `targets.parquet` and the map beside it."""

    def __init__(self, path: Path, control: str = "none") -> None:
        """Read what the control needs.

        Raises:
            UserError: stage 8 has not made it.
        """
        self.column = control if control in ("permuted", "template", "query_title") else "vectors"
        self.map: TargetMap | None = None
        self.read = {"vectors", *COLUMNS.get(self.column, (self.column,))} | (
            {"title"} if control == "nearest_title" else set()
        )
        if (maps := path.parent / MAP).is_file():
            self.map = load_maps(maps).get(self.column)
            if self.map is None:
                raise _missing(control)
            self.read |= {"query", "title"} if self.map.slopes.shape[1] else set()
        if not self.read <= {*pq.read_schema(path).names}:  # earlier versions wrote fewer
            raise _missing(control)
        self.table = read_table(path, ["pair_id", *sorted(self.read)])
        self.at = positions(self.table)
        if any(self.table[name].null_count for name in self.read):
            raise _missing(control)

    def vectors(self, pair_id: str) -> Vectors | None:
        """Return the pair's P vectors, with None for a missing one, or None if it has none at all."""
        if (at := self.at.get(pair_id)) is None:
            return None
        stored = self.table.column("vectors" if self.column == "query_title" else self.column)[at].values
        found = [v.values.to_numpy() if v.is_valid else None for v in stored]
        if self.column == "query_title":
            both = query_title(self.one(pair_id, "query"), self.one(pair_id, "title"))
            found = [None if v is None else both for v in found]
        return found if self.map is None else self.map.apply(found, self._features(pair_id))

    def one(self, pair_id: str, column: str) -> np.ndarray:
        """Return the vector H of a column with one per pair."""
        value: Any = self.table.column(column)[self.at[pair_id]]
        return np.asarray(value.values.to_numpy())

    def _features(self, pair_id: str) -> np.ndarray:
        assert self.map is not None
        names = ("query", "title") if self.map.slopes.shape[1] else ()
        return np.concatenate([np.zeros(0, np.float32), *(self.one(pair_id, name) for name in names)])


def positions(table: Any) -> dict[str, int]:
    """Return the row of each pair in a table with a column `pair_id`."""
    return {pair_id: i for i, pair_id in enumerate(table["pair_id"].to_pylist())}


def _missing(control: str) -> UserError:
    if control == "none":
        return UserError(
            "8-targets was made by an earlier version. Make it again: broadfast run CONFIG.toml --from targets."
        )
    return UserError(
        f"student.control: 8-targets has no vectors for {control!r}. Add it to targets.controls, or choose "
        "another control."
    )
