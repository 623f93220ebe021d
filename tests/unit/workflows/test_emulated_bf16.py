"""A setting that names bf16 is called out where this machine's processor would have to emulate it, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import ClusterSettings
from tests.helpers.command import broadfast, text
from workflows import emulated_bf16
from workflows.config import RunConfig, ServiceConfig, load_config
from workflows.emulated_bf16 import bf16_without_gpus, warn_of_emulated_bf16

CONFIGS = Path(__file__).parents[3] / "workflows" / "configs"
SERVICE = ServiceConfig.model_validate({"serve": {"precision": "bf16"}})
WARNING = (
    "serve.precision is bf16, and this processor does not multiply bf16: it is emulated, several times slower. "
    "Set it to auto."
)


@pytest.fixture(autouse=True)
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated_bf16, "cpu_multiplies_bf16", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def demo(*changes: str) -> RunConfig:
    return load_config(CONFIGS / "demo.toml", changes)


def test_every_kind_of_setting_is_found_and_named_once() -> None:
    changes = ("engine.dtype=bfloat16", "sft.train.precision=bf16", "student.train.precision=bf16_mixed")
    config = demo(*changes, "dpo.train.precision=fp32", "targets.precision=bf16", "serve.precision=auto")
    assert list(bf16_without_gpus(config)) == [
        ("engine.dtype", "bfloat16", "auto"),
        ("sft.train.precision", "bf16", "auto"),
        ("targets.precision", "bf16", "fp32"),
        ("student.train.precision", "bf16_mixed", "auto"),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        ("engine.dtype=bfloat16", "engine.replicas.gpus=1"),
        ("sft.train.precision=bf16", "sft.train.workers.gpus_per_worker=1"),
        ("targets.precision=bf16", "targets.workers.gpus_per_worker=0.5"),
        ("serve.precision=bf16", "serve.gpus_per_replica=0.25"),
    ],
)
def test_with_gpus_nothing_is_emulated(changes: tuple[str, ...]) -> None:
    before = set(bf16_without_gpus(demo()))
    assert set(bf16_without_gpus(demo(*changes))) <= before


def test_the_line_is_printed_once_and_only_for_work_on_such_a_processor(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, wide: None
) -> None:
    warn_of_emulated_bf16(ClusterSettings(), [SERVICE, SERVICE])
    assert capsys.readouterr().out.strip() == WARNING
    warn_of_emulated_bf16(ClusterSettings(address="10.0.0.1:6379"), [SERVICE])
    with monkeypatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        warn_of_emulated_bf16(ClusterSettings(), [SERVICE])
    monkeypatch.setattr(emulated_bf16, "cpu_multiplies_bf16", lambda: True)
    warn_of_emulated_bf16(ClusterSettings(), [SERVICE])
    assert not capsys.readouterr().out


def test_the_command_says_so_of_the_stages_that_it_runs(config_file: Path, tmp_path: Path, wide: None) -> None:
    change = ("--set", "student.train.precision=bf16", "--out", tmp_path / "run", "--dry-run")
    assert "student.train.precision is bf16" in text(broadfast("run", config_file, *change))
    assert "student.train.precision" not in text(broadfast("run", config_file, "--to", "sft", *change))
