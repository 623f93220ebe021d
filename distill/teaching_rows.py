"""The student's training rows: pairs joined with the teacher's judgements and target vectors when they are needed.

Shapes: P perspectives, L latent vectors (P, or 1), D width of one latent vector, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.base.tables import read_table
from cluster.config import Settings
from distill.unlabelled import dev_temperature, surplus, vote_weight
from mpcot.schemes.scheme import Scheme

JUDGED = ["pair_id", "vote", "agreement", "soft", "verdicts"]  # without the rationales, which are most of the file
TEXT = ["pair_id", "query_id", "query", "title", "brand", "description", "bullets", "attributes"]


class RowSettings(Settings):
    """Where the tables are, and how labels and targets are read from them."""

    pairs: Path
    judgements: Path
    targets: Path
    scheme: Scheme
    perspectives: tuple[str, ...]
    per_perspective: bool
    target: str
    width: int
    shuffle: int | None = None
    unlabelled_balance: Literal["none", "gold"] = "none"

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of a row's targets, L and D."""
        if self.per_perspective:
            return len(self.perspectives), self.width
        return 1, self.width * (len(self.perspectives) if self.target == "concat" else 1)


class StudentRows(Sequence[dict[str, Any]]):
    """Rows of the chosen splits in the order of the pairs file, each built when it is accessed.

    A row has the pair's text, `label` (an id) and its `weight`, the teacher's `soft` labels (C; zeros unless `judged`),
    `verdicts` (P ids, -1 for none), and `targets` (LxD) with `target_mask` (L).
    """

    def __init__(self, settings: RowSettings, splits: Sequence[str]) -> None:
        self.settings = settings
        judgements = read_table(settings.judgements, JUDGED)
        self.judged = _positions(judgements)
        pairs = read_table(settings.pairs)
        voting = "unlabelled" in splits and len(self.judged)
        self.temperature = dev_temperature(pairs, judgements, settings.scheme) if voting else None
        too_many: set[str] = set()
        if voting and settings.unlabelled_balance == "gold":
            votes = zip(judgements["pair_id"].to_pylist(), judgements["vote"].to_pylist(), strict=True)
            known = (pairs[name].to_pylist() for name in ("pair_id", "label", "split"))
            too_many = surplus(zip(*known, strict=True), dict(votes))
        pairs = pairs.filter(pc.is_in(pairs["split"], value_set=pa.array(splits)))
        usable = [
            label is not None or (pair_id in self.judged and pair_id not in too_many)
            for label, pair_id in zip(pairs["label"].to_pylist(), pairs["pair_id"].to_pylist(), strict=True)
        ]
        self.surplus = len(too_many)
        self.unusable = len(usable) - sum(usable) - self.surplus
        self.pairs = pairs.filter(pa.array(usable, pa.bool_())).combine_chunks()
        self.judgements = judgements
        targets = read_table(settings.targets)
        self.targeted = _positions(targets)
        self.targets = targets  # its chunks stay apart: one Arrow list cannot hold the numbers of all vectors
        self.sources = self._sources()

    def _sources(self) -> list[str]:
        """Return for every row the pair whose vectors and verdicts it gets: its own or, with `shuffle`, another one."""
        ids: list[str] = self.pairs["pair_id"].to_pylist()
        if self.settings.shuffle is None:
            return ids
        # Each row takes from its neighbour in a shuffled ring, so that none gets its own.
        ring = np.random.default_rng(self.settings.shuffle).permutation(len(ids))
        found = list(ids)
        for row, source in zip(ring, np.roll(ring, 1), strict=True):
            found[row] = ids[source]
        return found

    def __len__(self) -> int:
        return self.pairs.num_rows

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        pair = _row(self.pairs, index % len(self))
        row = {name: pair.get(name) for name in TEXT}  # earlier versions wrote fewer
        return row | self._teaching(pair, self.sources[index % len(self)])

    def labels(self) -> list[int]:
        """Return the label ids of all rows."""
        ids = zip(self.pairs["label"].to_pylist(), self.pairs["pair_id"].to_pylist(), strict=True)
        votes = self.judgements["vote"] if len(self.judged) else []
        codes = (label if label is not None else votes[self.judged[pair]].as_py() for label, pair in ids)
        return [self.settings.scheme.index(code) for code in codes]

    def _teaching(self, pair: dict[str, Any], source: str) -> dict[str, Any]:
        """Return what the row teaches: the gold label, or without one the vote, weighted by how sure it is."""
        scheme, names = self.settings.scheme, self.settings.perspectives
        judgement = self._judgement(pair["pair_id"])
        gold = pair["label"] is not None
        reasoned = self._judgement(source)
        verdicts = reasoned["verdicts"] if reasoned else [None] * len(names)
        targets, mask = self._targets(source, verdicts, reasoned["vote"] if reasoned else None)
        return {
            "label": scheme.index(pair["label"] if gold else judgement["vote"]),  # type: ignore[index]
            "weight": 1.0 if gold else vote_weight(judgement, self.temperature, scheme),  # type: ignore[arg-type]
            "judged": judgement is not None,
            "soft": judgement["soft"] if judgement else [0.0] * len(scheme.labels),
            "verdicts": [-1 if code is None else scheme.index(code) for code in verdicts],
            "targets": targets,
            "target_mask": mask,
        }

    def _judgement(self, pair_id: str) -> dict[str, Any] | None:
        at = self.judged.get(pair_id)
        return None if at is None else _row(self.judgements, at)

    def _targets(self, pair_id: str, verdicts: list[str | None], vote: str | None) -> tuple[np.ndarray, np.ndarray]:
        at = self.targeted.get(pair_id)
        if at is None:
            latents, width = self.settings.shape
            return np.zeros((latents, width), np.float32), np.zeros(latents, bool)
        stored = self.targets.column("vectors")[at].values
        vectors = [v.values.to_numpy() if v.is_valid else None for v in stored]
        return combine_targets(vectors, verdicts, vote, self.settings)


def combine_targets(
    vectors: Sequence[np.ndarray | None],
    verdicts: Sequence[str | None],
    vote: str | None,
    settings: RowSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Turn a pair's vectors, one per perspective, into the targets of its latent vectors.

    `vote` takes the vector of the first perspective whose verdict is the vote, `mean` the mean of all that there are,
    and `concat` needs all of them.

    Returns: targets LxD, zero where missing, and a mask L, true where present.
    """
    if settings.per_perspective:
        chosen = list(vectors)
    elif settings.target == "vote":
        voted = (v for v, code in zip(vectors, verdicts, strict=True) if code == vote and v is not None)
        chosen = [next(voted, None)]
    elif settings.target == "mean":
        present = [v for v in vectors if v is not None]
        chosen = [np.mean(present, axis=0) if present else None]
    elif settings.target == "concat":
        chosen = [None if any(v is None for v in vectors) else np.concatenate(list(vectors))]
    else:
        chosen = [vectors[settings.perspectives.index(settings.target)]]
    combined = np.zeros(settings.shape, np.float32)
    for i, vector in enumerate(chosen):
        if vector is not None:
            combined[i] = vector
    return combined, np.array([v is not None for v in chosen])


def _positions(table: pa.Table) -> dict[str, int]:
    return {pair_id: i for i, pair_id in enumerate(table["pair_id"].to_pylist())} if table.num_rows else {}


def _row(table: pa.Table, index: int) -> dict[str, Any]:
    return {name: table.column(name)[index].as_py() for name in table.column_names}
