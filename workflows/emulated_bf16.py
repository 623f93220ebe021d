"""Warns of settings that ask for bf16 where this processor can only emulate it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import get_args

from cluster.base.processor import cpu_multiplies_bf16
from cluster.base.progress import console
from cluster.base.ray_session import ray_address
from cluster.config import ClusterSettings, Settings

BF16 = ("bf16", "bf16_mixed", "bfloat16")
GPUS = ("gpus", "gpus_per_worker", "gpus_per_replica")


def warn_of_emulated_bf16(cluster: ClusterSettings, used: Iterable[Settings]) -> None:
    """Print a line for each setting in `used` that names bf16, where the work runs on a processor without it."""
    if ray_address(cluster) or cpu_multiplies_bf16():
        return
    for name, value, other in dict.fromkeys(found for settings in used for found in bf16_without_gpus(settings)):
        console().print(
            f"{name} is {value}, and this processor does not multiply bf16: it is emulated, several times slower. "
            f"Set it to {other}.",
            style="yellow",
            highlight=False,
        )


def bf16_without_gpus(settings: Settings, section: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield each setting that names bf16 for work without GPUs: its name, its value, and a value that is faster."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Settings):
            yield from bf16_without_gpus(value, f"{section}{name}.")
        elif name in ("precision", "dtype") and value in BF16 and not _has_gpus(settings):
            yield f"{section}{name}", value, "auto" if "auto" in get_args(field.annotation) else "fp32"


def _has_gpus(settings: Settings) -> bool:
    owners = (settings, getattr(settings, "workers", None), getattr(settings, "replicas", None))
    return any(getattr(owner, name, 0) for owner in owners for name in GPUS)
