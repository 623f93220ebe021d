"""Stage 2 on Ray Data with a model behind an address: limits and faults on the way, a budget, another key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.base.errors import UserError
from cluster.base.stage_folder import MANIFEST, StageFolder, read_json
from cluster.base.tables import read_table
from mpcot.asking.engines.config import OpenAiEngine, Replicas
from mpcot.config import PerspectiveSettings, RationaleSettings, RationaleStage, TeacherSettings
from mpcot.rationales import run_rationales
from mpcot.sources.config import LabelSettings
from tests.helpers.generation_run import STAGE, check_exactly_once, parts, write_pairs
from tests.helpers.scripted_server import MODEL, Said, ScriptedServer, completion, refusal, scripted_server

pytestmark = pytest.mark.usefixtures("local_ray")
PAIRS = 40
REQUESTS = 3 * PAIRS
PRICE = {"input": 10.0, "cached_input": 1.0, "output": 100.0}
COST = 0.00264  # of an answer: 60 fresh tokens, 40 from the cache, 20 of the answer
MOST_COST = 0.06  # of an answer, before it comes


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write_pairs(tmp_path, PAIRS)
    return tmp_path


def run(server: ScriptedServer, run_dir: Path, **engine: Any) -> dict[str, Any]:
    """Run the stage and return its manifest."""
    settings = {"base_url": server.url, "model": MODEL, "replicas": Replicas(max=2, pairs_per_task=8, flush_rows=4)}
    config = RationaleStage(
        seed=1,
        labels=LabelSettings(),
        perspectives=PerspectiveSettings(),
        teacher=TeacherSettings(),
        engine=OpenAiEngine(**settings | engine),
        rationales=RationaleSettings(max_tokens=128),
    )
    run_rationales(config, StageFolder(run_dir, STAGE, {}, {"1-pairs": "made"}))
    return read_json(run_dir / STAGE / MANIFEST)


def test_limits_and_faults_cost_no_answer(server: ScriptedServer, run_dir: Path) -> None:
    trouble = [refusal(429, "slow down", Retry_After="0.2"), refusal(500, "oh"), Said(body=completion(), cut=True)]
    server.script = trouble * 4
    manifest = run(server, run_dir, price_per_million=PRICE)
    check_exactly_once(run_dir)
    assert manifest["counts"]["requested"] == REQUESTS and manifest["counts"]["failed"] == 0
    used = manifest["figures"]["usage"]
    assert used["prompt_tokens"] == 100 * REQUESTS and used["cost"] == pytest.approx(COST * REQUESTS)
    answers = read_table(run_dir / STAGE / "answers")
    assert set(answers["tries"].to_pylist()) == {1} and set(answers["cached_tokens"].to_pylist()) == {40}


def test_a_budget_stops_the_run_and_a_higher_one_goes_on(server: ScriptedServer, run_dir: Path) -> None:
    budget = 50 * COST
    with pytest.raises(UserError, match=r"the budget is used up: .*Raise engine\.max_spend to go on\..*kept"):
        run(server, run_dir, price_per_million=PRICE, max_spend=budget)
    paid = read_table(run_dir / STAGE / "answers").num_rows
    assert paid == len(server.asked), "what was paid for is written"
    assert budget - MOST_COST < paid * COST <= budget
    with pytest.raises(UserError, match="the budget is used up"):
        run(server, run_dir, price_per_million=PRICE, max_spend=budget)
    assert len(server.asked) == paid
    manifest = run(server, run_dir, price_per_million=PRICE, max_spend=REQUESTS * COST + MOST_COST)
    check_exactly_once(run_dir)
    assert len(server.asked) == REQUESTS and manifest["figures"]["asked"] == REQUESTS - paid
    assert manifest["figures"]["usage"]["cost"] == pytest.approx(REQUESTS * COST)


def test_a_spent_quota_keeps_what_was_answered_and_another_address_asks_for_the_rest(
    server: ScriptedServer, run_dir: Path
) -> None:
    server.script = [Said(body=completion())] * 30 + [
        refusal(429, "You exceeded your quota", "insufficient_quota")
    ] * 99
    with pytest.raises(UserError, match=r"quota is spent \(.*\)\. Top it up\. Finished answers are kept; run again\."):
        run(server, run_dir)
    assert sum(read_table(part).num_rows for part in parts(run_dir)) == 30
    with scripted_server() as other:
        run(other, run_dir)
        assert len(other.asked) == REQUESTS - 30
    check_exactly_once(run_dir)
