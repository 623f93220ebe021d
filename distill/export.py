"""Stage 10: the folder that is served, with weights, tokenizer, config, model card, rationale index and reference."""

from __future__ import annotations

import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder, write_json
from cluster.base.tables import batches_of, rows_of
from cluster.base.whole_files import disk_error
from distill.config import ExportStage, ServedCalibration, StudentConfig
from distill.lrkd.predictions import largest_logit_difference
from distill.metrics import evaluate, majority_baseline
from distill.student.model import CONFIG, read_student_config
from distill.student.rationale_index import ROWS, VECTORS, write_index
from distill.student.reference import REFERENCE, write_reference
from mpcot.temperature import fit_over_queries, fit_served, scaled

Row = dict[str, Any]
TOLERANCE = 1e-4
CARD = {"accuracy": "accuracy", "macro_f1": "macro-F1", "auc": "AUC, relevant or not", "ndcg_at_10": "NDCG@10"}


def run(config: ExportStage, folder: StageFolder) -> None:
    """Copy the trained student, check that it has the logits of the training, and add index, reference and model card.

    Raises:
        UserError: the student was not trained, or the logits of the copy differ by more than 1e-4.
    """
    trained = folder.input("9-student") / config.export.student
    if not (trained / "model" / CONFIG).is_file():
        raise UserError(
            f"export.student: {config.export.student!r} was not trained. Set student.baseline = true or choose 'lrkd'."
        )
    pairs = folder.input("1-pairs") / "pairs.parquet"
    rows = {row["pair_id"]: row for row in rows_of(pairs, ["pair_id", "query_id", "label", "split"])}
    answers = [
        rows[row["pair_id"]] | {"probabilities": row["probabilities"]}
        for row in rows_of(trained / "predictions.parquet", ["pair_id", "probabilities"])
    ]
    copy_student(trained / "model", folder.path)
    difference = largest_logit_difference(trained, folder.path, pairs)
    if not difference <= TOLERANCE:
        raise UserError(
            f"the exported student's logits differ from the trained one's by {difference:.2e}, "
            f"more than {TOLERANCE}. Delete {trained} and run `student` again."
        )
    dev, test = ([row for row in answers if row["split"] == split] for split in ("dev", "test"))
    calibrate(folder.path, dev, config.export.calibrate)
    judgements = folder.input("7-judgements") / "judgements.parquet"
    indexed = write_index(folder.path, pairs, judgements, config.export.index_pairs)
    exported = read_student_config(folder.path)
    referred = refer(folder.path, exported, pairs, dev)
    figures = figures_on_test(test, [row["label"] for row in rows.values() if row["split"] == "train"], exported)
    card = model_card(config.name, config.export.student, exported, figures)
    (folder.path / "README.md").write_text(card, encoding="utf-8")
    folder.finish(
        {"indexed": indexed, "reference_pairs": referred},
        {
            "largest_logit_difference": difference,
            "temperature": exported.temperature,
            "label_bias": dict(zip(exported.scheme.codes, exported.label_bias, strict=False)),
            "test": figures,
        },
    )


def copy_student(source: Path, target: Path) -> None:
    """Copy a student's files, with `student.json`, which makes the folder a student's, last. Old files are removed.

    Raises:
        UserError: the disk is full or read-only.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        for stale in (CONFIG, VECTORS, ROWS, REFERENCE):
            (target / stale).unlink(missing_ok=True)
        for file in sorted(source.iterdir(), key=lambda p: p.name == CONFIG):
            shutil.copyfile(file, target / file.name)
    except OSError as error:
        raise disk_error(error, target) from error


def calibrate(folder: Path, dev: list[Row], kind: ServedCalibration) -> None:
    """Fit the temperature, and the biases if `kind` asks for them, on dev and write them into the `student.json`.

    With `best`, biases are written only if they serve dev queries that they were not fitted on.
    """
    config = read_student_config(folder)
    numbers = [config.scheme.index(row["label"]) for row in dev]
    probabilities = np.array([row["probabilities"] for row in dev])
    if kind == "best":
        queries = [row["query_id"] for row in dev]
        temperature, bias = fit_over_queries(numbers, probabilities, queries) or (1.0, ())
    else:
        temperature, bias = fit_served(kind, numbers, probabilities)
    fitted = config.model_copy(update={"temperature": temperature, "label_bias": bias})
    write_json(folder / CONFIG, fitted.model_dump(mode="json"))


def refer(folder: Path, config: StudentConfig, pairs: Path, dev: list[Row]) -> int:
    """Write how the student answers dev, for the service to compare with, and return the number of pairs."""
    trained = np.array([row["probabilities"] for row in dev]).reshape(len(dev), -1)
    served = scaled(trained, config.temperature, config.label_bias) if dev else trained
    by_pair = {row["pair_id"]: each for row, each in zip(dev, served.tolist(), strict=True)}
    texts = (batch.filter(pc.equal(batch["split"], "dev")).to_pylist() for batch in batches_of(pairs))
    return write_reference(folder, config, chain.from_iterable(texts), by_pair)


def figures_on_test(test: list[Row], train_labels: list[str], config: StudentConfig) -> dict[str, Any]:
    """Return the test metrics of the student as it is served, and of always giving the most frequent training label."""
    labels, queries, probabilities = ([row[name] for row in test] for name in ("label", "query_id", "probabilities"))
    trained = np.reshape(probabilities, (len(test), len(config.scheme.codes)))
    served = scaled(trained, config.temperature, config.label_bias)
    return {**evaluate(labels, served, queries, config.scheme), "majority": majority_baseline(train_labels, labels)}


def model_card(name: str, kind: str, config: StudentConfig, figures: dict[str, Any]) -> str:
    """Return the export folder's README.md."""
    labels = "\n".join(f"- `{label.code}` {label.name}: {label.meaning}" for label in config.scheme.labels)
    majority = figures["majority"]
    table = "\n".join(
        f"| {title} | {_number(figures[key])} | {_number(majority.get(key))} |" for key, title in CARD.items()
    )
    each = f"one per perspective ({', '.join(config.perspectives)})" if config.per_perspective else "one"
    latents = each if config.latents and config.aligned else "none"
    fitted, kept = f"temperature {config.temperature:.2f}", "It never changes a label, but it may change"
    if config.label_bias:
        bias = ", ".join(f"`{c}` {b:+.2f}" for c, b in zip(config.scheme.codes, config.label_bias, strict=True))
        fitted, kept = (
            f"{fitted} and with a bias per label ({bias})",
            "The biases may change labels, and both may change",
        )
    return f"""---
library_name: broadfast
pipeline_tag: text-classification
---
# {name}: search relevance student

It judges how well a product fits a search query. Trained by `broadfast` as student `{kind}`.

Input: `[CLS] query [SEP] {config.fields} [SEP]`, at most {config.max_tokens} tokens.
Extractor: `{config.extractor.kind}`. Latent reasoning vectors: {latents}.

Labels:
{labels}

Test split, {figures["pairs"]} pairs; NDCG over {figures["ndcg_queries"]} queries.

Probabilities are served at {fitted}, fitted on the dev split, and the figures below are so too. {kept} the order of
products.

| metric | this student | always `{majority["label"]}` |
| --- | --- | --- |
{table}

To use it, run `broadfast serve` with this folder, or `serve.Student.load` of it in Python. `broadfast
export` writes it as ONNX or for sequence classification. The weights are float32.
"""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
