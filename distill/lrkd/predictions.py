"""What a trained student says of dev and test pairs, and whether its copy still says the same.

Shapes: N pairs, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from cluster.base.errors import UserError
from cluster.base.tables import read_table
from distill.lrkd.teaching_rows import RowSettings
from distill.student.model import Student, load_tokenizer
from distill.student.predict import predict

PREDICTED_SPLITS = ("dev", "test")
TRAINED_LOGITS, CHECKED_PAIRS = "trained_logits.parquet", 64
# 9-student/*/trained_logits.parquet -> 10-export, whose student must give the same logits.
CHECKED = pa.schema([pa.field("pair_id", pa.string()), pa.field("logits", pa.list_(pa.float32()))])

# 9-student/*/predictions.parquet -> 10-export, 11-report. `label` is the student's answer, `probabilities` are in the
# order of the scheme, and `verdicts` come from the heads of the perspectives (null in a student without such heads).
PREDICTION = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("probabilities", pa.list_(pa.float32()), nullable=False),
        pa.field("verdicts", pa.list_(pa.string())),
    ]
)


def predictions(model: Path, rows: RowSettings) -> pa.Table:
    """Judge the dev and test pairs with a saved student; return `PREDICTION` rows."""
    student, tokenizer = Student.load(model), load_tokenizer(model)
    codes = rows.scheme.codes
    pairs = _chosen(rows.pairs, "split", pa.array(PREDICTED_SPLITS))
    found = predict(student, tokenizer, pairs)
    verdicts: list[Any] = [None] * len(pairs)
    if found.perspective_logits is not None:
        verdicts = [[codes[i] for i in row] for row in found.perspective_logits.argmax(-1)]
    columns = {
        "pair_id": [p["pair_id"] for p in pairs],
        "split": [p["split"] for p in pairs],
        "label": [codes[i] for i in found.logits.argmax(-1)],
        "probabilities": found.probabilities.tolist(),
        "verdicts": verdicts,
    }
    return pa.table(columns, schema=PREDICTION)


def logits_table(student: Student, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return the student's logits NxC as `CHECKED` rows."""
    logits = predict(student, tokenizer, rows).logits.astype(np.float32)
    return pa.table({"pair_id": [row["pair_id"] for row in rows], "logits": logits.tolist()}, schema=CHECKED)


def largest_logit_difference(trained: Path, exported: Path, pairs: Path) -> float:
    """Return by how much at most the saved student's logits differ from those that the training left for dev pairs.

    Raises:
        UserError: an earlier version trained the student, and left none.
    """
    if not (trained / TRAINED_LOGITS).is_file():
        raise UserError(f"{trained} has no {TRAINED_LOGITS}: delete the folder and run `student` again.")
    left = read_table(trained / TRAINED_LOGITS)
    rows = {row["pair_id"]: row for row in _chosen(pairs, "pair_id", left["pair_id"].combine_chunks())}
    judged = [rows[pair_id] for pair_id in left["pair_id"].to_pylist()]
    found = predict(Student.load(exported), load_tokenizer(exported), judged).logits
    return float(np.abs(found - np.array(left["logits"].to_pylist())).max())


def _chosen(pairs: Path, column: str, values: pa.Array) -> list[dict[str, Any]]:
    """Return the rows with one of the values, so that the texts of all others stay out of Python."""
    table = read_table(pairs)
    return list(table.filter(pc.is_in(table[column], value_set=values)).to_pylist())
