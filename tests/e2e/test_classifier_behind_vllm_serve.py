"""A student as a plain classifier in `vllm serve` on this machine: its scores are the student's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cluster.base.free_port import free_port
from cluster.base.processor import cores
from distill.formats.classifier import Teaching
from distill.formats.classifier_folder import write_classifier
from distill.formats.onnx_graph import answers
from distill.student.model import Student, load_tokenizer
from mpcot.asking.engines.vllm_engine import engine_environment
from mpcot.config import VllmEngine
from tests.e2e.small import ROOT
from tests.helpers.format_run import format_run

PATIENCE_S = 900.0
TITLES = ["blue lamp", "red phone case", "shoe", "drill"]
ARGUMENTS = (
    "--host=127.0.0.1", "--served-model-name=student", "--runner=pooling", "--enforce-eager", "--dtype=float32",
    "--max-model-len=48", "--distributed-executor-backend=uni",
)  # fmt: skip


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return format_run(tmp_path_factory.mktemp("run"), scheme="binary", width=64)  # vLLM wants heads of 32 on a CPU


@pytest.fixture(scope="module")
def address(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with the student's score as one logit."""
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    write_classifier(export, folder, "score", None, Teaching())
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={folder}", f"--port={port}"]
    environment = os.environ | engine_environment(VllmEngine(enforce_eager=True), False, cores(), shared_node=True)
    log = folder.parent / "log"
    with log.open("w") as said:
        server = subprocess.Popen(
            [*command, *ARGUMENTS], cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT
        )
    try:
        ended = time.monotonic() + PATIENCE_S
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None and time.monotonic() < ended, log.read_text(encoding="utf-8")[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def test_scores_and_rankings_are_the_students(address: str, export: Path) -> None:
    pairs = [{"query": "red phone case", "title": title} for title in TITLES]
    wanted = answers(Student.load(export), load_tokenizer(export), pairs)["score"].tolist()
    asked = {"model": "student", "text_1": "red phone case", "text_2": TITLES}
    scored = httpx.post(f"{address}/score", json=asked, timeout=PATIENCE_S)
    assert scored.is_success, scored.text
    assert [one["score"] for one in scored.json()["data"]] == pytest.approx(wanted, abs=1e-4)
    asked = {"model": "student", "query": "red phone case", "documents": TITLES}
    ranked = httpx.post(f"{address}/v1/rerank", json=asked, timeout=PATIENCE_S).json()["results"]
    assert [one["index"] for one in ranked] == sorted(range(len(TITLES)), key=lambda n: -wanted[n])
