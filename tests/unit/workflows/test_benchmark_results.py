"""What is written beside a benchmark's figures says on which machine they were measured."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "results.py"


@pytest.mark.parametrize("name", [False, "NVIDIA H200"])
def test_the_gpu_is_named_where_there_is_one(name: str | bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("benchmark_results", SCRIPT)
    assert spec is not None and spec.loader is not None
    results = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_results", results)
    spec.loader.exec_module(results)
    monkeypatch.setattr("torch.cuda.is_available", lambda: bool(name))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: name)
    assert results.machine()["gpu"] == name
