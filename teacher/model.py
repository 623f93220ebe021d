"""Loads the teacher's weights for training, with or without adapters, and saves them as one merged folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.base.errors import UserError
from cluster.models.folders import hub_arguments
from teacher.config import Lora, Tuning

if TYPE_CHECKING:
    from torch import Tensor, nn


EAGER_TOKENS = 512


def load_tokenizer(model: str) -> Any:
    """Return the model's tokenizer. If it has no padding token, it pads with its end-of-text token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(**hub_arguments(model), trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_trainable(model: str, tuning: Tuning, dtype: str = "float32", attention: str | None = None) -> nn.Module:
    """Return the causal model, with the parameters to train marked and, for LoRA, with adapters.

    Args:
        attention: the name that transformers has for the attention kernel; None lets it choose.
    """
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(
        **hub_arguments(model), dtype=getattr(torch, dtype), attn_implementation=attention, trust_remote_code=False
    )
    if not isinstance(tuning, Lora):
        _freeze(base, tuning.frozen_layers)
        return base
    from peft import LoraConfig, get_peft_model

    modules = tuning.target_modules if isinstance(tuning.target_modules, str) else list(tuning.target_modules)
    config = LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=modules,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, config)


def attention_kernel(lengths: Iterable[int], gpu: bool) -> str | None:
    """Return the attention kernel to train with; None lets transformers choose.

    On a CPU, torch's fused kernel took a fifth of a step at 270 tokens, and plain products half of that. But plain
    products keep scores for the backward pass that grow with the square of the length, so long sequences use the
    fused kernel. Reference log-probabilities take the same one: in bf16 two kernels differ by more than DPO moves.

    Args:
        lengths: tokens of the sequences that are trained on, each with all its answers; read until one is too long.
    """
    return "eager" if not gpu and all(length <= EAGER_TOKENS for length in lengths) else None


def _freeze(model: Any, count: int) -> None:
    """Keep the embeddings and the first `count` layers from training.

    Raises:
        UserError: the model has no more layers than that.
    """
    if not count:
        return
    layers = getattr(model.get_decoder(), "layers", ())
    if count >= len(layers):
        raise UserError(f"tuning.frozen_layers {count}: the model has {len(layers)} layers, and one must be trained.")
    for part in (model.get_input_embeddings(), *layers[:count]):
        part.requires_grad_(False)


def save_merged(model: str, tuning: Tuning, state: dict[str, Tensor], folder: Path) -> None:
    """Write a plain Hugging Face folder, with the trained parameters in the model and adapters merged.

    Args:
        model: what the training started from.
        state: the trained parameters by name, on the CPU.

    Raises:
        RuntimeError: a trained parameter has no place in the model.
    """
    import torch
    from transformers import AutoConfig

    trained: Any = load_trainable(model, tuning)
    unknown = trained.load_state_dict(state, strict=False).unexpected_keys
    if unknown:
        raise RuntimeError(f"{model} has no place for these trained parameters: {unknown[:3]}")
    if isinstance(tuning, Lora):
        trained = trained.merge_and_unload()
    dtype = AutoConfig.from_pretrained(**hub_arguments(model), trust_remote_code=False).dtype or torch.float32
    trained.to(dtype).save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)
