"""What a training builds, sends to its workers and saves: the student and its rows, frozen layers, learning rates."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cluster.base.errors import UserError
from cluster.base.stage_folder import StageFolder
from cluster.training.task import parameter_groups
from distill.config import NoExtractor, StudentSettings
from distill.lrkd.stage import run
from distill.student.model import Student, load_encoder
from tests.helpers.lrkd_tasks import TRAIN, config, losses, lrkd

Stage = Callable[..., StageFolder]


def test_unlabelled_pairs_join_only_when_asked(encoder: Path, stage: Stage) -> None:
    sizes = [len(lrkd(encoder, stage("9-student"), use_unlabelled=use).train_rows()) for use in (False, True)]
    assert sizes == [32, 48]


def test_the_task_travels_without_tensors(encoder: Path, stage: Stage) -> None:
    task = lrkd(encoder, stage("9-student"))
    task.collate(list(task.train_rows()[:2]))  # loads the tokenizer
    parcel = pickle.dumps(task)
    assert len(parcel) < 20_000
    assert losses(pickle.loads(parcel)) == losses(task)


def test_the_same_seed_builds_the_same_student(encoder: Path, stage: Stage) -> None:
    task = lrkd(encoder, stage("9-student"))
    first, second = task.build().state_dict(), task.build().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("setting", [{"auxiliary": True}, {"control": "half"}])
def test_what_needs_latents_is_refused_without(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"student.{next(iter(setting))} has no effect without latent vectors"):
        StudentSettings(extractor=NoExtractor(), **setting)


def test_lower_layers_stay_as_they_were_and_are_saved(
    encoder: Path, stage: Stage, trained_without_ray: list[str]
) -> None:
    folder, start = stage("9-student"), load_encoder(str(encoder)).state_dict()
    run(config(encoder, frozen_layers=1, baseline=False), folder)
    trained = Student.load(folder.path / "lrkd/model").encoder.state_dict()
    same = {name for name in start if torch.equal(start[name], trained[name])}
    assert {name for name in start if name.startswith(("embeddings.", "encoder.layer.0."))} <= same
    assert "encoder.layer.1.attention.self.query.weight" not in same


def test_what_was_frozen_is_not_in_the_state_and_is_saved_none_the_less(
    encoder: Path, stage: Stage, tmp_path: Path
) -> None:
    task = lrkd(encoder, stage("9-student"), frozen_layers=2)
    model = task.build()
    task.save({name: p.detach() for name, p in model.named_parameters() if p.requires_grad}, tmp_path)
    for name, saved in Student.load(tmp_path).named_parameters():
        assert torch.equal(saved, model.get_parameter(name))


def test_more_frozen_layers_than_there_are(encoder: Path, stage: Stage) -> None:
    with pytest.raises(UserError, match=r"student.frozen_layers: 3 is more than the encoder's 2 layers"):
        lrkd(encoder, stage("9-student"), frozen_layers=3)


def test_heads_have_their_own_learning_rate(encoder: Path, stage: Stage) -> None:
    rates = TRAIN.model_copy(update={"learning_rate": 1e-5, "head_learning_rate": 1e-3})
    task = lrkd(encoder, stage("9-student"), train=rates, frozen_layers=1)
    model = task.build()
    encoder_group, heads = parameter_groups(task, model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    in_heads = {names[id(p)].split(".")[0] for p in heads["params"]}
    assert (encoder_group["lr"], heads["lr"]) == (1e-5, 1e-3)
    assert in_heads == {"extractor", "norm", "classifier", "verdicts"}
    in_encoder = {names[id(p)] for p in encoder_group["params"]}
    assert in_encoder == {n for n, p in model.named_parameters() if n.startswith("encoder.encoder.layer.1.")}
    (alone,) = parameter_groups(lrkd(encoder, stage("9-student")), model)
    assert alone["lr"] == TRAIN.learning_rate
