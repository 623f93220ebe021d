"""Stage 9: two students, one by latent reasoning knowledge distillation (LRKD) and the same on labels only."""

from __future__ import annotations

from collections import Counter
from typing import Any

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder, read_manifest, versions
from cluster.base.tables import read_table, write_table
from cluster.models.folders import model_to_load
from cluster.training.driver import TrainResult, drop_checkpoints, read_history, run_training
from distill.config import StudentConfig, StudentSettings, StudentStage
from distill.lrkd.dev_figures import check_best_by_ndcg, constant_on_dev
from distill.lrkd.losses import balanced_weights
from distill.lrkd.predictions import PREDICTED_SPLITS, predictions
from distill.lrkd.task import LrkdTask
from distill.lrkd.teaching_rows import RowSettings, with_calibrated_labels
from distill.student.model import encoder_layers, is_trained
from mpcot.schemes.scheme import load_scheme


def run(config: StudentStage, folder: StageFolder) -> None:
    """Train `lrkd` and, with `student.baseline`, `ce_only`; judge dev and test with each.

    A training that an interrupted run has finished is not repeated.

    Raises:
        UserError: no training or dev pairs, or settings that do not fit the perspectives or the encoder.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for kind, task in tasks(config, folder).items():
        out = folder.path / kind
        if not is_trained(out / "model", task.config.fingerprint):
            (out / "predictions.parquet").unlink(missing_ok=True)
            run_training(task, out, label=f"student {kind}")
        drop_checkpoints(task.settings, out)  # they are still there if the run was stopped after it had saved the model
        if not (out / "predictions.parquet").exists():
            write_table(out / "predictions.parquet", predictions(out / "model", task.rows))
        result = TrainResult(out / "model", read_history(out / "history.jsonl"))
        figures[kind] = {"dev_before": result.before, "dev_after": result.kept, **result.steps()}
        train = task.train_rows()
        predicted = Counter(read_table(out / "predictions.parquet", ["split"])["split"].to_pylist())
        if task.student.soft_labels == "calibrated":
            figures[kind]["soft_labels"] = {"temperature": task.rows.soft_temperature, "bias": [*task.rows.soft_bias]}
        if missing := train.without_donor:
            figures[kind]["pairs_without_donor"] = missing
        own = {"train": len(train), "unusable": train.unusable} | ({"surplus": train.surplus} if train.surplus else {})
        own |= {f"predicted_{split}": predicted[split] for split in PREDICTED_SPLITS}
        counts = own | counts  # those of LRKD, which comes first and may learn from more pairs
    folder.finish(counts, figures)


def tasks(config: StudentStage, folder: StageFolder) -> dict[str, LrkdTask]:
    """Return the trainings by the names of their subfolders.

    Raises:
        UserError: as for `run`.
    """
    kinds = {"lrkd": config.student}
    if config.student.baseline:
        kinds["ce_only"] = config.student.labels_only()
    return {kind: _task(config, student, folder) for kind, student in kinds.items()}


def _task(config: StudentStage, student: StudentSettings, folder: StageFolder) -> LrkdTask:
    scheme, names = load_scheme(config.labels.scheme), config.perspectives.names
    targets = ("vote", "mean", "concat", *names)
    if student.target not in targets:
        raise UserError(f"student.target: {student.target!r} is not one of {', '.join(targets)}")
    student = student.model_copy(update={"model": model_to_load("student.model", student.model)})
    if student.frozen_layers and student.frozen_layers > (layers := encoder_layers(student.model)):
        raise UserError(f"student.frozen_layers: {student.frozen_layers} is more than the encoder's {layers} layers")
    rows = _rows(config, student, folder)
    own = StudentConfig(
        scheme=scheme,
        perspectives=names,
        extractor=student.extractor,
        per_perspective=student.per_perspective,
        pooling=student.pooling,
        verdicts=student.perspective_verdict_weight > 0,
        aligned=student.alignment_weight > 0,
        auxiliary=student.auxiliary,
        target_width=rows.shape[1],
        max_tokens=student.max_tokens,
        fields=student.fields,
        dropout=student.dropout,
        versions=versions(),
        fingerprint=folder.fingerprint,
    )
    task = LrkdTask(student.train, config.seed, student, own, rows)
    train, dev = task.train_rows(), task.dev_rows()
    if not len(train) or not len(dev):
        raise UserError("student: there are no train or no dev pairs. Look at the counts of 1-pairs and at `split`.")
    check_best_by_ndcg(student, dev)
    task.constant = constant_on_dev(student, own, dev)
    if student.label_weights == "balanced":
        found = Counter(train.labels())
        task.class_weights = tuple(balanced_weights([found[i] for i in range(len(scheme.labels))]))
    return task


def _rows(config: StudentStage, student: StudentSettings, folder: StageFolder) -> RowSettings:
    manifest = read_manifest(folder.input("8-targets"))
    assert manifest is not None, "8-targets is not finished"
    rows = RowSettings(
        pairs=(folder.input("1-pairs") / "pairs.parquet").resolve(),
        judgements=(folder.input("7-judgements") / "judgements.parquet").resolve(),
        targets=(folder.input("8-targets") / "targets.parquet").resolve(),
        scheme=load_scheme(config.labels.scheme),
        perspectives=config.perspectives.names,
        per_perspective=student.per_perspective,
        target=student.target,
        width=manifest["figures"]["width"],
        control=student.control,
        alike=student.learns_means,
        seed=config.seed,
        unlabelled_weight=student.unlabelled_weight,
        unlabelled_balance=student.unlabelled_balance,
    )
    return with_calibrated_labels(rows) if student.soft_labels == "calibrated" else rows
