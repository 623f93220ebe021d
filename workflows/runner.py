"""Running stages in order: skip what is finished, go on where a run was stopped, refuse a foreign folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cluster.base.errors import UsageError, UserError
from cluster.base.progress import console
from cluster.base.ray_session import ray_session
from cluster.base.stage_folder import (
    MANIFEST,
    StageFolder,
    changed_settings,
    digest,
    read_json,
    read_manifest,
    result_settings,
    write_json,
)
from cluster.base.tables import check_writable
from cluster.models.folders import check_model, model_content
from cluster.training.driver import CHECKPOINTS
from mpcot.asking.engines.config import OpenAiEngine
from mpcot.asking.engines.openai_engine import check_address
from mpcot.asking.plan import teacher_fingerprint
from mpcot.asking.prompts import PROMPT_VERSION, examples
from mpcot.pairs.stage import check as check_source
from mpcot.perspectives.perspective import Perspective, load_perspectives
from mpcot.schemes.scheme import Scheme, load_scheme
from mpcot.sources.config import PairsStage
from mpcot.sources.places import content as file_content
from workflows.config import RunConfig
from workflows.resources import check_resources
from workflows.stages import STAGES, Stage, asks, find_stage, stages_of

STARTED = "started.json"
AGAIN = "again.json"
FILES = ("path", "seeds", "judgements", "overrides", "candidates")  # what a source may name
PAID_FOR = "answers"  # keyed by all that decides them, so they outlive a change of settings


def select(first: str | None, last: str | None, stages: tuple[Stage, ...] = STAGES) -> tuple[Stage, ...]:
    """Return those of `stages` from `first` to `last`, both included."""
    start = stages.index(find_stage(first, stages)) if first else 0
    end = stages.index(find_stage(last, stages)) if last else len(stages) - 1
    if end < start:
        raise UsageError(f"--from {first} comes after --to {last}")
    return stages[start : end + 1]


def run_stages(config: RunConfig, run_dir: Path, stages: Sequence[Stage], redo: bool = False) -> None:
    """Run `stages` in the run folder; finished ones are skipped unless `redo`.

    The same redo after an interruption goes on where it was stopped.

    Raises:
        UserError: a stage's input is missing, the folder was made by other settings, or a stage failed.
    """
    check_writable(run_dir)
    preflight(config, stages)
    warn_of_others(config, run_dir, stages[0])
    with locked(run_dir), ray_session(config.cluster) as nodes:
        left = _left_of_redo(config, run_dir, stages) if redo else unfinished(config, run_dir, stages)
        again = redo and not left
        check_resources(config, stages if again else left, nodes)
        if isinstance(config.engine, OpenAiEngine) and any(
            asks(config, stage) for stage in (stages if again else left)
        ):
            check_address(config.engine)
        if again:
            forget(run_dir, stages[0])
            unfinished(config, run_dir, stages)  # a folder that is refused keeps its own config
            write_json(run_dir / AGAIN, _asked_again(config, stages))
        write_json(run_dir / "config.json", config.model_dump(mode="json"))
        for stage in stages:
            _run_one(config, run_dir, stage)


def preflight(config: RunConfig, stages: Sequence[Stage]) -> None:
    """Check what can be checked before anything runs: schemes, perspectives, model folders."""
    scheme, perspectives = load_scheme(config.labels.scheme), load_perspectives(config.perspectives)
    names = {stage.short for stage in stages}
    for section in config.asking():
        check_examples(section, getattr(config, section).few_shot, scheme, perspectives)
    if "pairs" in names:
        pairs = find_stage("pairs").settings(config)
        assert isinstance(pairs, PairsStage)
        check_source(pairs)
    loaded = any("teacher" in stage.config.model_fields for stage in stages)
    if loaded and not isinstance(config.engine, OpenAiEngine):
        check_model("teacher.model", config.teacher.model)
    if "targets" in names:
        check_model("targets.encoder", config.targets.encoder)
    if "student" in names:
        check_model("student.model", config.student.model)


def check_examples(section: str, few_shot: int, scheme: Scheme, perspectives: Iterable[Perspective]) -> None:
    """Refuse more worked examples than a perspective has.

    Raises:
        UserError: names the perspective and how many of its examples have a verdict of the scheme.
    """
    for perspective in perspectives:
        have = len(examples(perspective, scheme))
        if few_shot > have:
            raise UserError(
                f"{section}.few_shot is {few_shot}, and perspective {perspective.name} has {have} examples with a "
                f"verdict of the scheme {scheme.name}: lower it, or give more in your own file (perspectives.folder)."
            )


def unfinished(config: RunConfig, run_dir: Path, stages: Sequence[Stage]) -> Sequence[Stage]:
    """Return the stages from the first that is to be made.

    Raises:
        UserError: a finished one was made by other settings, or what the first of them reads has not finished.
    """
    for place, stage in enumerate(stages):
        if not own_folder(config, run_dir, stage).manifest():
            return stages[place:]
    return ()


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run folder, so that two runs never write into it at once."""
    try:
        with FileLock(run_dir / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise UserError(
            f"{run_dir} is in use by another broadfast run. Wait for it, or choose another --out."
        ) from error


def stage_folder(config: RunConfig, run_dir: Path, stage: Stage) -> StageFolder:
    """Return the stage's folder with the settings and inputs that its fingerprint is made of.

    Raises:
        UserError: a stage that it reads has not finished.
    """
    inputs = {}
    for name in stage.reads:
        manifest = read_manifest(run_dir / name)
        if manifest is None:
            raise UserError(
                f"{stage.name} reads {name}, which has not finished in {run_dir}. Run it first: --from {name}."
            )
        inputs[name] = manifest["fingerprint"]
    settings = result_settings(stage.settings(config)) | {"content": _content(config, stage)}
    return StageFolder(run_dir, stage.name, settings, inputs)


def _content(config: RunConfig, stage: Stage) -> dict[str, Any]:
    """Digests of what settings only name, by the name of the setting: a changed file is a changed setting."""
    fields = stage.config.model_fields
    found: dict[str, Any] = {}
    if "labels" in fields:
        found["labels.scheme"] = digest(load_scheme(config.labels.scheme).model_dump())
    if "perspectives" in fields and "perspectives" not in stage.config.reads_only:
        found["perspectives"] = digest([p.model_dump() for p in load_perspectives(config.perspectives)])
    if "teacher" in fields:
        found["teacher.model"] = teacher_fingerprint(config.engine, config.teacher.model)
    if "targets" in fields:
        found["targets.encoder"] = model_content(config.targets.encoder)
    if "student" in fields:
        found["student.model"] = model_content(config.student.model)
    if fields.keys() & {"rationales", "samples", "judge"}:
        found["prompts"] = PROMPT_VERSION
    for section in fields.keys() & {"rationales", "samples"} - stage.config.reads_only.keys():
        named = (getattr(step, "words_file", None) for step in getattr(config, section).filters)
        found |= {f"{section}.filters": file_content(path, f"{section}.filters") for path in named if path}
    for field in FILES if "source" in fields else ():
        if path := getattr(config.source, field, None):
            found[f"source.{field}"] = file_content(path, f"source.{field}")
    return found


def warn_of_others(config: RunConfig, run_dir: Path, first: Stage) -> None:
    """Say which stages before `first` were finished with other settings: they stay as they are."""
    for stage in select(None, first.name, stages_of(config))[:-1]:
        if manifest := read_manifest(run_dir / stage.name):
            before = {name: value for name, value in manifest["settings"].items() if name != "content"}
            for line in changed_settings(before, result_settings(stage.settings(config)))[:3]:
                console().print(
                    f"  warning: {stage.name} was made with another {line}", style="yellow", highlight=False
                )


def _asked_again(config: RunConfig, stages: Sequence[Stage]) -> dict[str, Any]:
    return {"stages": [stage.name for stage in stages], "settings": digest(result_settings(config))}


def _left_of_redo(config: RunConfig, run_dir: Path, stages: Sequence[Stage]) -> Sequence[Stage]:
    """Return what an interruption left of the same redo with the same settings; nothing where it must begin anew."""
    marker = run_dir / AGAIN
    if not marker.is_file() or read_json(marker) != _asked_again(config, stages):
        return ()
    try:
        return unfinished(config, run_dir, stages)
    except UserError:  # a file that the settings name has changed since
        return ()


def forget(run_dir: Path, first: Stage) -> None:
    """Make `first` and all after it unfinished, so that none of them outlives what it was made from."""
    for stage in reversed(select(first.name, None)):  # also those that only another teacher.tuning has
        for name in (MANIFEST, STARTED):
            (run_dir / stage.name / name).unlink(missing_ok=True)


def own_folder(config: RunConfig, run_dir: Path, stage: Stage) -> StageFolder:
    """Return the stage's folder; if it has a manifest, it was made with these settings.

    Raises:
        UserError: it was made by other settings, or a stage that it reads has not finished.
    """
    folder = stage_folder(config, run_dir, stage)
    manifest = folder.manifest()
    if manifest and manifest["fingerprint"] != folder.fingerprint:
        raise UserError(foreign(folder, manifest))
    return folder


def _run_one(config: RunConfig, run_dir: Path, stage: Stage) -> None:
    folder = own_folder(config, run_dir, stage)
    if folder.manifest():
        console().print(f"[dim]{stage.name:14} finished before, skipped[/dim]", highlight=False)
        return
    prepare(folder)
    console().print(f"[bold]{stage.name:14}[/bold] {stage.about}", highlight=False)
    started = time.monotonic()
    stage.run()(stage.settings(config), folder)
    done = read_manifest(folder.path)
    assert done is not None, f"{stage.name} returned without a manifest"
    counts = ", ".join(f"{name} {count:,}" for name, count in done["counts"].items())
    console().print(f"{'':14} {counts} ({time.monotonic() - started:.0f} s)", highlight=False)


def foreign(folder: StageFolder, manifest: dict[str, Any]) -> str:
    """Return the message about a finished folder that other settings or other inputs made."""
    return (
        f"{folder.path} was made with other settings:\n{_differences(folder, manifest)}\n"
        f"Choose another folder with --out, or make it and all after it again with --from {folder.name}."
    )


def _differences(folder: StageFolder, before: dict[str, Any]) -> str:
    changes = changed_settings(before["settings"], result_settings(folder.settings))
    changes += changed_settings(before["inputs"], dict(folder.inputs), "input ")
    return "\n".join(f"  {line}" for line in changes[:12])


def prepare(folder: StageFolder) -> None:
    """Make the folder ready: keep what an interrupted run of the same settings left, remove anything else.

    Raises:
        UserError: other settings left a training half done.
    """
    marker = folder.path / STARTED
    begun = read_json(marker) if marker.exists() else {}
    same = begun.get("fingerprint") == folder.fingerprint
    if "settings" in begun and not same and next(folder.path.rglob(CHECKPOINTS), None):
        raise UserError(
            f"{folder.path} holds a training that was begun with other settings:\n{_differences(folder, begun)}\n"
            f"Set them back to go on with it, or start it over with --from {folder.name}."
        )
    if folder.path.exists() and not same:
        for item in folder.path.iterdir():
            if item.name != PAID_FOR:
                shutil.rmtree(item) if item.is_dir() else item.unlink()
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json(
        marker,
        {
            "fingerprint": folder.fingerprint,
            "settings": result_settings(folder.settings),
            "inputs": dict(folder.inputs),
        },
    )
