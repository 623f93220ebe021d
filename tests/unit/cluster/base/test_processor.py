"""What the processor is asked and what is made of its answers; the private parts of other projects are still there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from cluster.base.processor import cores, cpu_multiplies_bf16, inference_precision, packs_weights, resolve_precision
from cluster.base.ray_internals import local_gpus, serve_client, training_failed_error
from cluster.base.torch_internals import PackedWeight

BF16 = "processor : 0\nflags\t\t: fpu avx512f avx512_bf16\n"


def let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("cpuinfo", "fast"),
    [
        ("processor : 0\nflags\t\t: fpu avx512f avx512_bf16 amx_bf16\n", True),
        ("processor : 0\nFeatures\t: fp asimd bf16\n", True),
        ("processor : 0\nflags\t\t: fpu avx2\n", False),
        ("", False),
    ],
)
def test_auto_precision_follows_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpuinfo: str, fast: bool
) -> None:
    let_go(monkeypatch)
    file = tmp_path / "cpuinfo"
    file.write_text(cpuinfo)
    assert cpu_multiplies_bf16(str(file)) is fast
    assert cpu_multiplies_bf16(str(tmp_path / "absent")) is False


def test_precision_as_asked_and_bf16_on_gpus() -> None:
    assert resolve_precision("fp32", gpu=True) == "fp32"
    assert resolve_precision("bf16", gpu=False) == "bf16"
    assert resolve_precision("auto", gpu=True) == "bf16"
    assert resolve_precision("auto", gpu=False) in ("fp32", "bf16_mixed")


def test_a_model_that_only_answers_is_never_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    for multiplies, found in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("cluster.base.processor.cpu_multiplies_bf16", lambda answer=multiplies: answer)
        assert inference_precision("auto", gpu=False) == found
    assert [inference_precision(asked, gpu=True) for asked in ("auto", "fp32", "bf16")] == ["bf16", "fp32", "bf16"]


@pytest.mark.parametrize(
    ("name", "value", "fast"),
    [
        ("ATEN_CPU_CAPABILITY", "avx2", False),
        ("ATEN_CPU_CAPABILITY", "avx512", True),
        ("ONEDNN_MAX_CPU_ISA", "AVX2", False),
        ("ONEDNN_MAX_CPU_ISA", "avx512_core", False),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", True),
    ],
)
def test_who_is_held_to_older_instructions_has_no_bf16_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, fast: bool
) -> None:
    let_go(monkeypatch)
    monkeypatch.setenv(name, value)
    file = tmp_path / "cpuinfo"
    file.write_text(BF16)
    assert cpu_multiplies_bf16(str(file)) is fast


def test_cores_are_those_of_the_process_and_of_its_container(tmp_path: Path) -> None:
    bound = sorted(os.sched_getaffinity(0))
    quota = tmp_path / "cpu.max"
    assert cores(quota) == bound, "no control group"
    for text, count in (
        ("max 100000", len(bound)),
        ("50000 100000", 1),
        ("9900000 100000", len(bound)),
        ("", len(bound)),
    ):
        quota.write_text(text)
        assert cores(quota) == bound[:count]


def test_weights_are_packed_where_the_processor_can_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in ("fp32", "bf16"):
        packs_weights.cache_clear()
        assert packs_weights(precision) in (True, False)

    def refuse(self: PackedWeight, weight: torch.Tensor) -> None:
        raise RuntimeError("bf16 path needs the cpu support avx_ne_convert or avx512bw, avx512vl and avx512dq")

    packs_weights.cache_clear()
    monkeypatch.setattr(PackedWeight, "__init__", refuse)
    assert packs_weights("bf16") is False
    packs_weights.cache_clear()


@pytest.mark.skipif(not packs_weights("fp32"), reason="this PyTorch has no oneDNN")
def test_a_packed_product_is_that_of_a_linear() -> None:
    torch.manual_seed(1)
    linear, values = nn.Linear(24, 16), torch.randn(5, 24)
    found = PackedWeight(linear.weight.detach()).product(values, linear.bias.detach(), "gelu")
    torch.testing.assert_close(found, nn.functional.gelu(linear(values)).detach())


def test_the_private_parts_of_ray_are_there() -> None:
    from inspect import signature

    from ray.serve.context import _get_global_client
    from ray.serve.deployment import Deployment
    from ray.serve.handle import DeploymentHandle

    assert {"version", "_internal"} <= set(signature(Deployment.options).parameters)
    assert callable(DeploymentHandle._init) and callable(_get_global_client) and callable(serve_client)
    assert issubclass(training_failed_error(), Exception)
    assert local_gpus() >= 0
