"""Trained weights end as one plain folder with the same answers as the model that was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.base.errors import UserError
from teacher.config import Full, Lora, Tuning
from teacher.model import attention_kernel, load_tokenizer, load_trainable, save_merged
from tests.helpers.hub_cache import pushed_to
from tests.helpers.tiny_llama import tiny_llama

IDS = torch.arange(5, 45).reshape(2, 20)
LORA = Lora(rank=4, alpha=8)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("untied") / "llama", tied=False)


def trained(folder: Path, tuning: Tuning) -> Any:
    """A model all of whose trainable weights were moved."""
    model = load_trainable(str(folder), tuning)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def state_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("tuning", [LORA, Full(), Full(frozen_layers=1)], ids=["lora", "full", "frozen"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_folder_answers_as_the_trained_model(
    llama_folder: Path, untied: Path, tmp_path: Path, tuning: Tuning, tied: bool
) -> None:
    start = llama_folder if tied else untied
    model = trained(start, tuning)
    save_merged(str(start), tuning, state_of(model), tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    before = AutoModelForCausalLM.from_pretrained(start)
    assert torch.allclose(logits(again), logits(model), atol=1e-5)
    assert not torch.allclose(logits(again), logits(before), atol=1e-2)
    same = again.get_input_embeddings().weight.data_ptr() == again.get_output_embeddings().weight.data_ptr()
    assert same is tied


def test_frozen_layers_keep_their_weights_and_have_no_gradients(llama_folder: Path) -> None:
    model = load_trainable(str(llama_folder), Full(frozen_layers=1))
    model(input_ids=IDS, labels=IDS).loss.backward()
    learnt = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learnt == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.startswith(("model.layers.1.", "model.norm")) for name in learnt) and len(learnt) > 5
    with pytest.raises(UserError, match=r"frozen_layers 2: the model has 2 layers"):
        load_trainable(str(llama_folder), Full(frozen_layers=2))


def test_nothing_of_the_adapters_is_left_in_the_folder(llama_folder: Path, tmp_path: Path) -> None:
    save_merged(str(llama_folder), LORA, state_of(trained(llama_folder, LORA)), tmp_path)
    with (
        safe_open(tmp_path / "model.safetensors", "pt") as file,
        safe_open(llama_folder / "model.safetensors", "pt") as start,
    ):
        assert set(file.keys()) == set(start.keys())
    assert not list(tmp_path.glob("adapter*"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template and tokenizer.encode("a drill") == load_tokenizer(str(llama_folder)).encode(
        "a drill"
    )


def test_lora_trains_adapters_only_and_starts_as_the_base(llama_folder: Path) -> None:
    model = load_trainable(str(llama_folder), LORA)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names and all("lora_" in name for name in names)
    assert torch.allclose(logits(model), logits(AutoModelForCausalLM.from_pretrained(llama_folder)), atol=1e-6)
    few = load_trainable(str(llama_folder), Lora(rank=2, target_modules=("q_proj",)))
    assert all("q_proj" in name for name, p in few.named_parameters() if p.requires_grad)


def test_the_folder_keeps_the_number_format_of_its_start(llama_folder: Path, tmp_path: Path) -> None:
    start = tmp_path / "bf16"
    AutoModelForCausalLM.from_pretrained(llama_folder).to(torch.bfloat16).save_pretrained(start)
    load_tokenizer(str(llama_folder)).save_pretrained(start)
    save_merged(str(start), LORA, state_of(trained(start, LORA)), tmp_path / "made")
    assert json.loads((tmp_path / "made" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype="auto").dtype == torch.bfloat16


def test_weights_without_a_place_are_an_error(llama_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"no place for .*nowhere"):
        save_merged(str(llama_folder), Full(), {"nowhere": torch.zeros(1)}, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_tokenizer_without_padding_pads_with_its_end(llama_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.pad_token_id == loaded.eos_token_id is not None


def test_short_sequences_on_a_cpu_are_trained_with_plain_products(llama_folder: Path) -> None:
    assert attention_kernel([384, 512], gpu=False) == "eager"
    assert attention_kernel([384, 513], gpu=False) is None and attention_kernel([384], gpu=True) is None
    kernels = [load_trainable(str(llama_folder), Full(), attention=name) for name in ("eager", None)]
    assert [model.config._attn_implementation for model in kernels] == ["eager", "sdpa"]
    assert torch.allclose(*map(logits, kernels), atol=1e-5)


def test_a_model_of_the_hub_stays_at_its_commit(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(llama_folder, Full()).to(torch.bfloat16).save_pretrained(tmp_path / "later")
    other = load_tokenizer(str(llama_folder))
    other.chat_template = "another"
    other.save_pretrained(tmp_path / "later")
    model = pushed_to(monkeypatch, tmp_path / "hub", llama_folder, tmp_path / "later")
    before = load_trainable(str(llama_folder), Full())
    assert torch.equal(logits(load_trainable(model, Full())), logits(before))
    assert load_tokenizer(model).chat_template == load_tokenizer(str(llama_folder)).chat_template != "another"
    save_merged(model, Full(), state_of(before), tmp_path / "made")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype="auto").dtype == torch.float32
