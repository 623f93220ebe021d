"""`broadfast plan`: the paper's sizes on named GPUs, and refusals that name a way out that works."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.gpus.memory import find_gpu
from tests.helpers.command import broadfast, text
from workflows.config import RunConfig, load_config
from workflows.gpu_plan.plan import Fleet, StagePlan, plan_stages, trained_parameters
from workflows.gpu_plan.work import (
    answer_tokens,
    pairs_asked,
    preference_work,
    prompt_tokens,
    sft_work,
    split_sizes,
    student_work,
    target_work,
)
from workflows.stages import STAGES

ROOT = Path(__file__).parents[3]
GPU_TOML = ROOT / "workflows/configs/gpu.toml"


def config(*changes: str) -> RunConfig:
    return load_config(GPU_TOML, changes)


def planned(settings: RunConfig, gpu: str = "H100-80G", nodes: int = 4, per_node: int = 8) -> dict[str, StagePlan]:
    fleet = Fleet(find_gpu(gpu), nodes, per_node, 1000)
    return {plan.stage: plan for plan in plan_stages(settings, fleet, STAGES)}


def test_the_papers_sizes_fit_on_four_nodes_of_h100() -> None:
    plans = planned(config())
    assert not any(plan.problem for plan in plans.values())
    assert list(plans) == [stage.name for stage in STAGES if stage.need(config()).gpus]
    assert (plans["2-rationales"].copies, plans["2-rationales"].each) == (16, 2)
    assert "674,215 tokens" in plans["2-rationales"].note
    assert plans["3-sft"].memory.optimizer == 64_225_280 * 12 / 8
    assert all(plan.hours and plan.tokens_per_s for plan in plans.values())


def test_work_follows_from_splits_perspectives_and_samples() -> None:
    settings = config("split.unlabelled=0.25", "rationales.pairs_per_split=500")
    assert split_sizes(settings, 1000) == {"train": 600, "dev": 100, "test": 100, "unlabelled": 200}
    assert pairs_asked(settings, settings.rationales, 1000) == 500
    assert pairs_asked(settings, settings.judge, 1000) == 1000
    assert planned(settings)["7-judgements"].work == "3,000 answers"
    assert planned(settings)["2-rationales"].work == "1,500 answers"
    assert planned(config("rationales.hinted_retry=true"))["2-rationales"].work == "4,800 answers"  # 800 pairs twice
    assert target_work(settings, 1000).rows == 3000
    more = config("split.unlabelled=0.25", "targets.transform='residual'", "targets.controls=['permuted']")
    assert target_work(more, 1000).rows == 8000  # three rationales twice, a query and a title
    assert student_work(settings, 1000).rows == 600 + 200 + 600  # the last of a student that learns labels only
    few = config("samples.pairs_per_split=50", "preferences.per_pair=4")
    assert preference_work(few, 1000).rows == 2 * 50 * 4  # the reference scores those of train and dev
    assert preference_work(few, 1000, trained=True).rows == 50 * 4


def test_candidates_are_work_within_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "candidates.parquet"
    rows = [{"query": "lamp", "product_id": str(n), "title": "lamp"} for n in range(30)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    more = (f"source.candidates={path}", "student.use_unlabelled=true", "student.baseline=false")
    settings, limited = config(*more), config(*more, "judge.budget_pairs=20")
    assert split_sizes(settings, 1000)["unlabelled"] == 30
    assert pairs_asked(settings, settings.judge, 1000) == pairs_asked(config(), config().judge, 1000) + 30
    assert pairs_asked(limited, limited.judge, 1000) == pairs_asked(config(), config().judge, 1000) + 20
    assert [student_work(one, 1000).rows for one in (settings, limited)] == [830, 820]


def test_a_context_without_room_for_a_prompt_is_refused() -> None:
    short = planned(config("engine.max_model_len=900"))["2-rationales"]
    assert short.hours is None and "engine.max_model_len 900 leaves 388 tokens for a prompt of about" in short.problem


def test_lengths_are_the_longest_that_the_settings_allow() -> None:
    settings = config()
    assert answer_tokens(settings.judge) == 1600 // 4 + 8
    assert prompt_tokens(settings.judge) == 400 + 100 + 100 + 1000 // 4
    assert prompt_tokens(settings.rationales) == 850 + 2 * (100 + 408)
    assert sft_work(settings, 1000).tokens == 750 + 3 * (100 + 408)
    short = settings.judge.model_copy(update={"guide": "short", "description_chars": 0})
    assert prompt_tokens(short) == 100 + 100 + 100
    assert sft_work(config("sft.answers_per_sequence=1"), 1000).rows == 3 * sft_work(settings, 1000).rows


def test_hours_grow_with_pairs_and_shrink_with_nodes() -> None:
    fleet = Fleet(find_gpu("H100-80G"), 1, 8, 1000)
    (one,) = plan_stages(config(), fleet, STAGES[1:2])
    (more,) = plan_stages(config(), Fleet(fleet.gpu, 4, 8, 10_000), STAGES[1:2])
    assert one.hours and more.hours
    assert more.hours == pytest.approx(one.hours * 10 / 4)


def test_frozen_layers_train_neither_themselves_nor_the_embeddings() -> None:
    from cluster.models.size import hub_models

    model = hub_models()["Qwen/Qwen3-14B"]
    tuning = config('sft.tuning={kind="full", frozen_layers=10}').sft.tuning
    assert trained_parameters(model, tuning) == model.parameters - 10 * model.layer - 151_936 * 5120


def test_what_does_not_fit_names_a_setting_that_makes_it_fit() -> None:
    alone = ("engine.tensor_parallel=1", "engine.replicas.gpus=1")
    refused = planned(config(*alone), "L4-24G")["2-rationales"].problem
    assert "29.5 GB" in refused and "max_model_len 4096" in refused
    enough = re.findall(r"to (\d+)$", refused)[0]
    mended = config(f"engine.tensor_parallel={enough}", f"engine.replicas.gpus={enough}")
    assert not planned(mended, "L4-24G")["2-rationales"].problem
    assert "H100-80G" in planned(config(*alone), "L4-24G", per_node=1)["2-rationales"].problem


def test_a_training_that_does_not_fit_names_settings_that_mend_it() -> None:
    full = 'sft.tuning={kind="full"}'
    refused = planned(config(full, "sft.train.zero_stage=0"))["3-sft"].problem
    changes = [change.replace(" ", "") for change in re.findall(r"sft\.train\.[\w.]+ = [\w']+", refused)]
    assert changes
    assert not planned(config(full, "sft.train.zero_stage=0", *changes))["3-sft"].problem
    hopeless = planned(config(full, "sft.train.workers.count=1"), "L4-24G")["3-sft"].problem
    assert "tune with LoRA" in hopeless


def test_a_batch_of_the_reference_job_that_does_not_fit_names_one_that_does() -> None:
    refused = planned(config(), "A100-40G")["5-preferences"].problem
    enough = re.findall(r"batch_size to (\d+)", refused)[0]
    assert not planned(config(f"preferences.batch_size={enough}"), "A100-40G")["5-preferences"].problem
    too_many = planned(config(f"preferences.batch_size={int(enough) + 1}"), "A100-40G")["5-preferences"]
    assert too_many.problem and too_many.hours is None


@pytest.mark.parametrize(
    ("changes", "nodes", "stage", "words"),
    [
        (["engine.tensor_parallel=3"], 4, "2-rationales", "does not divide the model's 40"),
        (["engine.tensor_parallel=16"], 4, "2-rationales", "a node has 8"),
        (["engine.replicas.min=5", "engine.replicas.max=5"], 1, "4-samples", "at least 10 GPUs and there are 8"),
        (["sft.train.workers.count=16"], 1, "3-sft", "at least 16 GPUs and there are 8"),
        (
            ["engine.tensor_parallel=5", "engine.replicas.gpus=5", "engine.replicas.min=3", "engine.replicas.max=3"],
            2,
            "2-rationales",
            "at least 15 GPUs and of 5 each the nodes hold 10",
        ),
        (
            ["sft.train.workers.count=1", "sft.train.workers.gpus_per_worker=16"],
            2,
            "3-sft",
            "of 16 each the nodes hold 0",
        ),
    ],
)
def test_what_the_nodes_cannot_place_is_refused(changes: list[str], nodes: int, stage: str, words: str) -> None:
    assert words in planned(config(*changes), nodes=nodes)[stage].problem


def test_fp32_is_given_no_hours() -> None:
    plans = planned(config("student.train.precision=fp32", "targets.precision=fp32"))
    assert plans["9-student"].hours is None and plans["8-targets"].hours is None
    assert plans["9-student"].memory.weights == 4 * 177_853_440


def test_the_command_prints_the_plan_with_its_formulas(wide: None) -> None:
    result = broadfast("plan", GPU_TOML, "--gpu", "H100-80G", "--nodes", 4, "--pairs", 5000)
    assert result.exit_code == 0, text(result)
    said = text(result)
    assert "4 nodes of 8 H100-80G, 5,000 pairs" in said
    assert "2 x parameters / (GPUs x TFLOP/s x 0.4)" in said and "12,000 answers" in said
    assert "training: tokens/s =" in said and "memory: weights =" in said


def test_the_command_exits_with_1_where_something_cannot_fit(wide: None) -> None:
    result = broadfast("plan", GPU_TOML, "--gpu", "A100-40G", "--nodes", 4)
    assert result.exit_code == 1
    assert "this cannot fit: 5-preferences" in text(result)
    assert broadfast("plan", GPU_TOML, "--gpu", "none", "--nodes", 4).exit_code == 2


def test_a_config_without_gpus_is_told_so(config_file: Path) -> None:
    result = broadfast("plan", config_file, "--gpu", "H100-80G")
    assert result.exit_code == 1
    assert "no stage of this config takes a GPU" in text(result)
