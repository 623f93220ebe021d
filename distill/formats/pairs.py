"""The pairs of a run that an export is compared, calibrated or distilled with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.base.errors import UserError
from cluster.base.tables import read_table

Rows = list[dict[str, Any]]
# What the student is compared on where there is no run: short, long, odd and foreign texts.
FIXED: Rows = [
    {"query": "red phone case", "title": "Phone case, red"},
    {"query": "usb c cable 2m", "title": "Charging cable with two connectors, braided, 2 m, black " * 6},
    {"query": "a", "title": "b"},
    {"query": "damenschuhe größe 38", "title": "Damen-Sneaker „Läufer“, Größe 38, weiß"},
    {"query": "gift for a ten year old who likes trains and planes and ships " * 4, "title": "Wooden train"},
    {"query": "手机壳", "title": "硅胶手机壳 红色"},
    {"query": "£5 mug & saucer (2-pack)", "title": "Mug and saucer, 2 pack, <blue>"},
    {"query": '4k tv 55"', "title": "55 inch television"},
]


class RunPairs:
    """The pairs of a run, by split.

    Args:
        run_dir: a run folder with finished pairs.

    Raises:
        UserError: it has none.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "1-pairs" / "pairs.parquet"
        if not self.path.is_file():
            raise UserError(f"--run {run_dir}: {self.path} does not exist. Name the run folder that has the pairs.")

    def of(self, splits: Sequence[str], limit: int | None = None) -> Rows:
        """Return the pairs of these splits, at most the first `limit`."""
        table = read_table(self.path)
        chosen = table.filter(pc.is_in(table["split"], value_set=pa.array(list(splits))))
        return (chosen if limit is None else chosen.slice(0, limit)).to_pylist()
