"""Which devices a worker may use: those that its settings give it, whatever its node has."""

from __future__ import annotations

import os


def use_gpus(asked: float) -> None:
    """Hide the node's GPUs from this process unless it was given some; to be called before torch looks for any.

    Ray itself leaves all of a node's GPUs in sight of a worker that asked for none.
    """
    if not asked:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
