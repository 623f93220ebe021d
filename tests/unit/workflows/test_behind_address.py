"""A run whose teacher is behind an address: checked before it starts, estimated, asked online and by batch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.base.errors import UsageError, UserError
from tests.helpers.command import broadfast, text
from tests.helpers.scripted_server import MODEL, ScriptedServer, completion, scripted_server
from workflows.behind_address import read_answers, write_requests
from workflows.config import RunConfig, load_config
from workflows.runner import run_stages, select
from workflows.stages import Stage, stages_of

pytestmark = pytest.mark.usefixtures("without_ray", "wide")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture
def far_file(config_file: Path, server: ScriptedServer) -> Path:
    """The small config with its teacher behind the address of the scripted server."""
    head, _, rest = config_file.read_text(encoding="utf-8").partition("[engine]")
    rest = "[sft]" + rest.partition("[sft]")[2]
    engine = f'kind = "openai"\nbase_url = "{server.url}"\nmodel = "{MODEL}"\n'
    engine += "price_per_million = { input = 10.0, output = 100.0 }\n"
    head = re.sub("teacher = .*", 'teacher = { tuning = "none" }', head)
    config_file.write_text(f"{head}[engine]\n{engine}\n{rest}", encoding="utf-8")
    return config_file


@pytest.fixture
def far(far_file: Path) -> RunConfig:
    return load_config(far_file)


def chosen(config: RunConfig, name: str) -> tuple[Stage, ...]:
    return select(name, name, stages_of(config))


def test_the_address_is_checked_before_the_run(far: RunConfig, server: ScriptedServer, tmp_path: Path) -> None:
    server.models = ["another"]
    with pytest.raises(UserError, match=r"engine\.model: .* does not serve 'scripted-1', but another"):
        run_stages(far, tmp_path / "run", chosen(far, "pairs") + chosen(far, "judgements"))
    assert not (tmp_path / "run" / "1-pairs").exists()
    run_stages(far, tmp_path / "run", chosen(far, "pairs"))


def test_no_model_of_ones_own_is_needed_or_trained(far: RunConfig, far_file: Path) -> None:
    assert [stage.name for stage in stages_of(far)][:2] == ["1-pairs", "7-judgements"]
    need = chosen(far, "judgements")[0].need(far)
    assert (need.cpus, need.gpus, need.model) == (1, 0, MODEL)
    with pytest.raises(
        UsageError, match=r"teacher\.tuning 'sft' trains a model of your own.*set teacher\.tuning = 'none'"
    ):
        load_config(far_file, ["teacher.tuning=sft"])


def test_an_engine_of_ones_own_needs_a_model(config_file: Path) -> None:
    with pytest.raises(UsageError, match=r"teacher\.model: name a chat model, or ask one behind an address"):
        load_config(config_file, ['teacher.model=""'])


def test_a_confidence_is_refused_where_it_has_no_effect(far: RunConfig, far_file: Path, config_file: Path) -> None:
    assert load_config(far_file, ["judge.confidence=true"]).judge.asks_confidence and not far.judge.asks_confidence
    with pytest.raises(UsageError, match=r"judge\.confidence has no effect: engine\.kind 'vllm' gives log-prob"):
        load_config(far_file, ["judge.confidence=true", 'engine={kind="vllm"}', "teacher.model=m/m"])
    nobody = ["judge.confidence=true", "judge.engine=none", "source.judgements=x.jsonl"]
    with pytest.raises(UsageError, match=r"judge\.confidence has no effect: judge\.engine 'none' asks nobody"):
        load_config(far_file, nobody)


def test_dry_run_estimates_tokens_and_money(far: RunConfig, far_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    call = ("run", far_file, "--out", run, "--dry-run")
    said = text(broadfast(*call))
    assert "7-judgements: tokens and money are estimated once there are pairs" in said
    run_stages(far, run, chosen(far, "pairs"))
    said = text(broadfast(*call))
    assert "7-judgements: " in said and " requests, about " in said and " at most, if the host" in said


def test_a_plan_tells_tokens_and_money(far_file: Path) -> None:
    given = ("--gpu", "H100-80G", "--pairs", 1000, "--set", "student.train.workers.gpus_per_worker=1")
    said = text(broadfast("plan", far_file, *given))
    assert re.search(r"7-judgements: 3,000 requests, about [\d,]+ tokens of prompts and at most .* of answers: ", said)


def test_a_batch_takes_the_place_of_asking(far: RunConfig, server: ScriptedServer, tmp_path: Path) -> None:
    run_stages(far, tmp_path, chosen(far, "pairs"))
    said, files = write_requests(tmp_path, None)
    (path,) = files
    assert path == tmp_path / "batches" / "7-judgements.jsonl" and said.startswith("7-judgements: ")
    requests = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [
        {"custom_id": one["custom_id"], "response": {"status_code": 200, "body": completion()}} for one in requests
    ]
    got = tmp_path / "got.jsonl"
    got.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert read_answers(tmp_path, got)[1].taken == files[path] == len(requests)
    run_stages(far, tmp_path, chosen(far, "judgements"))
    assert not server.asked
    manifest: dict[str, Any] = json.loads((tmp_path / "7-judgements" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["figures"]["usage"]["output_tokens"] == 20 * len(requests)


def test_batches_say_what_is_wrong(far: RunConfig, tmp_path: Path) -> None:
    said = broadfast("batch", "write", tmp_path / "none")
    assert said.exit_code == 2 and "is not a run folder" in text(said)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text(far.model_dump_json(), encoding="utf-8")
    said = broadfast("batch", "write", tmp_path / "begun")
    assert said.exit_code == 2 and "1-pairs is not finished: run broadfast with --to pairs first" in text(said)
    run_stages(far, tmp_path / "run", chosen(far, "pairs"))
    said = broadfast("batch", "read", tmp_path / "run", tmp_path / "none.jsonl")
    assert said.exit_code == 1 and "cannot be read" in text(said)
    saved = tmp_path / "run" / "config.json"
    config = json.loads(saved.read_text(encoding="utf-8"))
    near = {"engine": {"kind": "scripted"}, "teacher": {"model": "m/m", "tuning": "none"}}
    saved.write_text(json.dumps(config | near), encoding="utf-8")
    said = broadfast("batch", "write", tmp_path / "run")
    assert said.exit_code == 1 and "batches are for engine.kind 'openai'" in text(said)
