"""Memory and time on a GPU, against values worked out by hand and against those that the sources print."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cluster.base.errors import UsageError, UserError
from cluster.config import TrainSettings
from cluster.gpus.memory import (
    GB,
    RESERVE,
    Gpu,
    Training,
    find_gpu,
    generation_memory,
    inference_memory,
    known_gpus,
    kv_bytes_per_token,
    training_activations,
    training_memory,
    training_way_out,
)
from cluster.gpus.speed import (
    Generation,
    answers_per_second,
    forward_tokens_per_second,
    step_seconds,
    training_tokens_per_second,
)
from cluster.models.size import ModelSize, hub_models, model_size

QWEN = hub_models()["Qwen/Qwen3-14B"]
# 7.5e9 parameters in many small layers, so that what ZeRO-3 gathers of one layer hardly counts.
ZERO_PAPER = ModelSize(
    kind="decoder",
    parameters=7_500_000_000,
    layers=1000,
    hidden=8,
    intermediate=16,
    heads=2,
    kv_heads=1,
    head_dim=4,
    vocabulary=100,
)
CARD = Gpu(memory_gb=10, bf16_tflops=100, bandwidth_gb_s=1000, about="invented")


def transformer_parameters(m: ModelSize) -> int:
    """Return the weights of a Qwen3 decoder or a BERT encoder, matrix by matrix."""
    queries, keys = m.heads * m.head_dim, m.kv_heads * m.head_dim
    if m.kind == "decoder":
        attention = m.hidden * (2 * queries + 2 * keys) + 2 * m.head_dim
        layer = attention + 3 * m.hidden * m.intermediate + 2 * m.hidden
        return m.vocabulary * m.hidden * (1 if m.tied else 2) + m.layers * layer + m.hidden
    positions = {119_547: 512 + 2, 30_522: 512 + 2, 250_002: 8194 + 1}[m.vocabulary]
    attention = 4 * (m.hidden**2 + m.hidden)
    layer = attention + 2 * m.hidden * m.intermediate + m.intermediate + m.hidden + 4 * m.hidden
    return (m.vocabulary + positions + 2) * m.hidden + m.layers * layer + m.hidden**2 + m.hidden


@pytest.mark.parametrize("name", hub_models())
def test_the_table_of_models_agrees_with_their_shapes(name: str) -> None:
    assert hub_models()[name].parameters == transformer_parameters(hub_models()[name])


def test_lora_on_all_linear_modules_of_qwen3_14b() -> None:
    # 16 x 40 x (q 10240 + k, v 2 x 6144 + o 10240 + gate, up, down 3 x 22528)
    assert QWEN.lora_parameters(16, "all-linear") == 64_225_280
    assert QWEN.lora_parameters(16, ("q_proj", "v_proj")) == 16 * 40 * (10_240 + 6_144)
    with pytest.raises(UserError, match=r"query.*q_proj"):
        QWEN.lora_parameters(16, ("query",))


def test_the_size_of_a_local_folder_is_read_from_its_files(llama_folder) -> None:
    from transformers import AutoModelForCausalLM

    size = model_size("teacher.model", str(llama_folder))
    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    assert size.kind == "decoder"
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert (size.layers, size.hidden) == (model.config.num_hidden_layers, model.config.hidden_size)
    assert size.kv_heads == model.config.num_key_value_heads


def test_a_model_of_unknown_size_is_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"teacher\.model.*'some/model'.*Qwen/Qwen3-14B.*hub_sizes\.toml"):
        model_size("teacher.model", "some/model")


def test_the_kv_cache_of_a_token_is_shared_out_by_heads() -> None:
    assert kv_bytes_per_token(QWEN) == 163_840  # 2 x 40 layers x 8 heads x 128 x 2 bytes
    assert kv_bytes_per_token(QWEN, tensor_parallel=2) == 81_920
    assert kv_bytes_per_token(QWEN, tensor_parallel=16) == 20_480  # never less than one head


def test_an_engine_keeps_what_weights_leave_for_its_cache() -> None:
    held = generation_memory(QWEN, find_gpu("H100-80G"), 2, 2, 0.9)
    assert held.weights == 14_768_307_200
    assert held.kv_cache == pytest.approx(72e9 - 14_768_307_200 - RESERVE)
    assert generation_memory(QWEN, find_gpu("L4-24G"), 2, 1, 0.9).kv_cache < 0


def training(trained: int, tokens: int = 1, learnt: int = 0, **settings: Any) -> Training:
    return Training(TrainSettings(**settings), trained, tokens, learnt)


@pytest.mark.parametrize(("stage", "gb"), [(1, 31.4), (2, 16.6), (3, 1.9)])
def test_zero_takes_what_figure_1_of_its_paper_says(stage: int, gb: float) -> None:
    """And the copy of a worker's share of the gradients in fp32, which the paper leaves out: 7.5e9 x 4 / 64 bytes."""
    plan = training(ZERO_PAPER.parameters, micro_batch=1, workers={"count": 64}, zero_stage=stage)
    held = training_memory(ZERO_PAPER, plan)
    assert (held.weights + held.gradients + held.optimizer) / GB == pytest.approx(gb + 0.47, abs=0.05)


def test_in_bf16_there_is_no_stage_0_and_few_gradients_are_cast_at_a_time_in_stage_3() -> None:
    held = [
        training_memory(ZERO_PAPER, training(ZERO_PAPER.parameters, micro_batch=1, workers={"count": 2}, zero_stage=n))
        for n in (0, 1, 3)
    ]
    assert held[0] == held[1]
    assert held[2].gradients == 7.5e9 + 4e9


def test_fp32_has_no_second_copy_and_offload_leaves_the_gpu() -> None:
    held = training_memory(ZERO_PAPER, training(1000, micro_batch=1, precision="fp32"))
    assert (held.weights, held.gradients, held.optimizer) == (30e9, 4000, 8000)
    offload = {"optimizer": "cpu", "parameters": "cpu"}
    away = training(1000, micro_batch=1, precision="fp32", zero_stage=3, workers={"count": 2}, offload=offload)
    held = training_memory(ZERO_PAPER, away)
    assert held.optimizer == 0
    assert held.weights == 2 * ZERO_PAPER.layer * 4  # the layer in use and the one that is fetched


def test_recomputation_keeps_each_layers_input_and_one_layer_whole() -> None:
    plan, recomputed = (training(1, 100, 10, micro_batch=3, gradient_checkpointing=on) for on in (False, True))
    logits = 3 * 10 * 151_936 * 10
    assert training_activations(QWEN, plan) == 300 * 5120 * 34 * 40 + logits
    assert training_activations(QWEN, recomputed) == 300 * 5120 * (2 * 40 + 34) + logits


def test_a_forward_pass_holds_weights_one_layer_and_its_logits() -> None:
    held = inference_memory(QWEN, 2, batch_tokens=100, logits=10)
    assert held.weights == 29_536_614_400
    assert held.activations == 100 * 5120 * 34 + 10 * 151_936 * 10


def test_the_way_out_is_the_mildest_that_fits() -> None:
    plan = training(7_500_000_000, 1000, micro_batch=8, global_batch=512, workers={"count": 64})
    assert training_way_out(ZERO_PAPER, plan, 140e9) == ["gradient_checkpointing = true"]
    found = training_way_out(ZERO_PAPER, plan, 20e9)
    assert found == ["gradient_checkpointing = true", "micro_batch = 1", "zero_stage = 2"]
    assert "zero_stage = 3" in training_way_out(ZERO_PAPER, plan, 6e9)
    assert training_way_out(ZERO_PAPER, plan, 1e9) == []


def test_decoding_is_bound_by_memory_for_few_sequences_and_by_arithmetic_for_many() -> None:
    one = Generation(tensor_parallel=1, sequences=1, prompt_tokens=90, answer_tokens=20)
    model = ZERO_PAPER.model_copy(update={"parameters": 1_000_000_800})  # 1e9 without the embedding that is looked up
    cache = 100 * 2 * 1000 * 1 * 4 * 2
    assert step_seconds(model, CARD, one) == pytest.approx((2e9 + cache) / (1e12 * 0.6))
    many = replace(one, sequences=1000, prompt_tokens=1, answer_tokens=2)
    assert step_seconds(model, CARD, many) == pytest.approx(1000 * 2e9 / (100e12 * 0.4))
    assert step_seconds(model, CARD, replace(one, tensor_parallel=2)) == step_seconds(model, CARD, one) / 2


def test_an_answer_takes_its_prompt_and_its_share_of_the_steps() -> None:
    model = ZERO_PAPER.model_copy(update={"parameters": 1_000_000_800})
    work = Generation(tensor_parallel=1, sequences=4, prompt_tokens=1000, answer_tokens=50)
    prefill, step = 1000 * 2e9 / 40e12, step_seconds(model, CARD, work)
    assert answers_per_second(model, CARD, work) == pytest.approx(1 / (prefill + 50 * step / 4))


@pytest.mark.parametrize(("gpu", "least", "most"), [("A100-80G", 5967, 7474), ("H100-80G", 10597, 14764)])
def test_generation_is_as_fast_as_others_have_measured(gpu: str, least: float, most: float) -> None:
    """Tokens of prompts and answers per second, of engines as they are and at their best; see cards.toml."""
    card = find_gpu(gpu)
    cache = generation_memory(QWEN, card, 2, 1, 0.9).kv_cache
    sequences = int(cache / kv_bytes_per_token(QWEN, 2, 1) / 2100)
    work = Generation(tensor_parallel=1, sequences=sequences, prompt_tokens=2000, answer_tokens=100)
    assert least < 2100 * answers_per_second(QWEN, card, work) < most
    if gpu.startswith("A100"):
        assert 312e12 * card.generation_share / (2 * QWEN.multiplied) > most, "the ceiling, with answers for nothing"


def test_training_counts_six_operations_fewer_where_weights_are_frozen_and_more_to_recompute() -> None:
    model = ZERO_PAPER.model_copy(update={"parameters": 1_000_000_800})
    assert training_tokens_per_second(model, CARD, 1, False, False) == pytest.approx(40e12 / 6e9)
    assert training_tokens_per_second(model, CARD, 2, False, True) == pytest.approx(80e12 / 8e9)
    assert training_tokens_per_second(model, CARD, 1, True, True) == pytest.approx(40e12 / 6e9)
    assert forward_tokens_per_second(model, CARD, 3) == pytest.approx(120e12 / 2e9)


def test_gpus_are_named_and_others_refused() -> None:
    assert find_gpu("H100-80G").memory == 80e9
    assert all(name.endswith(f"-{card.memory_gb:g}G") for name, card in known_gpus().items())
    with pytest.raises(UsageError, match=r"'H100'.*H100-80G.*cards\.toml"):
        find_gpu("H100")
