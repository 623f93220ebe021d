"""Finds out how a sentence encoder turns its states into one vector, from the files that it brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from cluster.base.errors import UserError
from cluster.base.stage_folder import read_json
from cluster.models.folders import name_and_commit
from distill.config import TargetSettings

MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


def pooling_of(settings: TargetSettings) -> tuple[str, str]:
    """Return `mean` or `cls`, and why.

    `auto` reads the pooling module that the encoder's `modules.json` names. Where the encoder has no such files, it
    takes the mean, as sentence-transformers does.

    Raises:
        UserError: the encoder pools in a way that is not known here, or its files cannot be reached.
    """
    if settings.pooling != "auto":
        return settings.pooling, "as targets.pooling says"
    modules = _file(settings.encoder, "modules.json") or []
    paths = [module["path"] for module in modules if module["type"].endswith("Pooling")]
    found = _file(settings.encoder, f"{paths[0]}/config.json") if paths else None
    if found is None:
        return "mean", "since the encoder says nothing of it"
    chosen = [name for name, on in found.items() if name.startswith("pooling_mode_") and on is True]
    modes = [MODES.get(name) for name in chosen] or [found.get("pooling_mode")]
    if len(modes) != 1 or modes[0] not in MODES.values():
        raise UserError(
            f"targets.pooling: auto finds {', '.join(chosen) or modes[0]} in {settings.encoder!r}, and only mean and "
            "cls are known here. Choose one of them, or another encoder."
        )
    return str(modes[0]), "as the encoder's own files say"


def _file(encoder: str, name: str) -> Any:
    """Return a JSON file of a folder or of a model on the hub, or None if there is none."""
    model, commit = name_and_commit(encoder)
    try:
        path = cached_file(model, name, revision=commit, _raise_exceptions_for_missing_entries=False)
    except OSError as error:  # the hub cannot be reached, and to guess would be wrong in silence
        raise UserError(
            f"targets.pooling: auto cannot read {name} of {encoder!r}: {error}. Set it to mean or cls"
        ) from error
    return None if path is None else read_json(Path(path))
