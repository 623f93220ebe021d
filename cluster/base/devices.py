"""Keeps a worker to the devices that its settings give it, whatever its node has."""

from __future__ import annotations

import os


def use_gpus(asked: float) -> None:
    """Hide the node's GPUs from this process unless it was given some. Call it before torch looks for any.

    Ray itself lets a worker that asked for no GPU see all those of its node.
    """
    if not asked:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
