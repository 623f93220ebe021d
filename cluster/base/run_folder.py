"""What commands about an existing run need first: its config, and stages that have finished."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from cluster.base.errors import UsageError
from cluster.base.stage_folder import read_json, read_manifest
from cluster.base.whole_files import whole_file

RUN_ID = "run_id"


def saved_config(run_dir: Path) -> dict[str, Any]:
    """Return the config that a run was made with.

    Raises:
        UsageError: this is no run folder.
    """
    path = run_dir / "config.json"
    if not path.is_file():
        raise UsageError(f"{run_dir} is not a run folder: it has no config.json")
    return read_json(path)


def run_id(run_dir: Path, begin: bool = False) -> str | None:
    """Return what tells a run from others in a store that they share, or None if it has none yet.

    It stays with the run folder wherever that lies.

    Args:
        begin: give the run one.
    """
    path = run_dir / RUN_ID
    if not path.exists() and begin:
        with whole_file(path) as partial:
            partial.write_text(f"{run_dir.resolve().name}-{uuid.uuid4().hex[:8]}\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip() if path.exists() else None


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
