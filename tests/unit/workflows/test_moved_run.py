"""A run that is moved is the same run: what its files hold counts, not where and since when they lie there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.base.stage_folder import MANIFEST, write_json
from mpcot import perspectives, schemes
from mpcot.sources import places
from tests.helpers.command import broadfast, files, text
from workflows import runner
from workflows.config import RunConfig
from workflows.stages import STAGES, stages_of

ROWS = [
    {"query": f"drill {n // 3}", "product_id": f"p{n}", "title": f"Drill {n}", "label": "ESCI"[n % 4]}
    for n in range(30)
]
JSONL = ("path", "seeds", "judgements", "overrides", "candidates")  # of the source


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with everything that a config may name."""
    folder = tmp_path / "here"
    for name in JSONL:
        (folder / "data").mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in ROWS)
        (folder / "data" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (folder / "model").mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / "model" / name).write_text("{}")
    shutil.copy(Path(schemes.__file__).with_name("esci.toml"), folder / "scheme.toml")
    shutil.copytree(Path(perspectives.__file__).parent, folder / "perspectives", ignore=lambda *_: ["__pycache__"])
    for name in ("rules.txt", "words.txt"):
        (folder / name).write_text("a case is no phone")
    return folder


def config(where: Path, **more: Any) -> RunConfig:
    source: dict[str, Any] = {name: str(where / "data" / f"{name}.jsonl") for name in JSONL}
    named: dict[str, Any] = {
        "name": "moved",
        "source": {"kind": "table", **source},
        "labels": {"scheme": str(where / "scheme.toml")},
        "perspectives": {"folder": str(where / "perspectives"), "rules_file": str(where / "rules.txt")},
        "teacher": {"model": str(where / "model")},
        "rationales": {"filters": ["verdict", {"kind": "grounded", "words_file": str(where / "words.txt")}]},
        "targets": {"encoder": str(where / "model")},
        "student": {"model": str(where / "model")},
    }
    return RunConfig(**named | more)


def fingerprints(run: RunConfig, run_dir: Path) -> Mapping[str, str]:
    """Return the fingerprint of each stage, as if those that it reads had finished."""
    for stage in STAGES:
        (run_dir / stage.name).mkdir(parents=True, exist_ok=True)
        write_json(run_dir / stage.name / MANIFEST, {"fingerprint": "aaaa"})
    return {stage.name: runner.stage_folder(run, run_dir, stage).fingerprint for stage in stages_of(run)}


def moved(here: Path) -> Path:
    there = Path(shutil.copytree(here, here.with_name("there")))
    for path in there.rglob("*"):
        os.utime(path, (1000, 1000))
    return there


def test_no_stage_depends_on_where_and_since_when_files_lie(here: Path, tmp_path: Path) -> None:
    before = fingerprints(config(here), tmp_path / "first")
    assert len(before) == 11
    assert fingerprints(config(moved(here)), tmp_path / "second") == before


def test_no_stage_depends_on_patience(here: Path, tmp_path: Path) -> None:
    patient = config(here).model_dump(mode="json")
    patient["source"]["max_failed_share"] = 0.9
    for section in ("rationales", "samples", "judge"):
        patient[section] |= {"retries": 9, "max_failed_share": 0.9}
    assert fingerprints(RunConfig(**patient), tmp_path) == fingerprints(config(here), tmp_path)


@pytest.mark.parametrize(
    ("name", "first"),
    [(f"data/{name}.jsonl", "1-pairs") for name in JSONL]
    + [
        ("scheme.toml", "1-pairs"),
        ("perspectives/intent.toml", "2-rationales"),
        ("rules.txt", "2-rationales"),
        ("words.txt", "2-rationales"),
        ("model/tokenizer.json", "2-rationales"),
    ],
)
def test_what_a_file_holds_counts(here: Path, tmp_path: Path, name: str, first: str) -> None:
    before = fingerprints(config(here), tmp_path)
    there = moved(here)
    content = (there / name).read_text(encoding="utf-8")
    changed = (
        content.replace("drill", "mugs!") if "data/" in name else content.replace("case", "lid").replace("{}", "{ }")
    )
    (there / name).write_text(changed if changed != content else content.replace("shopper", "buyer"), encoding="utf-8")
    after = fingerprints(config(there), tmp_path)
    assert next(stage for stage in before if before[stage] != after[stage]) == first


def test_a_large_source_is_read_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = here / "data", []
    monkeypatch.setattr(places, "_read_sum", lambda filesystem, path: read.append(path) or f"sum of {path}")
    first = places.content(str(path), "source.path")
    (path / "_SUCCESS").write_text("")
    (path / ".ipynb_checkpoints").mkdir()
    (path / ".ipynb_checkpoints/path.jsonl").write_text("{}")
    assert places.content(str(path), "source.path") == first and len(read) == len(JSONL)
    os.utime(path / "seeds.jsonl", (1000, 1000))
    places.content(str(path), "source.path")
    assert len(read) == len(JSONL) + 1


def test_a_copied_run_does_nothing_again(here: Path, without_ray: None) -> None:
    settings = {"teacher.tuning": "none", "engine.kind": "scripted", "split.dev": 0.2, "split.test": 0.1}

    def run(where: Path) -> str:
        toml = where / "moved.toml"
        toml.write_text(f'source = {{ kind = "table", path = "{where}/data/path.jsonl" }}\n')
        paths = {"teacher.model": where / "model", "labels.scheme": where / "scheme.toml"}
        changes = [f"{name}={value}" for name, value in (settings | paths).items()]
        done = broadfast(
            "run", toml, *(part for change in changes for part in ("--set", change)), "--out", where / "run",
            "--to", "judgements", "-v",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        return text(done)

    run(here)
    there = moved(here)
    shutil.rmtree(here)
    before = files(there / "run")
    assert run(there).count("finished before, skipped") == 2
    changed = files(there / "run").items() - before.items()
    assert {name for name, _ in changed} <= {"config.json", ".lock"}
