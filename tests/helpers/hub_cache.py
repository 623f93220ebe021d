"""A model of the hub as this machine's copy has it, with two commits; no hub is asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cluster.models.folders import hub_revision, model_to_load

NAME = "shop/model"
EARLIER, LATER = "1" * 40, "2" * 40


def pushed_to(monkeypatch: pytest.MonkeyPatch, cache: Path, earlier: Path, later: Path) -> str:
    """Return what a run loads that began before another commit was pushed.

    Args:
        cache: a folder for the copy.
        earlier: the folder of the model when the run begins, and `later` that of the one that is pushed then.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    copy = cache / f"models--{NAME.replace('/', '--')}"
    (copy / "refs").mkdir(parents=True)
    hub_revision.cache_clear()
    for commit, folder in ((EARLIER, earlier), (LATER, later)):
        shutil.copytree(folder, copy / "snapshots" / commit)
        (copy / "refs" / "main").write_text(commit)
        model = model_to_load("a.model", NAME)
    hub_revision.cache_clear()
    return model
