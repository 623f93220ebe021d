"""The teacher's rationales in a student's input: as a ceiling, or in a reader that teaches another student.

A reader is the row's own student, on labels alone, with the rationales behind the title. The row's student, which does
not see them, learns the reader's probabilities in place of the teacher's, and with lambda its states in place of the
rationales' vectors, as CRSD (arXiv 2510.11056) has the state with the rationale in the input teach the one without it.
The states are the reader's latent vectors, since the student's own are aligned with them.

The reader is trained out of fold: one that has learnt a pair's label would give it away.

Shapes: N pairs, P perspectives, L latent vectors, D width of one, C labels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.base.errors import UserError
from cluster.base.stage_folder import MANIFEST, read_json, write_json
from cluster.base.tables import read_table, write_table
from distill.config import StudentSettings, StudentStage, TargetSettings
from distill.student.model import check_length, load_tokenizer, read_encoder_config
from distill.student.predict import predict
from distill.study.arms import Reading
from distill.study.data import READS
from distill.study.folds import dealt
from distill.study.train import study_task, train_student
from distill.targets.encoder_texts import target_texts
from mpcot.records import JUDGEMENT, PAIR, TARGET
from mpcot.schemes.scheme import load_scheme
from mpcot.sources.config import Kept

PARTS = 2  # readers; each reads the pairs of its part and is trained on those of the others
PAIRS, JUDGEMENTS, TARGETS = (Path(stage) / f"{name}.parquet" for stage, name in READS.items())
Texts = Mapping[str, str]
Taught = tuple[list[float], list[list[float]]]  # probabilities C and states PxD of one pair


def read_in_advance(
    stage: StudentStage, reading: Reading, folder: Path, out: Path, kept: tuple[Kept, ...] = ()
) -> tuple[StudentStage, Path]:
    """Return the settings and the folder that a row's student is trained with, made in `out` from those of a fold.

    If the student reads, its pairs have rationales. If a reader does, judgements and targets are those of the reader.

    Args:
        kept: what keeps queries in one part.

    Raises:
        UserError: the teacher has written no rationales of pairs that are learnt from or chosen by.
    """
    texts = rationales(folder, stage, reading)
    pairs = [row for row in read_table(folder / PAIRS).to_pylist() if row["split"] != "test"]
    if texts.keys().isdisjoint(row["pair_id"] for row in pairs):
        raise UserError(f"{folder}: the teacher has written no rationales, so there is nothing to read.")
    if reading.by == "student":
        return with_room(stage, stage.student, reading), with_rationales(folder, out, texts)
    learnt = sum(row["split"] == "train" for row in pairs)
    train = stage.student.train.model_copy(update={"steps": stage.student.train.steps_over(learnt)})
    own = with_room(stage, stage.student.labels_only().model_copy(update={"train": train}), reading)
    parts = dealt(pairs, PARTS, "reader", stage.seed, kept)
    taught: dict[str, Taught] = {}
    for part in range(PARTS):
        unread = {row["pair_id"] for row in pairs if parts[row["query_id"]] == part}
        taught |= read_part(own, with_rationales(folder, out / f"part-{part}", texts, unread), unread & texts.keys())
    return stage, with_reader(folder, out / "taught", taught)


def rationales(folder: Path, stage: StudentStage, reading: Reading) -> Texts:
    """Return the rationales of each pair that has any as one text, all perspectives one after another."""
    scheme, form = load_scheme(stage.labels.scheme), TargetSettings(text=reading.text)
    said = (target_texts(row, {}, form, scheme) for row in read_table(folder / JUDGEMENTS).to_pylist())
    joined = {row["pair_id"]: " ".join(text for text in row["vectors"] if text) for row in said}
    return {pair_id: text for pair_id, text in joined.items() if text}


def check_room(student: StudentSettings, reading: Reading) -> None:
    """Refuse a student that would read more than its encoder can.

    Raises:
        UserError: it names both settings.
    """
    tokens = student.max_tokens + reading.tokens
    check_length(read_encoder_config(student.model), tokens, "student.max_tokens + reading.tokens")


def with_room(stage: StudentStage, student: StudentSettings, reading: Reading) -> StudentStage:
    """Return the settings of a student that reads rationales besides what it reads of query and product."""
    room = student.model_copy(update={"max_tokens": student.max_tokens + reading.tokens})
    return stage.model_copy(update={"student": room})


def with_rationales(folder: Path, out: Path, texts: Texts, unread: Collection[str] = ()) -> Path:
    """Make `out` look like `folder` with rationales behind the titles, and the `unread` pairs in the test split."""
    rows = read_table(folder / PAIRS).to_pylist()
    for row in rows:
        if row["pair_id"] in texts:
            row["title"] = f"{row['title']}. {texts[row['pair_id']]}"
        if row["pair_id"] in unread:
            row["split"] = "test"
    write_table(out / PAIRS, pa.Table.from_pylist(rows, PAIR))
    for stage in (JUDGEMENTS.parent, TARGETS.parent):
        (out / stage).symlink_to(folder / stage, target_is_directory=True)
    return out


def read_part(stage: StudentStage, folder: Path, chosen: Collection[str]) -> dict[str, Taught]:
    """Train a reader, and return what it teaches of the chosen pairs."""
    task = study_task(stage, folder)
    trained, _ = train_student(task)
    asked = [row for row in read_table(folder / PAIRS).to_pylist() if row["pair_id"] in chosen]
    found = predict(trained, load_tokenizer(task.student.model), asked)
    count, perspectives = len(asked), len(stage.perspectives.names)
    latents = np.zeros((count, 1, 1)) if found.latents is None else found.latents
    # Each reader has a space of its own. Without their means, two of them are told apart less easily than two pairs.
    centred = latents - latents.mean(axis=0)
    states = np.broadcast_to(centred, (count, perspectives, centred.shape[2]))  # with one, all perspectives share it
    told = zip(asked, found.probabilities.tolist(), states.tolist(), strict=True)
    return {row["pair_id"]: (soft, state) for row, soft, state in told}


def with_reader(folder: Path, out: Path, taught: Mapping[str, Taught]) -> Path:
    """Make `out` look like `folder` with the reader's probabilities as soft labels and its states as target vectors.

    Pairs that it did not read count as not judged.
    """
    rows = read_table(folder / JUDGEMENTS).to_pylist()
    judged = [row | {"soft": taught[row["pair_id"]][0]} for row in rows if row["pair_id"] in taught]
    targets = [{"pair_id": pair_id, "vectors": states} for pair_id, (_, states) in taught.items()]
    write_table(out / JUDGEMENTS, pa.Table.from_pylist(judged, JUDGEMENT))
    write_table(out / TARGETS, pa.Table.from_pylist(targets, TARGET))
    made = read_json(folder / TARGETS.parent / MANIFEST)
    width = {"width": len(targets[0]["vectors"][0])}
    write_json(out / TARGETS.parent / MANIFEST, made | {"figures": made["figures"] | width})
    (out / PAIRS.parent).symlink_to(folder / PAIRS.parent, target_is_directory=True)
    return out
