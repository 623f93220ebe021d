"""What the processor can do, looked at in this one place: number formats, packed weights, cores.

A processor may lack bf16 products (most laptops, AVX2 servers): there everything computes in fp32 unless a setting
names bf16, which is then emulated. `bf16` keeps weights and activations in bf16, with fp32 copies in the optimizer.
`bf16_mixed` keeps them in fp32 and multiplies matrices in bf16 (torch.autocast): small models learn better that way,
and a processor is as fast.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal, cast

Precision = Literal["fp32", "bf16", "bf16_mixed"]
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16", "sve_bf16"}
# By these two variables people hold torch and oneDNN to older instructions; such values rule bf16 products out.
HELD_BACK = {
    "ATEN_CPU_CAPABILITY": {"default", "avx2"},
    "ONEDNN_MAX_CPU_ISA": {"sse41", "avx", "avx2", "avx2_vnni", "avx512_core", "avx512_core_vnni"},
}
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cores(quota: Path = QUOTA) -> list[int]:
    """Return the cores that this process may use: those it is bound to, as many as the container's quota pays for."""
    bound = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    try:
        most, period = quota.read_text(encoding="utf-8").split()
        return bound[: max(1, int(most) // int(period))]
    except (OSError, ValueError):  # no control group, or no limit in it
        return bound


@cache
def cpu_multiplies_bf16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Say whether this processor has bf16 products and may use them; emulated they are about four times slower."""
    return _has_flags(cpuinfo) and not _held_back(os.environ)


def _has_flags(cpuinfo: str) -> bool:
    try:
        lines = Path(cpuinfo).read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return bool(BF16_FLAGS & set(flags.split()))


def _held_back(environment: Mapping[str, str]) -> bool:
    return any(environment.get(name, "").lower() in values for name, values in HELD_BACK.items())


@cache
def packs_weights(precision: Literal["fp32", "bf16"]) -> bool:
    """Say whether oneDNN lays weights of this format out beforehand here: one small product is tried.

    The operators are private to PyTorch, and what they take differs between processors and releases.
    """
    import torch

    from cluster.base.torch_internals import PackedWeight

    try:
        weight = torch.eye(16, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
        found = PackedWeight(weight).product(weight, None, "none")
    except (AttributeError, RuntimeError):
        return False
    return bool(torch.equal(found, weight))


def resolve_precision(asked: str, gpu: bool) -> Precision:
    """Return what `auto` means here; anything else as asked. To be called where the work runs."""
    if asked != "auto":
        return cast(Precision, asked)
    if gpu:
        return "bf16"
    return "bf16_mixed" if cpu_multiplies_bf16() else "fp32"


def inference_precision(asked: str, gpu: bool) -> Literal["fp32", "bf16"]:
    """Return likewise for a model that only answers: it has no weights to learn, so bf16 is enough where it is fast."""
    return "fp32" if resolve_precision(asked, gpu) == "fp32" else "bf16"
