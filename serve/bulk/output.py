"""What `broadfast score` writes: parts of scored and of failed rows, and beside them what they were made with.

Shapes: N rows, P perspectives, D width of a latent vector, C labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.base.errors import UserError
from cluster.base.shared_folder import SharedFolder
from cluster.base.stage_folder import changed_settings
from cluster.base.tables import table_writer
from distill.config import StudentConfig
from mpcot.records import FAILED_ROW, texts
from mpcot.sources.clean_rows import failed_json
from serve.http.schemas import Explanation
from serve.scoring.scorer import Scorer
from serve.scoring.scores import Scores

MADE_WITH, FAILED = "scoring.json", "failed"
NOT_NUMBERS = "the student's probabilities are not numbers"
KEPT = ("query", "product_id", "locale")
EXPLANATION = pa.struct(
    [
        *texts("perspective", "rationale", "verdict?", "pair_id", "query", "title", "label?"),
        pa.field("similarity", pa.float32()),
    ]
)
# A row that could not be scored: where it is in which file, and why.
FAILED_SCORE = pa.schema([*texts("file"), *FAILED_ROW])


@dataclass(frozen=True)
class Wish:
    """What is written of a row besides label, score, probabilities and verdicts."""

    latents: bool = False
    explanations: bool = False

    def check(self, scorer_config: StudentConfig, explains: bool) -> None:
        """Refuse what this student cannot give.

        Raises:
            UserError: it has no latent vectors, or its export no index.
        """
        if self.latents and not scorer_config.latents:
            raise UserError("--latents: this student has no latent vectors. Leave it out.")
        if self.explanations and not explains:
            raise UserError("--explain: this export has no index of rationales (export.index_pairs). Leave it out.")


def score_schema(config: StudentConfig, verdicts: bool, wish: Wish) -> pa.Schema:
    """Return the columns of scored rows; `source_row` counts the rows of `file` from 0."""
    shares = pa.struct([pa.field(code, pa.float32()) for code in config.scheme.codes])
    fields = [*texts("file"), pa.field("source_row", pa.int64(), nullable=False), *texts(*KEPT), *texts("label")]
    fields += [pa.field("score", pa.float32(), nullable=False), pa.field("probabilities", shares, nullable=False)]
    if verdicts:
        fields.append(pa.field("verdicts", pa.struct(texts(*config.perspectives))))
    if wish.latents:
        vector = pa.list_(pa.float32(), config.target_width)
        fields.append(pa.field("latents", pa.list_(vector, config.latents)))
    if wish.explanations:
        fields.append(pa.field("explanations", pa.list_(EXPLANATION)))
    return pa.schema(fields)


def scored_table(scorer: Scorer, file: str, rows: Sequence[Mapping[str, Any]], wish: Wish) -> tuple[pa.Table, pa.Table]:
    """Score the rows of one part; return the scored ones, and the failed ones with their reasons.

    Args:
        rows: of the schema `ROW`; those with an `error` fail.
    """
    failed = [(row, row["error"], row["raw"]) for row in rows if row["error"]]
    good = [row for row in rows if not row["error"]]
    schema = score_schema(scorer.config, scorer.has_verdicts, wish)
    table = schema.empty_table()
    if good:
        scores = scorer.score_cleaned(good)
        failed += [
            (row, NOT_NUMBERS, failed_json(row)) for row, well in zip(good, scores.right, strict=True) if not well
        ]
        kept = np.flatnonzero(scores.right)
        table = _columns(scorer, file, [good[n] for n in kept], scores.taken(kept), wish, schema)
    said = [{"file": file, "source_row": row["source_row"], "reason": why, "row": raw} for row, why, raw in failed]
    return table, pa.Table.from_pylist(sorted(said, key=lambda row: row["source_row"]), FAILED_SCORE)


def _columns(
    scorer: Scorer, file: str, rows: Sequence[Mapping[str, Any]], scores: Scores, wish: Wish, schema: pa.Schema
) -> pa.Table:
    codes = np.array(scorer.config.scheme.codes)
    found: dict[str, Any] = {name: [row[name] for row in rows] for name in ("source_row", *KEPT)}
    found |= {"file": [file] * len(rows), "label": codes[scores.probabilities.argmax(1)]}
    found["score"] = scorer.relevance(scores.probabilities).astype(np.float32)
    found["probabilities"] = _struct(schema, "probabilities", scores.probabilities.astype(np.float32).T)
    if scores.verdicts is not None:
        found["verdicts"] = _struct(schema, "verdicts", codes[scores.verdicts.argmax(2)].T)
    if wish.latents and scores.latents is not None:
        flat = pa.array(scores.latents.astype(np.float32).ravel())
        vectors = pa.FixedSizeListArray.from_arrays(flat, scorer.config.target_width)
        found["latents"] = pa.FixedSizeListArray.from_arrays(vectors, scorer.config.latents)
    if wish.explanations:
        said: dict[int, list[Explanation]] = scorer.explanations(scores, [True] * len(rows))
        found["explanations"] = [[one.model_dump() for one in said[n]] for n in range(len(rows))]
    return pa.table([found[name] for name in schema.names], schema=schema)


def _struct(schema: pa.Schema, name: str, columns: np.ndarray) -> pa.StructArray:
    kind = schema.field(name).type
    parts = [pa.array(column, field.type) for column, field in zip(columns, kind, strict=True)]
    return pa.StructArray.from_arrays(parts, fields=list(kind))


def begin(folder: SharedFolder, made_with: Mapping[str, Any], files: Mapping[str, list[int]]) -> set[str]:
    """Note what the parts are made with, and return the names of those that are there already.

    Args:
        files: size in bytes and modification time in nanoseconds of each file that is read, by its name.

    Raises:
        UserError: the folder was begun with another student or other options, or of a file that has changed since.
    """
    there = folder.read(MADE_WITH)
    if there is not None:
        before = json.loads(there)
        known = before.pop("files")
        if changed := changed_settings(before, json.loads(json.dumps(made_with))):
            raise UserError(
                f"--out {folder.root} holds scores of another kind ({'; '.join(changed)}). Name another one."
            )
        if other := [name for name, state in known.items() if files.get(name) != state]:
            raise UserError(
                f"{other[0]} is not the file any more that --out {folder.root} holds scores of. Name another --out, or "
                "bring new rows as further files of the folder."
            )
    elif folder.files(".parquet"):
        raise UserError(f"--out {folder.root} holds other files already. Name another folder.")
    folder.write(MADE_WITH, json.dumps({**made_with, "files": dict(files)}, indent=1, ensure_ascii=False).encode())
    return {entry.name.removesuffix(".parquet") for entry in folder.files(".parquet")}


def write_part(folder: SharedFolder, name: str, scored: pa.Table, failed: pa.Table) -> None:
    """Write one part. That of the scored rows comes last, as it says that the part is done.

    Raises:
        UserError: there is no room or no permission.
    """
    if failed.num_rows:
        folder.child(FAILED).write_table(f"{name}.parquet", failed)
    folder.write_table(f"{name}.parquet", scored)


def parts_of(folder: SharedFolder, order: Sequence[str]) -> Iterator[str]:
    """Yield the names of the parts in the order of the files.

    Args:
        order: how the names of the parts of each file begin.
    """
    places = {first: n for n, first in enumerate(order)}
    names = [entry.name for entry in folder.files(".parquet")]
    yield from sorted(names, key=lambda name: (places[name.partition("-")[0]], name))


def join_parts(folder: SharedFolder, names: Sequence[str], path: Path) -> None:
    """Write the parts as one file of scored rows and, beside it, one of failed rows if there are any.

    Raises:
        UserError: there is no room or no permission.
    """
    failed = folder.child(FAILED)
    there = {entry.name for entry in failed.files(".parquet")}
    beside = path.with_suffix(".failed.parquet")
    beside.unlink(missing_ok=True)
    _join(folder, names, path)
    if there:
        _join(failed, [name for name in names if name in there], beside)


def _join(folder: SharedFolder, names: Sequence[str], path: Path) -> None:
    schema = pq.read_schema(folder.path(names[0]), filesystem=folder.filesystem)
    with table_writer(path, schema) as writer:
        for name in names:
            for batch in folder.batches(name):
                writer.write_batch(batch)
