"""The DeepSpeed config as a pure function of the settings, so that it can be tested as data."""

from __future__ import annotations

from typing import Any

from cluster.base.errors import UserError
from cluster.base.processor import Precision
from cluster.config import TrainSettings


def accumulation_steps(settings: TrainSettings) -> int:
    """Return how many forward passes one worker makes per optimizer step.

    Raises:
        UserError: `global_batch` is not a multiple of workers times micro batches.
    """
    workers = settings.workers.count
    if settings.global_batch % workers:
        raise UserError(
            f"train.global_batch {settings.global_batch} is not divisible by train.workers.count {workers}. "
            "Choose a multiple, so that every worker has the same number of rows."
        )
    per_worker = settings.global_batch // workers
    micro = min(settings.micro_batch, per_worker)
    if per_worker % micro:
        raise UserError(
            f"train.micro_batch {micro} does not divide the {per_worker} rows that one of {workers} workers "
            f"takes of train.global_batch {settings.global_batch}. Choose a divisor."
        )
    return per_worker // micro


def clips_itself(settings: TrainSettings, precision: Precision) -> bool:
    """Say whether torch clips the gradients of the training instead of DeepSpeed.

    Without ZeRO and bf16 weights, gradients are plain tensors; DeepSpeed's norm takes a fifth of a step on a CPU.
    """
    return zero_stage(settings.zero_stage, precision == "bf16") == 0


def zero_stage(asked: int, bf16: bool) -> int:
    """Return the ZeRO stage of a training, which in bf16 is at least 1.

    In bf16 without ZeRO, DeepSpeed makes an empty step of Adam beforehand, so the first real one is too small.
    """
    return max(asked, 1) if bf16 else asked


def deepspeed_config(settings: TrainSettings, precision: Precision = "fp32") -> dict[str, Any]:
    """Return the DeepSpeed config for `settings` and the resolved precision.

    Raises:
        UserError: batches are not divisible, or the ZeRO stage cannot offload what is asked.
    """
    zero: dict[str, Any] = {"stage": zero_stage(settings.zero_stage, precision == "bf16")}
    offload = settings.offload
    if offload.optimizer == "cpu":
        _need(settings.zero_stage >= 1, "offload.optimizer = 'cpu' needs zero_stage 1, 2 or 3")
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": settings.workers.gpus_per_worker > 0}
    if offload.parameters == "cpu":
        _need(settings.zero_stage == 3, "offload.parameters = 'cpu' needs zero_stage 3")
        zero["offload_param"] = {"device": "cpu", "pin_memory": settings.workers.gpus_per_worker > 0}
    if settings.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = False
    steps = accumulation_steps(settings)
    per_worker = settings.global_batch // settings.workers.count
    return {
        "train_batch_size": settings.global_batch,
        "train_micro_batch_size_per_gpu": per_worker // steps,
        "gradient_accumulation_steps": steps,
        "gradient_clipping": 0.0 if clips_itself(settings, precision) else settings.max_grad_norm,
        "bf16": {"enabled": precision == "bf16"},
        "torch_autocast": {"enabled": precision == "bf16_mixed", "dtype": "bfloat16"},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }


def _need(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(f"train.{message}.")
