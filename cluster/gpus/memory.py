"""What a model takes of a GPU's memory, as arithmetic on plain numbers. Everything is in bytes per GPU.

Weights, gradients and optimizer states are exact counts; activations and the reserve are rough. Sources:
ZeRO, Rajbhandari et al. 2020 (arXiv 1910.02054), section 3.1 and figure 1; activations, Korthikanti et al.
2022 (arXiv 2205.05198), equation 2 without the attention matrix, and section 5 for recomputation.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import PositiveFloat

from cluster.base.errors import UsageError
from cluster.config import Settings
from cluster.models.size import ModelSize
from cluster.training.deepspeed_config import zero_stage

GPUS = Path(__file__).with_name("cards.toml")
GB = 1e9
RESERVE = 2.0 * GB  # assumed for the CUDA context, kernels' workspace, collectives and fragmentation
LAYER_BYTES = 34  # of activations, per token and unit of width, that one layer keeps in 16 bit
KEPT_BYTES = 2  # of them with recomputation: a layer's input alone
LOGIT_BYTES = 10  # per logit: 16 bit, its fp32 copy, and that copy's gradient
ADAM_BYTES = 8  # two moments in fp32
MASTER_BYTES = 4  # fp32 copy of a trained bf16 parameter, and of its gradient
GROUP_BYTES = 4 * GB  # of gradients that stage 3 casts at a time: DeepSpeed's sub-groups of 1e9


class Gpu(Settings):
    """A GPU as its data sheet describes it; a GB is 1e9 bytes, a TFLOP/s is dense."""

    memory_gb: PositiveFloat
    bf16_tflops: PositiveFloat
    bandwidth_gb_s: PositiveFloat
    about: str

    @property
    def memory(self) -> float:
        return self.memory_gb * GB


@dataclass(frozen=True)
class Memory:
    """Bytes per GPU by what they hold."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    kv_cache: float = 0.0
    activations: float = 0.0
    reserve: float = RESERVE

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.kv_cache + self.activations + self.reserve


@dataclass(frozen=True)
class Training:
    """What decides a training's memory. `trained` are the parameters that get gradients."""

    trained: int
    sequence_tokens: int
    learnt_tokens: int
    micro_batch: int
    workers: int = 1
    precision_bytes: int = 2
    zero_stage: int = 0
    recompute: bool = False
    offload_optimizer: bool = False
    offload_parameters: bool = False


def gpus() -> dict[str, Gpu]:
    """Return the GPUs of the table by name."""
    return {k: Gpu(**v) for k, v in tomllib.loads(GPUS.read_text(encoding="utf-8")).items()}


def find_gpu(name: str) -> Gpu:
    """Return a GPU of the table.

    Raises:
        UsageError: no such GPU.
    """
    known = gpus()
    if name not in known:
        raise UsageError(
            f"--gpu {name!r} is not known; there are {', '.join(known)}. Others go into cluster/gpus/cards.toml."
        )
    return known[name]


def kv_bytes_per_token(model: ModelSize, width: int = 2, tensor_parallel: int = 1) -> float:
    """Return one token's keys and values: 2 x layers x kv_heads x head_dim x width, shared out by heads.

    With more GPUs than key-value heads, heads are repeated: a GPU never holds less than one.
    """
    heads = max(1.0, model.kv_heads / tensor_parallel)
    return 2 * model.layers * heads * model.head_dim * width


def generation_memory(model: ModelSize, gpu: Gpu, width: int, tensor_parallel: int, utilization: float) -> Memory:
    """Return an engine's memory: the KV cache gets what weights and reserve leave of `utilization`, may be below 0."""
    weights = model.parameters * width / tensor_parallel
    return Memory(weights=weights, kv_cache=gpu.memory * utilization - weights - RESERVE)


def inference_memory(model: ModelSize, width: int, batch_tokens: int, logits: int = 0) -> Memory:
    """Return a forward pass's memory: weights, one layer's activations, and the logits of `logits` tokens."""
    layer = LAYER_BYTES * model.hidden * batch_tokens * width / 2
    return Memory(weights=model.parameters * width, activations=layer + logits * model.vocabulary * LOGIT_BYTES)


def training_memory(model: ModelSize, plan: Training) -> Memory:
    """Return a training worker's memory under ZeRO stage 0 to 3.

    Stage 1 shares the optimizer's states over the workers, 2 the gradients too, 3 the parameters too; then the
    largest piece that is gathered at a time (a layer or a vocabulary matrix) comes on top, twice for prefetching.
    In bf16 each worker's share of the gradients is cast to fp32 for the step, in stage 3 some at a time.
    """
    width = plan.precision_bytes
    master = MASTER_BYTES if width == 2 else 0
    stage = zero_stage(plan.zero_stage, width == 2)
    share = [1 if stage < least else plan.workers for least in (1, 2, 3)]
    states = plan.trained * (ADAM_BYTES + master) / share[0]
    cast = plan.trained * master / share[0]
    weights = model.parameters * width / share[2]
    if stage == 3:
        gathered = 2 * max(model.layer, model.embedding) * width
        weights = gathered + (0 if plan.offload_parameters else weights)
        cast = min(cast, GROUP_BYTES)
    return Memory(
        weights=weights,
        gradients=plan.trained * width / share[1] + cast,
        optimizer=0 if plan.offload_optimizer else states,
        activations=training_activations(model, plan),
    )


def training_activations(model: ModelSize, plan: Training) -> float:
    """Return the activations of one micro batch: what every layer keeps, one layer whole, and the logits."""
    tokens = plan.micro_batch * plan.sequence_tokens
    kept = KEPT_BYTES * model.layers + LAYER_BYTES if plan.recompute else LAYER_BYTES * model.layers
    logits = plan.micro_batch * plan.learnt_tokens * model.vocabulary * LOGIT_BYTES
    return tokens * model.hidden * kept * plan.precision_bytes / 2 + logits


def training_way_out(model: ModelSize, plan: Training, memory: float) -> list[str]:
    """Return the settings that make a training fit, the mildest first; empty where none of them does."""
    changes: list[tuple[str, dict[str, Any]]] = [
        ("gradient_checkpointing = true", {"recompute": True}),
        ("micro_batch = 1", {"micro_batch": 1}),
        ("zero_stage = 2", {"zero_stage": max(2, plan.zero_stage)}),
        ("zero_stage = 3", {"zero_stage": 3}),
        ("offload.optimizer = 'cpu'", {"offload_optimizer": True}),
        ("offload.parameters = 'cpu'", {"offload_parameters": True}),
    ]
    said: list[str] = []
    for words, change in changes:
        tried = replace(plan, **change)
        if tried == plan:
            continue
        plan = tried
        said = [s for s in said if not s.startswith(words.partition(" =")[0])] + [words]
        if training_memory(model, plan).total <= memory:
            return said
    return []
