"""Stage 2 through `vllm serve` of a small model on this machine: every form, log-probabilities, tokens and limits."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from cluster.base.errors import UserError
from cluster.base.free_port import free_port
from cluster.base.processor import cores
from cluster.base.stage_folder import MANIFEST, StageFolder, read_json
from cluster.base.tables import read_table, write_table
from mpcot.asking.engines.config import OpenAiEngine
from mpcot.asking.engines.openai_engine import check_address
from mpcot.asking.engines.vllm_engine import engine_environment
from mpcot.config import PerspectiveSettings, RationaleSettings, RationaleStage, TeacherSettings, VllmEngine
from mpcot.rationales import run_rationales
from mpcot.records import PAIR
from mpcot.sources.config import LabelSettings
from tests.conftest import SERVER_KEY
from tests.e2e.small import ROOT, no_models
from tests.helpers.generation_run import STAGE, check_exactly_once, write_pairs

pytestmark = [
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.skipif(no_models(), reason="no models: make setup"),
]
PATIENCE_S = 600.0
PAIRS = 3
(KEY,) = SERVER_KEY
ARGUMENTS = (
    "--host=127.0.0.1", "--served-model-name=small", "--max-model-len=1024", "--enforce-eager", "--dtype=float32",
    "--distributed-executor-backend=uni", "--block-size=32", "--enable-prompt-tokens-details",
    f"--api-key={SERVER_KEY[KEY]}",
)  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with the small model, which wants a key."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    # What `vllm serve` starts; the command itself asks for the metadata of `vllm`, which the CPU build does not have.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model=models/smollm2-135m-instruct"]
    environment = os.environ | engine_environment(VllmEngine(enforce_eager=True), False, cores(), shared_node=True)
    with log.open("w") as said:
        server = subprocess.Popen(
            [*command, *ARGUMENTS, f"--port={port}"], cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT
        )
    try:
        _await(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(timeout=60)


def _await(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    ended = time.monotonic() + PATIENCE_S
    while True:
        assert server.poll() is None, log.read_text(encoding="utf-8")[-3000:]
        assert time.monotonic() < ended, log.read_text(encoding="utf-8")[-3000:]
        try:
            if httpx.get(url).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)


def engine(address: str, **changed: Any) -> OpenAiEngine:
    return OpenAiEngine(**{"base_url": address, "model": "small", "api_key_env": KEY} | changed)


def run(asked: OpenAiEngine, run_dir: Path, **ask: Any) -> dict[str, Any]:
    """Run the stage and return its manifest."""
    config = RationaleStage(
        seed=1,
        labels=LabelSettings(),
        perspectives=PerspectiveSettings(),
        teacher=TeacherSettings(),
        engine=asked,
        rationales=RationaleSettings(**{"max_chars": 120, "max_tokens": 96} | ask),
    )
    run_rationales(config, StageFolder(run_dir, STAGE, {}, {"1-pairs": "made"}))
    return read_json(run_dir / STAGE / MANIFEST)


def test_the_check_before_a_run(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_address(engine(address))
    with pytest.raises(UserError, match=r"does not serve 'large', but small"):
        check_address(engine(address, model="large"))
    monkeypatch.setenv(KEY, "wrong")
    with pytest.raises(UserError, match=r"does not take the key in \$SMALL_KEY"):
        check_address(engine(address))


@pytest.mark.parametrize("form", ["grammar", "json_schema"])
def test_a_form_that_the_server_enforces(address: str, tmp_path: Path, form: str) -> None:
    write_pairs(tmp_path, PAIRS)
    share = 0.0 if form == "grammar" else 1.0  # a schema cannot keep a small model from writing on and on
    manifest = run(engine(address, form=form), tmp_path, max_failed_share=share)
    check_exactly_once(tmp_path)
    assert manifest["counts"]["requested"] == 3 * PAIRS
    answers = read_table(tmp_path / STAGE / "answers").to_pylist()
    good = [row for row in answers if row["reason"] is None]
    assert good, [row["reason"] for row in answers]
    for row in good:
        assert row["verdict"] in "ESCI" and row["rationale"] and row["prompt_tokens"] > 50
        if row["logprobs"] is not None:
            assert max(row["logprobs"]) <= 0 and len(row["logprobs"]) == 4
    assert any(row["logprobs"] for row in good)
    assert manifest["figures"]["usage"]["output_tokens"] == sum(row["output_tokens"] for row in answers)


def test_text_is_read_as_far_as_it_can_be(address: str, tmp_path: Path) -> None:
    write_pairs(tmp_path, 1)
    manifest = run(engine(address, form="text"), tmp_path, max_failed_share=1.0)
    assert manifest["counts"]["requested"] == 3
    reasons = manifest["figures"]["reasons"]
    assert not any("engine" in reason for reason in reasons)


def test_a_prompt_that_the_server_calls_too_long_is_cut_if_it_may_be(address: str, tmp_path: Path) -> None:
    write_pairs(tmp_path, 1)
    pairs = tmp_path / "1-pairs" / "pairs.parquet"
    rows = [row | {"description": "a drill with a red case " * 400} for row in read_table(pairs).to_pylist()]
    write_table(pairs, pa.Table.from_pylist(rows, PAIR))
    ask: dict[str, Any] = {"description_chars": 9600, "max_failed_share": 1.0}
    assert run(engine(address), tmp_path, **ask)["figures"]["reasons"]["prompt too long"] == 3
    assert "prompt too long" not in run(engine(address), tmp_path, when_too_long="cut", **ask)["figures"]["reasons"]
