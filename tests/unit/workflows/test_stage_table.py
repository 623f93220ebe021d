"""The table of stages: in order, complete, each one importable and fed only by earlier ones."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from cluster.base.errors import UsageError, UserError
from cluster.base.stage_folder import result_settings
from cluster.config import Workers
from mpcot.config import Replicas, VllmEngine
from tests.unit.workflows.test_run_config import LEAST
from workflows.config import RunConfig
from workflows.resources import check_resources
from workflows.runner import select, stage_folder
from workflows.stages import STAGES, Need, Stage, find_stage

CONFIG = RunConfig(**LEAST)
BY_NAME = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)


def test_the_stages_are_numbered_in_order() -> None:
    assert [stage.name.partition("-")[0] for stage in STAGES] == [str(n) for n in range(1, 12)]


@BY_NAME
def test_a_stage_reads_only_earlier_ones(stage: Stage) -> None:
    earlier = [other.name for other in STAGES[: STAGES.index(stage)]]
    assert set(stage.reads) <= set(earlier) and len(set(stage.reads)) == len(stage.reads)


def test_every_stage_but_the_last_is_read_by_another() -> None:
    read = {name for stage in STAGES for name in stage.reads}
    assert read == {stage.name for stage in STAGES[:-1]}


@BY_NAME
def test_its_function_takes_the_settings_that_the_table_names(stage: Stage) -> None:
    function = stage.run()
    parameters = list(inspect.signature(function, eval_str=False).parameters.values())
    assert [p.name for p in parameters] == ["config", "folder"]
    assert parameters[0].annotation == stage.config.__name__
    assert parameters[1].annotation == "StageFolder"


@BY_NAME
def test_its_settings_are_sections_of_the_run(stage: Stage) -> None:
    assert set(stage.config.model_fields) <= set(RunConfig.model_fields)
    settings = stage.settings(CONFIG)
    for name in stage.config.model_fields:
        assert getattr(settings, name) == getattr(CONFIG, name)


@pytest.mark.parametrize(
    ("section", "change", "stages"),
    [
        ("samples", {"pairs_per_split": 7}, ["4-samples"]),
        ("samples", {"few_shot": 3}, ["3-sft", "4-samples", "5-preferences"]),
        ("rationales", {"temperature": 0.1}, ["2-rationales"]),
        ("dpo", {"beta": 0.7, "dev_rows": 3}, ["6-dpo"]),
        ("dpo", {"max_tokens": 77}, ["5-preferences", "6-dpo"]),
        ("student", {"max_tokens": 9}, ["9-student"]),
    ],
)
def test_a_changed_setting_makes_only_what_reads_it_anew(section: str, change: dict[str, object], stages: list[str]):
    changed = CONFIG.model_copy(update={section: getattr(CONFIG, section).model_copy(update=change)})
    differ = [s.name for s in STAGES if result_settings(s.settings(CONFIG)) != result_settings(s.settings(changed))]
    assert differ == stages


def test_a_changed_file_of_pairs_or_seeds_makes_the_first_stage_anew(tmp_path: Path) -> None:
    pairs, seeds = tmp_path / "pairs.csv", tmp_path / "seeds.jsonl"
    for file in (pairs, seeds):
        file.write_text("a", encoding="utf-8")
    source = {"kind": "table", "path": str(pairs), "seeds": str(seeds)}
    config = RunConfig(**LEAST | {"source": source})

    def fingerprint() -> str:
        return stage_folder(config, tmp_path, STAGES[0]).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    seeds.write_text("ab", encoding="utf-8")
    other = fingerprint()
    pairs.write_text("abc", encoding="utf-8")
    assert len({before, other, fingerprint()}) == 3


@BY_NAME
def test_it_is_found_by_both_its_names(stage: Stage) -> None:
    assert find_stage(stage.name) is find_stage(stage.short) is stage


def test_an_unknown_stage_names_those_there_are() -> None:
    with pytest.raises(UsageError, match="no stage 'train'; stages are pairs, rationales, sft"):
        find_stage("train")


def test_a_part_of_the_stages() -> None:
    assert select(None, None) == STAGES
    assert [s.short for s in select("sft", "5-preferences")] == ["sft", "samples", "preferences"]
    with pytest.raises(UsageError, match="--from dpo comes after --to sft"):
        select("dpo", "sft")


def test_needs_are_workers_and_replicas() -> None:
    engine = VllmEngine(tensor_parallel=2, replicas=Replicas(min=3, max=5, cpus=2, gpus=1))
    sft = CONFIG.sft.model_copy(
        update={
            "train": CONFIG.sft.train.model_copy(
                update={"workers": Workers(count=4, cpus_per_worker=3, gpus_per_worker=1)}
            )
        }
    )
    config = CONFIG.model_copy(update={"engine": engine, "sft": sft})
    assert find_stage("rationales").need(config) == Need(6, 6, "m", 3)
    assert find_stage("judgements").need(config) == Need(6, 6, "6-dpo", 3)
    assert find_stage("sft").need(config) == Need(12, 4, "m", 4)


def test_more_than_the_cluster_has_is_refused_before_anything_runs() -> None:
    workers = CONFIG.dpo.train.model_copy(update={"workers": Workers(count=3)})
    config = CONFIG.model_copy(update={"dpo": CONFIG.dpo.model_copy(update={"train": workers})})
    check_resources(config, STAGES, [{"CPU": 3.0}])
    with pytest.raises(UserError, match="6-dpo asks for 3 CPUs and the cluster has 2"):
        check_resources(config, STAGES, [{"CPU": 2.0}])
    gpus = CONFIG.model_copy(update={"engine": VllmEngine(replicas=Replicas(gpus=1))})
    with pytest.raises(UserError, match="2-rationales asks for 1 GPUs and the cluster has 0"):
        check_resources(gpus, STAGES, [{"CPU": 8.0}])


def refusal(nodes: list[dict[str, float]], **engine: Any) -> str:
    """Return why the rationales find no room on these nodes."""
    config = CONFIG.model_copy(update={"engine": VllmEngine(**engine)})
    with pytest.raises(UserError) as refused:
        check_resources(config, [find_stage("rationales")], nodes)
    return str(refused.value)


def test_an_engine_that_fits_on_no_node_is_refused_with_the_way_out() -> None:
    nodes = [{"CPU": 16.0, "GPU": 4.0}] * 2
    said = refusal(nodes, tensor_parallel=8, replicas=Replicas(gpus=1))
    assert said.startswith("2-rationales: a single engine takes 8 GPUs and 1 CPUs, and no node has as many")
    assert "engine.tensor_parallel" in said and "data parallel" in said and "--pipeline-parallel-size" in said
    assert refusal(nodes, replicas=Replicas(gpus=1, cpus=20)).endswith("Lower what each engine takes.")


def test_engines_that_fit_but_not_all_at_a_time_are_refused() -> None:
    """Two nodes of 4 GPUs have 8, but room for 2 engines of 3 only; the head has no GPU."""
    nodes = [{"CPU": 16.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}]
    engine = {"tensor_parallel": 3, "replicas": Replicas(gpus=3, min=2, max=3)}
    config = CONFIG.model_copy(update={"engine": VllmEngine(**engine)})
    check_resources(config, [find_stage("rationales")], nodes)
    said = refusal([*nodes, {"GPU": 1.0}], **engine | {"replicas": Replicas(gpus=3, min=3, max=3)})
    assert "asks for 3 engines of 3 GPUs and 1 CPUs each, and the nodes have room for 2" in said
