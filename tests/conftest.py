"""Fixtures that tests of several folders share. Heavy packages are imported when a fixture is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny causal language model's folder; read it, do not write into it."""
    from tests.helpers.tiny_llama import tiny_llama

    return tiny_llama(tmp_path_factory.mktemp("llama") / "tiny-llama")
