"""Targets and student through Ray Data, Ray Train and DeepSpeed, on a tiny encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.base.stage_folder import read_manifest
from cluster.base.tables import read_table
from cluster.config import TrainSettings
from cluster.training.driver import read_history
from distill.config import MlpExtractor, StudentSettings, StudentStage, TargetSettings, TargetsStage
from distill.lrkd import stage as lrkd
from distill.student.model import Student
from distill.targets import stage as targets
from distill.targets.sentence_encoder import SentenceEncoder
from mpcot.config import PerspectiveSettings
from mpcot.sources.config import LabelSettings
from tests.helpers.lrkd_tasks import BARE
from tests.helpers.tiny_bert import WIDTH, tiny_bert
from tests.helpers.tiny_shop import make_run, stage_folder

NAMES = PerspectiveSettings(names=("intent", "rules"))
TRAIN = TrainSettings(epochs=6, learning_rate=5e-3, global_batch=8, micro_batch=8, precision="fp32", warmup_ratio=0)


@pytest.fixture(scope="module")
def run_dir(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose stages 8 and 9 were made on Ray, with the tiny encoder's own vectors as targets."""
    root = make_run(tmp_path_factory.mktemp("run"))
    encoder = str(tiny_bert(root / "encoder"))
    folder = stage_folder(root, "8-targets")
    folder.clear()
    own = TargetSettings(encoder=encoder, text="rationale", max_tokens=32, batch_size=16)
    targets.run(TargetsStage(labels=LabelSettings(scheme="binary"), perspectives=NAMES, targets=own), folder)
    student = StudentSettings(
        model=encoder,
        max_tokens=32,
        extractor=MlpExtractor(hidden=8),
        **BARE | {"alignment_weight": 1.0},
        baseline=False,
        train=TRAIN,
    )
    labels = LabelSettings(scheme="binary")
    stage = StudentStage(seed=1, labels=labels, perspectives=NAMES, student=student)
    lrkd.run(stage, stage_folder(root, "9-student"))
    return root


def test_targets_keep_every_judgement_in_order(run_dir: Path) -> None:
    judged = read_table(run_dir / "7-judgements/judgements.parquet").to_pylist()
    made = read_table(run_dir / "8-targets/targets.parquet").to_pylist()
    assert [row["pair_id"] for row in made] == [row["pair_id"] for row in judged]
    manifest = read_manifest(run_dir / "8-targets")
    assert manifest is not None and manifest["figures"]["width"] == WIDTH
    assert manifest["counts"] == {"in": len(judged), "ok": len(judged), "failed": 0}


def test_targets_are_those_of_the_encoder_alone(run_dir: Path) -> None:
    encode = SentenceEncoder(TargetSettings(encoder=str(run_dir / "encoder"), max_tokens=32))
    row = read_table(run_dir / "8-targets/targets.parquet").to_pylist()[-1]
    said = read_table(run_dir / "7-judgements/judgements.parquet").to_pylist()[-1]
    np.testing.assert_allclose(row["vectors"], encode.encode(said["rationales"]), atol=1e-5)


def test_the_loss_on_held_out_pairs_falls(run_dir: Path) -> None:
    dev = [row for row in read_history(run_dir / "9-student/lrkd/history.jsonl") if row["split"] == "dev"]
    assert dev[0]["step"] == 0 and len(dev) == 1 + TRAIN.epochs
    assert dev[-1]["loss"] < dev[0]["loss"] and dev[-1]["alignment"] < 0.7 * dev[0]["alignment"]
    assert dev[-1]["alignment_over_ce_gradient"] > 0


def test_the_saved_student_is_the_trained_one(run_dir: Path) -> None:
    """The last figures on held-out pairs, from the live model, come out of the saved folder too."""
    last = [row for row in read_history(run_dir / "9-student/lrkd/history.jsonl") if row["split"] == "dev"][-1]
    gold = {row["pair_id"]: row["label"] for row in read_table(run_dir / "1-pairs/pairs.parquet").to_pylist()}
    codes = Student.load(run_dir / "9-student/lrkd/model").config.scheme.codes
    rows = read_table(run_dir / "9-student/lrkd/predictions.parquet").to_pylist()
    chosen = [row["probabilities"][codes.index(gold[row["pair_id"]])] for row in rows if row["split"] == "dev"]
    assert -np.log(chosen).mean() == pytest.approx(last["ce"], rel=1e-3)
