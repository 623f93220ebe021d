"""Which number format computes fast where the work runs: bf16 only where the processor multiplies it.

`bf16` keeps weights and activations in bf16, with fp32 copies in the optimizer. `bf16_mixed` keeps them in fp32 and
multiplies matrices in bf16 (torch.autocast): small models learn better so, and a processor is as fast.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal, cast

Precision = Literal["fp32", "bf16", "bf16_mixed"]
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16", "sve_bf16"}


@cache
def cpu_multiplies_bf16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Say whether this processor has bf16 products; without them they are emulated, about four times slower."""
    try:
        lines = Path(cpuinfo).read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return bool(BF16_FLAGS & set(flags.split()))


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
