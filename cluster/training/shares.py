"""Builds the model of a training; with ZeRO-3 in shares, so that no worker ever holds all of it."""

from __future__ import annotations

from typing import Any

from cluster.training.task import TrainTask


def build_model(task: TrainTask, plan: dict[str, Any]) -> Any:
    """Return the task's model. With ZeRO-3 each worker has its share of every parameter.

    What the task loads by `from_pretrained` is divided while it is loaded: the first worker reads the weights from
    their file, one module at a time, and the others get their shares from it. What the task adds to that, such as
    adapters, is small and divided afterwards.

    Args:
        plan: the DeepSpeed config.
    """
    if plan["zero_optimization"]["stage"] != 3:
        return task.build()
    import deepspeed
    import torch
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    deepspeed.init_distributed(dist_init_required=False)  # Ray has; DeepSpeed has not seen it yet
    dtype = torch.bfloat16 if plan["bf16"]["enabled"] else torch.float32
    divides = HfDeepSpeedConfig(plan)  # from_pretrained divides for as long as this lives
    try:
        model = task.build()
    finally:
        del divides
    for parameter in model.parameters():
        if not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.to(dtype)
    deepspeed.zero.Init(module=model, config_dict_or_path=plan, dtype=dtype)
    return model
