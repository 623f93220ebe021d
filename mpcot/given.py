"""The judgements from elsewhere that stage 7 takes instead of asking the teacher."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.base.id_sets import IdSet
from cluster.base.tables import batches_of, conformed
from mpcot.asking.join_answers import AnsweredPairs
from mpcot.records import ANSWER
from mpcot.votes import logprobs_of

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

    def covered(self, pairs: Iterable[pa.RecordBatch]) -> Iterator[tuple[pa.RecordBatch, pa.Array]]:
        """Yield pairs with their column `given`, and whether each has a judgement from every perspective.

        The column names the perspectives that have a judgement: all, if the pair was judged as a whole.
        """
        for batch in pairs:
            given: list[list[str]] = [[] for _ in range(len(batch))]
            if self.path:
                asked = (*self.perspectives, WHOLE)
                known = self.spoken.has(f"{pair}/{name}" for pair in batch["pair_id"].to_pylist() for name in asked)
                for names, (*there, of_all) in zip(given, known.reshape(len(batch), len(asked)), strict=True):
                    names += [name for name, has in zip(self.perspectives, there, strict=True) if has or of_all]
            column = pa.array(given, pa.list_(pa.string()))
            whole = pc.equal(pc.list_value_length(column), len(self.perspectives))
            yield batch.append_column("given", column), whole

    def to_ask(self, pairs: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the pairs about which the teacher is to be asked, with the perspectives that it is not asked from."""
        for batch, whole in self.covered(pairs):
            if len(left := batch.filter(pc.invert(whole))):
                yield left

    def unasked(self, pairs: Iterable[pa.RecordBatch], nobody: bool) -> Iterator[AnsweredPairs]:
        """Yield the pairs about which the teacher is not asked, which are all of them if `nobody` is."""
        for batch, whole in self.covered(pairs):
            if len(left := batch if nobody else batch.filter(whole)):
                yield AnsweredPairs(ANSWER.empty_table(), conformed([left], KNOWN), [])

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
