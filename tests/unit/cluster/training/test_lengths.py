"""Lengths of rows are computed once, and workers map them into memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cluster.training.lengths import lengths_of, write_lengths

ROWS = ["a", "abc", "ab"]


def task(buckets: int, groups: list[int] | None = None) -> Any:
    settings = SimpleNamespace(length_buckets=buckets)
    return SimpleNamespace(settings=settings, train_rows=lambda: ROWS, length=len, groups=lambda rows: groups)


def test_workers_map_what_the_driver_wrote(tmp_path: Path) -> None:
    assert lengths_of(task(8), ROWS, tmp_path).tolist() == [1, 3, 2], "no driver wrote any"
    write_lengths(task(8), tmp_path)
    found = lengths_of(task(8), ROWS, tmp_path)
    assert isinstance(found, np.memmap) and found.dtype == np.int32 and found.tolist() == [1, 3, 2]


def test_nobody_computes_lengths_that_no_batch_depends_on(tmp_path: Path) -> None:
    for one in (task(0), task(8, [0, 0, 1])):
        write_lengths(one, tmp_path)
        assert not list(tmp_path.iterdir())
        assert lengths_of(one, ROWS, tmp_path).tolist() == [0, 0, 0]
