"""The size of a model, which is read from its folder or from a table of hub models."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from cluster.base.errors import UserError
from cluster.base.stage_folder import read_json
from cluster.config import Settings
from cluster.models.folders import check_model

HUB_SIZES = Path(__file__).with_name("hub_sizes.toml")


class ModelSize(Settings):
    """Parameters and shape of a transformer. A decoder has a gated MLP and an output layer; an encoder has neither."""

    kind: Literal["decoder", "encoder"]
    parameters: PositiveInt
    layers: PositiveInt
    hidden: PositiveInt
    intermediate: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    vocabulary: PositiveInt
    tied: bool = False

    @property
    def embedding(self) -> int:
        """Parameters of one vocabulary matrix."""
        return self.vocabulary * self.hidden

    @property
    def layer(self) -> int:
        """Parameters of one layer, including its share of positions and final norms."""
        matrices = 2 if self.kind == "decoder" and not self.tied else 1  # the output layer may be the embedding itself
        return (self.parameters - matrices * self.embedding) // self.layers

    @property
    def multiplied(self) -> int:
        """Parameters that a token is multiplied by: all of them except an embedding that is only looked up."""
        return self.parameters - (0 if self.tied else self.embedding)

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear modules in a decoder layer, under their names in Llama and Qwen."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    def lora_parameters(self, rank: int, modules: tuple[str, ...] | str) -> int:
        """Return the parameters of adapters of `rank`, which are rank x (inputs + outputs) per adapted module.

        Raises:
            UserError: the model has no such module.
        """
        chosen = tuple(self.linear) if isinstance(modules, str) else modules
        unknown = sorted(set(chosen) - set(self.linear))
        if unknown:
            raise UserError(f"tuning.target_modules: {unknown} are unknown; known are {', '.join(self.linear)}")
        return self.layers * rank * sum(sum(self.linear[name]) for name in chosen)


def model_size(field: str, name: str) -> ModelSize:
    """Return the size of a local model folder or of a hub model that the table names.

    Raises:
        UserError: it is neither, or the folder's config.json does not say.
    """
    where = check_model(field, name)
    if Path(where).is_dir():
        return _of_folder(field, Path(where))
    known, name = hub_models(), name.partition("@")[0]
    if name not in known:
        raise UserError(
            f"{field}: the size of {name!r} is not known. Give a local folder or one of {', '.join(known)}, "
            f"or enter it in cluster/models/{HUB_SIZES.name}."
        )
    return known[name]


def hub_models() -> dict[str, ModelSize]:
    """Return the table of hub models by name."""
    return {k: ModelSize(**v) for k, v in tomllib.loads(HUB_SIZES.read_text(encoding="utf-8")).items()}


def _of_folder(field: str, folder: Path) -> ModelSize:
    config = read_json(folder / "config.json")
    try:
        return ModelSize(parameters=count_parameters(folder), **shape_of(config))
    except KeyError as error:
        raise UserError(
            f"{field}: {folder / 'config.json'} has no {error}, so the model's size is not known."
        ) from error


def shape_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return a model's shape, as the fields of `ModelSize`, from the content of its config.json."""
    heads = config["num_attention_heads"]
    decoder = any("CausalLM" in name for name in config.get("architectures") or ())
    return {
        "kind": "decoder" if decoder else "encoder",
        "layers": config["num_hidden_layers"],
        "hidden": config["hidden_size"],
        "intermediate": config["intermediate_size"],
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "vocabulary": config["vocab_size"],
        "tied": decoder and bool(config.get("tie_word_embeddings")),
    }


def count_parameters(folder: Path) -> int:
    """Return how many numbers the safetensors files of the folder contain; only their headers are read.

    Raises:
        UserError: the weights have another format.
    """
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{folder} has no *.safetensors file: save the model in that format, so that its size can be read."
        )
    total = 0
    for file in files:
        with safe_open(file, framework="numpy") as opened:
            total += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
    return total
