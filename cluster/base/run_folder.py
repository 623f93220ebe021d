"""What commands about an existing run need first: its config, and stages that have finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.base.errors import UsageError
from cluster.base.stage_folder import read_json, read_manifest


def saved_config(run_dir: Path) -> dict[str, Any]:
    """Return the config that a run was made with.

    Raises:
        UsageError: this is no run folder.
    """
    path = run_dir / "config.json"
    if not path.is_file():
        raise UsageError(f"{run_dir} is not a run folder: it has no config.json")
    return read_json(path)


def finished_stage(run_dir: Path, stage: str, upto: str) -> Path:
    """Return the folder of a finished stage.

    Args:
        upto: what `--to` must name so that the stage is run.

    Raises:
        UsageError: it has not finished.
    """
    folder = run_dir / stage
    if read_manifest(folder) is None:
        raise UsageError(f"{folder} is not finished: run broadfast with --to {upto} first")
    return folder
