"""How much of a GPU's memory a model takes, by arithmetic on plain numbers. Everything is in bytes per GPU.

Weights, gradients and optimizer states are counted exactly; activations and the reserve are estimates. Sources:
ZeRO, Rajbhandari et al. 2020 (arXiv 1910.02054), section 3.1 and figure 1; activations, Korthikanti et al.
2022 (arXiv 2205.05198), equation 2 without the attention matrix, and section 5 for recomputation.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat

from cluster.base.errors import UsageError
from cluster.config import Offload, Settings, TrainSettings
from cluster.models.size import ModelSize
from cluster.training.deepspeed_config import zero_stage

CARDS = Path(__file__).with_name("cards.toml")
GB = 1e9
RESERVE = 2.0 * GB  # assumed for the CUDA context, workspace of kernels, collectives and fragmentation
LAYER_BYTES = 34  # of activations, per token and unit of width, that one layer keeps in 16 bit
KEPT_BYTES = 2  # of them with recomputation, which keeps only a layer's input
LOGIT_BYTES = 10  # per logit: 16 bit, its fp32 copy, and that copy's gradient
ADAM_BYTES = 8  # two moments in fp32
MASTER_BYTES = 4  # fp32 copy of a trained bf16 parameter, and of its gradient
GROUP_BYTES = 4 * GB  # of gradients that stage 3 casts at a time, in DeepSpeed's sub-groups of 1e9


class Gpu(Settings):
    """A GPU as its data sheet describes it. A GB is 1e9 bytes, and TFLOP/s are those of dense products.

    `generation_share` is the share of its TFLOP/s that an engine reaches, an assumption where nobody has measured it.
    """

    memory_gb: PositiveFloat
    bf16_tflops: PositiveFloat
    bandwidth_gb_s: PositiveFloat
    generation_share: float = Field(0.4, gt=0, le=1)
    about: str

    @property
    def memory(self) -> float:
        return self.memory_gb * GB


@dataclass(frozen=True)
class Memory:
    """Bytes per GPU, by what is in them."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    kv_cache: float = 0.0
    activations: float = 0.0
    reserve: float = RESERVE

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Training:
    """What decides the memory of a training. `trained` counts the parameters that get gradients."""

    settings: TrainSettings
    trained: int
    sequence_tokens: int
    learnt_tokens: int

    @property
    def width(self) -> int:
        """Bytes of a weight."""
        return weight_bytes(self.settings.precision)

    @property
    def micro_batch(self) -> int:
        """Rows of one forward pass of a worker."""
        return min(self.settings.micro_batch, max(1, self.settings.global_batch // self.settings.workers.count))


def weight_bytes(precision: str) -> int:
    """Return the bytes of a weight on a GPU, where `auto` is bf16."""
    return 4 if precision in ("fp32", "float32", "bf16_mixed") else 2


def known_gpus() -> dict[str, Gpu]:
    """Return the GPUs of the table, by name."""
    return {k: Gpu(**v) for k, v in tomllib.loads(CARDS.read_text(encoding="utf-8")).items()}


def find_gpu(name: str) -> Gpu:
    """Return a GPU of the table.

    Raises:
        UsageError: the table has no such GPU.
    """
    known = known_gpus()
    if name not in known:
        raise UsageError(
            f"--gpu {name!r} is not known; known are {', '.join(known)}. Enter others in cluster/gpus/cards.toml."
        )
    return known[name]


def kv_bytes_per_token(model: ModelSize, width: int = 2, tensor_parallel: int = 1) -> float:
    """Return the bytes of one token's keys and values: 2 x layers x kv_heads x head_dim x width, divided by heads.

    With more GPUs than key-value heads, heads are repeated, because a GPU holds at least one.
    """
    heads = max(1.0, model.kv_heads / tensor_parallel)
    return 2 * model.layers * heads * model.head_dim * width


def generation_memory(model: ModelSize, gpu: Gpu, width: int, tensor_parallel: int, utilization: float) -> Memory:
    """Return an engine's memory. Its KV cache gets what weights and reserve leave of `utilization`, even below 0."""
    weights = model.parameters * width / tensor_parallel
    return Memory(weights=weights, kv_cache=gpu.memory * utilization - weights - RESERVE)


def inference_memory(model: ModelSize, width: int, batch_tokens: int, logits: int = 0) -> Memory:
    """Return the memory of a forward pass: weights, one layer's activations, and the logits of `logits` tokens."""
    layer = LAYER_BYTES * model.hidden * batch_tokens * width / 2
    return Memory(weights=model.parameters * width, activations=layer + logits * model.vocabulary * LOGIT_BYTES)


def training_memory(model: ModelSize, plan: Training) -> Memory:
    """Return a training worker's memory under ZeRO stage 0 to 3.

    Stage 1 divides the optimizer's states among the workers, stage 2 also the gradients, stage 3 also the parameters.
    Stage 3 adds the largest piece that is gathered at a time (a layer or a vocabulary matrix), twice for prefetching.
    In bf16, each worker's share of the gradients is cast to fp32 for the step, in stage 3 some of it at a time.
    """
    width, settings = plan.width, plan.settings
    master = MASTER_BYTES if width == 2 else 0
    stage = zero_stage(settings.zero_stage, width == 2)
    share = [1 if stage < least else settings.workers.count for least in (1, 2, 3)]
    states = plan.trained * (ADAM_BYTES + master) / share[0]
    cast = plan.trained * master / share[0]
    weights = model.parameters * width / share[2]
    if stage == 3:
        gathered = 2 * max(model.layer, model.embedding) * width
        weights = gathered + (0 if settings.offload.parameters == "cpu" else weights)
        cast = min(cast, GROUP_BYTES)
    return Memory(
        weights=weights,
        gradients=plan.trained * width / share[1] + cast,
        optimizer=0 if settings.offload.optimizer == "cpu" else states,
        activations=training_activations(model, plan),
    )


def training_activations(model: ModelSize, plan: Training) -> float:
    """Return the activations of one micro batch: what every layer keeps, one whole layer, and the logits."""
    tokens = plan.micro_batch * plan.sequence_tokens
    recompute = plan.settings.gradient_checkpointing
    kept = KEPT_BYTES * model.layers + LAYER_BYTES if recompute else LAYER_BYTES * model.layers
    logits = plan.micro_batch * plan.learnt_tokens * model.vocabulary * LOGIT_BYTES
    return tokens * model.hidden * kept * plan.width / 2 + logits


def training_way_out(model: ModelSize, plan: Training, memory: float) -> list[str]:
    """Return the settings that make a training fit, the mildest first, or nothing where none of them does."""
    changes: list[tuple[str, dict[str, Any]]] = [
        ("gradient_checkpointing = true", {"gradient_checkpointing": True}),
        ("micro_batch = 1", {"micro_batch": 1} if plan.micro_batch > 1 else {}),
        ("zero_stage = 2", {"zero_stage": max(2, plan.settings.zero_stage)}),
        ("zero_stage = 3", {"zero_stage": 3}),
        ("offload.optimizer = 'cpu'", {"offload": plan.settings.offload.model_copy(update={"optimizer": "cpu"})}),
        ("offload.parameters = 'cpu'", {"offload": Offload(optimizer="cpu", parameters="cpu")}),
    ]
    said: list[str] = []
    for words, change in changes:
        tried = replace(plan, settings=plan.settings.model_copy(update=change))
        if tried == plan:
            continue
        plan = tried
        said = [s for s in said if not s.startswith(words.partition(" =")[0])] + [words]
        if training_memory(model, plan).total <= memory:
            return said
    return []
