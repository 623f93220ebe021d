"""The ingress is chosen before Ray Serve is imported, or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serve.config import ServeSettings
from serve.on_ray.proxy import ingress_environment

ROOT = Path(__file__).parents[4]
SAID = """
import os, sys
from serve.config import ServeSettings
from serve.on_ray.proxy import use_ingress
{before}
try:
    use_ingress(ServeSettings(ingress="haproxy"))
except Exception as error:
    sys.exit(str(error))
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY as on
print(on)
"""


def run(before: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SAID.format(before=before)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_ray_serve_reads_what_was_chosen() -> None:
    assert run("").stdout.strip() == "True"


def test_too_late_is_said_with_the_way_out() -> None:
    said = run("import ray.serve")
    assert said.returncode == 1
    assert "serve.ingress 'haproxy'" in said.stderr and "RAY_SERVE_ENABLE_HA_PROXY=1" in said.stderr


def test_rays_own_proxy_needs_nothing() -> None:
    assert ingress_environment(ServeSettings()) == {}
    with pytest.raises(ValueError, match="ingress"):
        ServeSettings(ingress="nginx")  # type: ignore[arg-type]
