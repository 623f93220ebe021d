"""The student: an encoder, a latent reasoning extractor and a classifier over both, saved as safetensors.

Shapes: B batch, T tokens, P latent vectors (one, or one per perspective), H encoder width, D target width,
C labels.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cluster.base.errors import UserError
from cluster.base.stage_folder import read_json, write_json
from cluster.models.folders import hub_arguments
from distill.config import STUDENT_FORMAT as FORMAT
from distill.config import StudentConfig
from distill.student.extractors import PerLatentLinear, build_extractor, masked_mean

CONFIG, WEIGHTS = "student.json", "model.safetensors"
# transformers changes its own classes while it makes a model: two threads would each put back what the other changed.
MAKING = threading.Lock()


class StudentOutput(NamedTuple):
    """Label logits BxC, latent vectors BxPxD and verdict logits BxPxC. The last two are None if there are none."""

    logits: Tensor
    latents: Tensor | None
    perspective_logits: Tensor | None


class Student(nn.Module):
    """Linear(concat(h, LayerNorm(r_1)..LayerNorm(r_P))) over labels and, if the config says so, a verdict head on each.

    h is the state of [CLS] or the mean over tokens. LayerNorm puts latent vectors on the scale of the states, whose
    last step is a LayerNorm too. With `auxiliary` it is Linear(h), and the latent vectors are for the losses of the
    training only.
    """

    def __init__(self, encoder: PreTrainedModel, config: StudentConfig) -> None:
        super().__init__()
        check_length(encoder.config, config.max_tokens)
        width, labels, latents = encoder.config.hidden_size, len(config.scheme.labels), config.latents
        self.config = config
        self.encoder = encoder
        self.extractor = build_extractor(config.extractor, width, latents, config.target_width)
        self.dropout = nn.Dropout(config.dropout)
        reads = latents > 0 and not config.auxiliary
        self.norm = nn.LayerNorm(config.target_width) if reads else None
        self.classifier = nn.Linear(width + (latents * config.target_width if reads else 0), labels)
        verdicts = latents > 0 and config.per_perspective and config.verdicts
        self.verdicts = PerLatentLinear(latents, config.target_width, labels) if verdicts else None

    def gradient_checkpointing_enable(self) -> None:
        """Let the encoder compute its activations again in the backward pass instead of keeping them."""
        self.encoder.gradient_checkpointing_enable({"use_reentrant": False})

    def encode(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Return the token states BxTxH of token ids BxT."""
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask, **extra).last_hidden_state

    def read(self, states: Tensor, attention_mask: Tensor) -> StudentOutput:
        """Judge pairs from token states BxTxH and their mask BxT."""
        latents = None if self.extractor is None else self.extractor(states, attention_mask)
        features = states[:, 0] if self.config.pooling == "cls" else masked_mean(states, attention_mask)
        if latents is not None and self.norm is not None:
            features = torch.cat([features, self.norm(latents).flatten(1)], dim=1)
        verdicts = None if self.verdicts is None or latents is None else self.verdicts(latents)
        return StudentOutput(self.classifier(self.dropout(features)), latents, verdicts)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> StudentOutput:
        return self.read(self.encode(input_ids, attention_mask, token_type_ids), attention_mask)

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the student into `folder`; see `write_student`."""
        write_student(folder, self.state_dict(), self.config, self.encoder.config, tokenizer)

    @classmethod
    def load(cls, folder: Path) -> Student:
        """Load a saved student in float32 and in evaluation mode. No code of the folder is run, nothing is unpickled.

        Raises:
            UserError: the folder is not a student's, or it is damaged.
        """
        config = read_student_config(folder)
        encoder_config = read_encoder_config(folder)
        with MAKING:
            encoder = AutoModel.from_config(
                encoder_config, dtype=torch.float32, trust_remote_code=False, **_no_pooler(encoder_config)
            )
        student = cls(encoder, config)
        try:
            loaded = student.load_state_dict(load_file(folder / WEIGHTS), strict=False)
        except (SafetensorError, RuntimeError) as error:
            raise UserError(f"{folder / WEIGHTS} does not fit {CONFIG}: {error}. Export the student again.") from error
        # The file need not have buffers, because they come from the encoder's config.
        lost = [name for name, _ in student.named_parameters() if name in set(loaded.missing_keys)]
        if lost or loaded.unexpected_keys:
            wrong = ", ".join([*lost, *loaded.unexpected_keys][:4])
            raise UserError(f"{folder / WEIGHTS} does not fit {CONFIG} ({wrong}). Export the student again.")
        return student.eval()


def build_student(model: str, config: StudentConfig) -> Student:
    """Return an untrained student on the encoder `model`, a folder or hub name. Seed torch before that."""
    return Student(load_encoder(model), config)


def read_encoder_config(model: str | Path) -> PreTrainedConfig:
    """Return the config of the encoder `model`."""
    return AutoConfig.from_pretrained(**hub_arguments(model), trust_remote_code=False)


def encoder_layers(model: str) -> int:
    """Return how many layers the encoder `model` has."""
    return int(read_encoder_config(model).num_hidden_layers)


def freeze_layers(encoder: PreTrainedModel, count: int) -> None:
    """Keep the embeddings and the first `count` layers from training; 0 freezes nothing.

    Raises:
        UserError: the encoder has fewer layers, or none that can be told.
    """
    if not count:
        return
    lists = (part for part in encoder.modules() if isinstance(part, nn.ModuleList))
    layers = next((part for part in lists if len(part) == encoder.config.num_hidden_layers), nn.ModuleList())
    if count > len(layers):
        raise UserError(f"student.frozen_layers: {count} is more than the {len(layers)} layers of the encoder")
    embeddings: Any = getattr(encoder, "embeddings", None) or encoder.get_input_embeddings()
    for part in (embeddings, *layers[:count]):
        part.requires_grad_(False)


def load_encoder(model: str) -> PreTrainedModel:
    """Load an encoder in float32, without the pooling layer, which is not used here.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        extra = _no_pooler(read_encoder_config(model))
        with MAKING:
            return AutoModel.from_pretrained(
                **hub_arguments(model), dtype=torch.float32, trust_remote_code=False, **extra
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"cannot load the encoder {model!r}: {error}") from error


def load_tokenizer(model: str | Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or by hub name.

    Raises:
        UserError: it cannot be loaded, or it is a slow one, which cannot tell where in a text a token is.
    """
    try:
        # A title that spells [SEP] stays text.
        tokenizer = AutoTokenizer.from_pretrained(
            **hub_arguments(model), trust_remote_code=False, split_special_tokens=True
        )
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load a tokenizer from {str(model)!r}: {error}") from error
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer of {str(model)!r} has no tokenizer.json; choose a model that has one")
    return tokenizer


def write_student(
    folder: Path,
    state: Mapping[str, Tensor],
    config: StudentConfig,
    encoder_config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write a student's folder: encoder config, tokenizer, float32 weights and, at the end, `student.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    encoder_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Cloned, because safetensors refuses tensors that share memory, such as views of a gathered buffer.
    tensors = {name: tensor.detach().float().cpu().contiguous().clone() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, config.model_dump(mode="json"))


def kept_for_inference(state: Mapping[str, Tensor], config: StudentConfig) -> dict[str, Tensor]:
    """Return the weights that belong to `config.for_inference()`, without those of an auxiliary head."""
    dropped = ("extractor.", "verdicts.") if config.auxiliary else ()
    return {name: tensor for name, tensor in state.items() if not name.startswith(dropped)}


def read_student_config(folder: Path) -> StudentConfig:
    """Read `student.json`.

    Raises:
        UserError: the folder is not a student's.
    """
    missing = [name for name in (CONFIG, WEIGHTS, "config.json") if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} is not a student's folder: it has no {', '.join(missing)}. Give an export folder.")
    found = read_json(folder / CONFIG)
    if isinstance(found, dict) and found.get("format") != FORMAT:
        raise UserError(
            f"{folder / CONFIG} has format {found.get('format')} and this version reads format {FORMAT}. Train and "
            "export the student again with this version, or use it with the version that wrote it."
        )
    try:
        return StudentConfig(**found)
    except (ValidationError, TypeError) as error:
        raise UserError(f"{folder / CONFIG} does not describe a student: {error}") from error


def is_trained(folder: Path, fingerprint: str) -> bool:
    """Return whether `folder` has a finished student of this version with this fingerprint of its stage."""
    if not (folder / CONFIG).is_file():
        return False
    found = read_json(folder / CONFIG)
    return (found.get("format"), found.get("fingerprint")) == (FORMAT, fingerprint)


def _no_pooler(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the keyword that leaves out the pooling layer, if the architecture has one."""
    architecture: Any = MODEL_MAPPING.get(type(config), None)
    if architecture is None:
        return {}
    parameters = inspect.signature(architecture).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in parameters else {}


def check_length(config: PreTrainedConfig, tokens: int, named: str = "student.max_tokens") -> None:
    """Refuse more tokens than an encoder has positions for.

    Args:
        named: the settings that the tokens come from.

    Raises:
        UserError: it cannot read so many.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions and tokens > positions:
        raise UserError(f"{named}: {tokens} is more than the {positions} that the encoder can read")
