"""The judgements from elsewhere that stage 7 takes instead of asking the teacher."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.base.id_sets import IdSet
from cluster.base.tables import batches_of
from mpcot.asking.join_answers import AnsweredPairs
from mpcot.records import ANSWER
from mpcot.votes import logprobs_of

PAIRS_AT_A_TIME = 8192
WHOLE = ""  # stands for the perspective of a judgement that is of the pair as a whole
Row = dict[str, Any]
KNOWN = pa.schema([pa.field(name, pa.string()) for name in ("pair_id", "label", "split")])


class Given:
    """`1-pairs/judgements.parquet`, if there is one, of which 16 bytes per row are kept in memory."""

    def __init__(self, path: Path, perspectives: Sequence[str]) -> None:
        self.path, self.perspectives = path if path.exists() else None, perspectives
        self.spoken = (
            IdSet(_names(batch) for batch in batches_of(path, ["pair_id", "perspective"])) if self.path else IdSet()
        )

    def covered(self, pairs: Iterable[Row]) -> Iterator[tuple[Row, list[str]]]:
        """Yield every pair with the perspectives that have a judgement of it: all, if it was judged as a whole."""
        stream = iter(pairs)
        while rows := list(islice(stream, PAIRS_AT_A_TIME)):
            asked = (*self.perspectives, WHOLE)
            known = self.spoken.has(f"{row['pair_id']}/{name}" for row in rows for name in asked)
            for row, (*there, whole) in zip(rows, known.reshape(len(rows), -1), strict=True):
                yield row, [name for name, has in zip(self.perspectives, there, strict=True) if has or whole]

    def to_ask(self, pairs: Iterable[Row]) -> Iterator[Row]:
        """Yield the pairs about which the teacher is to be asked, with the perspectives that it is not asked from."""
        for row, names in self.covered(pairs):
            if len(names) < len(self.perspectives):
                yield row | {"given": names}

    def unasked(self, pairs: Iterable[Row], nobody: bool) -> Iterator[AnsweredPairs]:
        """Yield the pairs about which the teacher is not asked, which are all of them if `nobody` is."""
        left = (row for row, names in self.covered(pairs) if nobody or len(names) == len(self.perspectives))
        while rows := list(islice(left, PAIRS_AT_A_TIME)):
            yield AnsweredPairs(ANSWER.empty_table(), pa.Table.from_pylist(rows, KNOWN), [])

    def answers(self, pairs: pa.Table) -> list[Row]:
        """Return the judgements of some pairs in the form of answers, with their `origin`."""
        if self.path is None or not len(pairs):
            return []
        ends = pc.min_max(pairs["pair_id"]).as_py()
        inside = (pc.field("pair_id") >= ends["min"]) & (pc.field("pair_id") <= ends["max"])
        found = pq.read_table(self.path, filters=inside)
        return [
            {**row, "logprobs": logprobs_of(shares) if (shares := row["probabilities"]) else None, "reason": None}
            for row in found.filter(pc.is_in(found["pair_id"], pairs["pair_id"].combine_chunks())).to_pylist()
            if row["perspective"] is None or row["perspective"] in self.perspectives
        ]


def _names(batch: pa.RecordBatch) -> list[str]:
    columns = (batch[name].to_pylist() for name in ("pair_id", "perspective"))
    return [f"{pair}/{name or WHOLE}" for pair, name in zip(*columns, strict=True)]
