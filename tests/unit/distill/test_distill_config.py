from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from distill.config import GatExtractor, NoExtractor, StudentSettings, TargetSettings


def test_the_extractor_is_chosen_by_kind() -> None:
    student = StudentSettings.model_validate({"extractor": {"kind": "gat", "heads": 2, "layers": 3}})
    assert student.extractor == GatExtractor(heads=2, layers=3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"extractor": {"kind": "mlp", "codes": 4}},
        {"extractor": {"kind": "transformer"}},
        {"lambda": 0.1},
        {"alignment": "l1"},
        {"alignment_weight": -1},
        {"fields": "brand"},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        StudentSettings.model_validate(wrong)


def test_settings_survive_saving() -> None:
    student = StudentSettings(extractor=GatExtractor(), alignment="infonce", target="mean", per_perspective=False)
    assert StudentSettings.model_validate_json(student.model_dump_json()) == student


def test_the_baseline_learns_from_human_labels_alone() -> None:
    student = StudentSettings(
        soft_label_weight=1.0, teacher_smoothing=0.2, use_unlabelled=True, fields="title+brand", ranking="ranknet"
    )
    baseline = student.labels_only()
    weights = ("alignment_weight", "soft_label_weight", "teacher_smoothing", "perspective_verdict_weight")
    assert [getattr(baseline, name) for name in weights] == [0] * 4
    assert not baseline.use_unlabelled  # a vote is the teacher's
    same = {"train", "model", "fields", "max_tokens", "dropout", "label_weights", "ranking", "extractor"}
    same |= {"per_perspective", "pooling", "frozen_layers"}
    assert student.model_dump(include=same) == baseline.model_dump(include=same)


def test_the_plain_student_is_the_baseline_without_latents() -> None:
    student = StudentSettings(use_unlabelled=True, pooling="mean")
    plain = student.plain()
    assert isinstance(plain.extractor, NoExtractor) and not plain.per_perspective and plain.pooling == "mean"
    dropped = {"extractor", "per_perspective"}
    assert plain.model_dump(exclude=dropped) == student.labels_only().model_dump(exclude=dropped)
    # Latents that take no part in the label change nothing of a student that learns labels alone.
    assert StudentSettings(auxiliary=True).labels_only() == StudentSettings().plain()


def test_where_the_encoder_runs_does_not_change_the_fingerprint() -> None:
    from cluster.base.stage_folder import result_settings
    from distill.config import EncoderWorkers

    few, many = (TargetSettings(workers=EncoderWorkers(count=n)) for n in (1, 8))
    assert result_settings(few) == result_settings(many)


def test_config_imports_nothing_heavy() -> None:
    heavy = ("torch", "ray", "transformers", "pyarrow", "numpy")
    code = f"import sys, distill.config; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
