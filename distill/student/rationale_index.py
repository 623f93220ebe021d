"""Finds the training rationales nearest to a latent vector, which `explain` shows with a judgement.

Shapes: N training pairs, B pairs that are looked up, L latent vectors of a student (one, or one per perspective), P
perspectives, D width.
Both the index and the latent vectors that are looked up come from the student, so this works for any training target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file, save_file
from xxhash import xxh3_64_intdigest

from cluster.base.errors import UserError
from cluster.base.tables import read_table, write_table
from distill.student.model import Student, load_tokenizer
from distill.student.predict import predict
from mpcot.records import PAIR

AT_A_TIME = 64  # pairs whose similarities to all N are in memory at the same time
VECTORS, ROWS = "index.safetensors", "index.parquet"

# 10-export/index.parquet -> serve. Row n belongs to row n of the vectors; lists are in the order of the perspectives.
INDEX = pa.schema(
    [
        *(PAIR.field(name) for name in ("pair_id", "query", "title", "label")),
        pa.field("verdicts", pa.list_(pa.string()), nullable=False),
        pa.field("rationales", pa.list_(pa.string()), nullable=False),
    ]
)


@dataclass(frozen=True)
class Neighbour:
    """A training pair near a latent vector, with the verdict and rationale of one of the teacher's perspectives."""

    pair_id: str
    query: str
    title: str
    label: str | None
    perspective: str
    verdict: str | None
    rationale: str
    similarity: float


class RationaleIndex:
    """Unit vectors LxNxD and the N rows that they belong to."""

    def __init__(self, vectors: np.ndarray, rows: pa.Table, perspectives: tuple[str, ...]) -> None:
        self.vectors, self.rows, self.perspectives = vectors, rows, perspectives
        said = [[bool(text) for text in texts] for texts in rows["rationales"].to_pylist()]
        self.said = np.array(said, bool).reshape(-1, len(perspectives))  # NxP
        given = rows["verdicts"].to_pylist()
        self.numbers = {code: n for n, code in enumerate(sorted({v for row in given for v in row if v is not None}))}
        self.verdicts = self._numbered(given)  # NxP

    @classmethod
    def load(cls, folder: Path, perspectives: tuple[str, ...]) -> RationaleIndex | None:
        """Load the index of an export folder, or return None if it has no index."""
        if not (folder / VECTORS).exists():
            return None
        rows, vectors = read_table(folder / ROWS), load_file(folder / VECTORS)["latents"]
        if vectors.shape[1] != rows.num_rows:
            raise UserError(f"{folder}: {VECTORS} and {ROWS} come from different exports. Export the student again.")
        return cls(vectors.astype(np.float32), rows, perspectives)

    def nearest(
        self, latents: np.ndarray, verdicts: Sequence[Sequence[str]] | None = None, count: int = 1
    ) -> list[dict[str, list[Neighbour]]]:
        """Return, for each of B pairs and by perspective, the `count` most similar training rationales.

        They are sought among those that argue for the student's own verdict, if any does: the latents alone find topics
        rather than reasons.

        Args:
            latents: BxLxD.
            verdicts: BxP label codes, the student's; None looks among all rationales.
        """
        latents = unit(np.asarray(latents, np.float32))
        found: list[dict[str, list[Neighbour]]] = [{} for _ in latents]
        for p, name in enumerate(self.perspectives):
            layer = p if latents.shape[1] > 1 else 0
            for start in range(0, len(latents), AT_A_TIME):
                part = slice(start, start + AT_A_TIME)
                wanted = None if verdicts is None else self._numbered(verdicts[part])[:, p]
                similar = latents[part, layer] @ self.vectors[layer].T
                similar[~speaking(self.said[:, p], self.verdicts[:, p], wanted, len(similar))] = -np.inf
                for row, scores in enumerate(similar, start):
                    best = [scores.argmax()] if count == 1 else np.argsort(-scores, kind="stable")[:count]
                    near = [(int(n), float(scores[n])) for n in best if np.isfinite(scores[n])]
                    found[row][name] = [self._neighbour(n, p, score) for n, score in near]
        return found

    def _numbered(self, verdicts: Sequence[Sequence[str | None]]) -> np.ndarray:
        found = [[self.numbers.get(code, -1) if code else -1 for code in row] for row in verdicts]
        return np.array(found, int).reshape(-1, len(self.perspectives))

    def _neighbour(self, n: int, p: int, similarity: float) -> Neighbour:
        row: dict[str, Any] = self.rows.slice(n, 1).to_pylist()[0]
        said = {"verdict": row.pop("verdicts")[p], "rationale": row.pop("rationales")[p]}
        return Neighbour(**row, **said, perspective=self.perspectives[p], similarity=similarity)


def write_index(folder: Path, pairs: Path, judgements: Path, limit: int) -> int:
    """Write the index of the student in `folder` over `limit` judged training pairs; return their number.

    Of more, it takes those whose ids have the smallest hashes: the first of a file are often of one kind.

    There is no index for a student whose latent vectors learnt no rationales, with a limit of 0, or without judged
    training pairs.
    """
    student = Student.load(folder)
    if not student.config.latents or not student.config.aligned or not limit:
        return 0
    judged = {row["pair_id"]: row for row in read_table(judgements).to_pylist()}
    train = [row for row in read_table(pairs).to_pylist() if row["split"] == "train" and row["pair_id"] in judged]
    drawn = {
        id_ for _, id_ in sorted((xxh3_64_intdigest(row["pair_id"].encode()), row["pair_id"]) for row in train)[:limit]
    }
    if not (train := [row for row in train if row["pair_id"] in drawn]):
        return 0
    latents = predict(student, load_tokenizer(folder), train).latents
    assert latents is not None
    vectors = np.ascontiguousarray(unit(latents).transpose(1, 0, 2).astype(np.float16))
    rows = [{name: (judged[row["pair_id"]] | row)[name] for name in INDEX.names} for row in train]
    write_table(folder / ROWS, pa.Table.from_pylist(rows, INDEX))
    save_file({"latents": vectors}, folder / VECTORS)
    return len(train)


def speaking(said: np.ndarray, verdicts: np.ndarray, wanted: np.ndarray | None, count: int) -> np.ndarray:
    """Return BxN: which training rationales may be shown with each of `count` pairs.

    They are those with the verdict that is wanted, and all that there are where none has it.

    Args:
        said: N, whether the training pair has a rationale.
        verdicts: N, what it argues for.
        wanted: B verdicts; None wants any.
    """
    if wanted is None:
        return np.broadcast_to(said, (count, len(said)))
    fitting = said & (verdicts == wanted[:, None])
    return np.where(fitting.any(1, keepdims=True), fitting, said)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return the vectors at length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
