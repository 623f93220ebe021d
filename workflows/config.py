"""The whole run's config: one section per concern, TOML plus `--set a.b=c`. Imports nothing heavy."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, ValidationError, model_validator

from cluster.base.errors import UsageError
from cluster.config import ClusterSettings, Settings
from distill.config import ExportSettings, StudentSettings, TargetSettings
from distill.report.config import ReportSettings
from distill.study.config import StudyConfig
from mpcot.config import (
    Engine,
    JudgeSettings,
    PerspectiveSettings,
    PreferenceSettings,
    RationaleSettings,
    SampleSettings,
    TeacherSettings,
    VllmEngine,
)
from mpcot.sources.config import LabelSettings, SourceSettings, SplitSettings
from serve.config import ServeSettings
from teacher.config import DpoSettings, SftSettings


class RunConfig(Settings):
    """A run: one section per concern.

    A stage depends on the sections that its stage class names.
    """

    name: str = Field(pattern=r"^[\w.-]+$", description="names the run folder runs/NAME")
    seed: int = Field(13, description="of every draw: splits, sampling, order of training, initial weights")
    cluster: ClusterSettings = ClusterSettings()
    source: SourceSettings
    split: SplitSettings = SplitSettings()
    labels: LabelSettings = LabelSettings()
    perspectives: PerspectiveSettings = PerspectiveSettings()
    teacher: TeacherSettings
    engine: Engine = VllmEngine()
    rationales: RationaleSettings = RationaleSettings()
    sft: SftSettings = SftSettings()
    samples: SampleSettings = SampleSettings()
    preferences: PreferenceSettings = PreferenceSettings()
    dpo: DpoSettings = DpoSettings()
    judge: JudgeSettings = JudgeSettings()
    targets: TargetSettings = TargetSettings()
    student: StudentSettings = StudentSettings()
    export: ExportSettings = ExportSettings()
    report: ReportSettings = ReportSettings()
    serve: ServeSettings = ServeSettings()

    @model_validator(mode="after")
    def _same_prompt(self) -> RunConfig:
        """The teacher is judged with the prompt that it was trained on."""
        for name in ("few_shot", "description_chars"):
            trained, asked = getattr(self.samples, name), getattr(self.judge, name)
            if trained != asked:
                raise ValueError(
                    f"judge.{name} is {asked}, but the teacher learns with samples.{name} {trained}: set both alike"
                )
        if isinstance(self.engine, VllmEngine):
            for name, ask in (("rationales", self.rationales), ("samples", self.samples), ("judge", self.judge)):
                if self.engine.prompt_tokens(ask) <= 0:
                    raise ValueError(
                        f"{name}.max_tokens {ask.max_tokens} leaves no room for a prompt in engine.max_model_len "
                        f"{self.engine.max_model_len}"
                    )
        if "train" not in self.samples.splits:
            raise ValueError("samples.splits: must contain train, or there are no preferences to learn from")
        if self.sft.use_unlabelled and "unlabelled" not in self.rationales.splits:
            raise ValueError("sft.use_unlabelled has no effect: add 'unlabelled' to rationales.splits")
        return self


def load_config(path: Path, changes: Iterable[str] = ()) -> RunConfig:
    """Read a TOML config and apply `a.b=value` changes.

    Raises:
        UsageError: no such file, not TOML, an unknown key, or a value of the wrong kind; names each.
    """
    return validate(_read(path, changes), str(path))


def load_study(path: Path, changes: Iterable[str] = ()) -> StudyConfig:
    """Read a study's config likewise.

    Raises:
        UsageError: as `load_config`.
    """
    try:
        return StudyConfig(**_read(path, changes))
    except ValidationError as error:
        raise UsageError(f"{path}:\n" + "\n".join(_line(e, StudyConfig) for e in error.errors())) from error


def _read(path: Path, changes: Iterable[str]) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"no config file {path}. Shipped ones lie in workflows/configs.")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    data.setdefault("name", path.stem)
    return _changed(data, changes)


def _changed(data: dict[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    for change in changes:
        _apply(data, change)
    return data


class ServiceConfig(Settings):
    """What `broadfast serve` takes of a config; all that a file for a service alone may hold."""

    serve: ServeSettings = ServeSettings()
    cluster: ClusterSettings = ClusterSettings()


def service_config(path: Path | None, changes: Iterable[str] = ()) -> tuple[ServeSettings, ClusterSettings]:
    """Return the settings of a service, changed by `a.b=value`.

    Args:
        path: a run's config, or a file with the sections serve and cluster alone; None takes the defaults.

    Raises:
        UsageError: as `load_config`.
    """
    data = _changed({}, changes) if path is None else _read(path, changes)
    if path is not None and not data.keys() <= {"name", *ServiceConfig.model_fields}:
        config = validate(data, str(path))
        return config.serve, config.cluster
    try:
        own = ServiceConfig(**{name: value for name, value in data.items() if name != "name"})
    except ValidationError as error:
        raise UsageError(f"{path or 'serve'}:\n" + "\n".join(_line(e) for e in error.errors())) from error
    return own.serve, own.cluster


def validate(data: Mapping[str, Any], where: str) -> RunConfig:
    """Return the config, or a `UsageError` with one line per wrong setting."""
    try:
        return RunConfig(**data)
    except ValidationError as error:
        raise UsageError(f"{where}:\n" + "\n".join(_line(e) for e in error.errors())) from error


def _line(error: Any, root: type[Settings] = RunConfig) -> str:
    place, holder = _setting(error["loc"], root)
    if error["type"] == "extra_forbidden":
        return f"  {place}: no such setting. {_nearest(str(error['loc'][-1]), holder, root)}"
    if error["type"] == "union_tag_not_found":
        kinds = _kinds(holder.model_fields[error["loc"][-1]].annotation)
        return f"  {place}: say which one, by kind = {' or '.join(repr(kind) for kind in kinds)}"
    return f"  {place}: {error['msg']} (given: {error.get('input')!r})" if place else f"  {error['msg']}"


def _setting(loc: tuple[Any, ...], root: type[Settings]) -> tuple[str, Any]:
    """Return a setting's dotted name as the config writes it, and the class of the section that holds it."""
    names: list[str] = []
    holder: Any = root
    inside: Any = root
    for part in loc:
        choices = _kinds(inside)
        if part in choices:  # pydantic names the chosen kind as if it were a section
            inside = choices[part]
            continue
        names.append(str(part))
        holder = inside
        fields = getattr(holder, "model_fields", {})
        inside = fields[part].annotation if part in fields else None
    return ".".join(names), holder


def _kinds(annotation: Any) -> dict[str, Any]:
    """Return the classes of a union by their `kind`; of anything else none."""
    choices = [choice for choice in get_args(annotation) if "kind" in getattr(choice, "model_fields", {})]
    return {choice.model_fields["kind"].default: choice for choice in choices}


def _nearest(name: str, holder: Any, root: type[Settings]) -> str:
    """Return which setting may have been meant by a misspelt key, or where all are."""
    import difflib

    near = difflib.get_close_matches(name, list(getattr(holder, "model_fields", {})), n=1)
    of_study = " --study" if root is StudyConfig else ""
    return f"Did you mean {near[0]!r}?" if near else f"`broadfast settings SECTION{of_study}` lists what there is."


def _apply(data: dict[str, Any], change: str) -> None:
    name, sign, text = change.partition("=")
    if not sign or not name:
        raise UsageError(f"--set {change!r}: write it as section.setting=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = name.strip().split(".")
    place = data
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise UsageError(f"--set {change!r}: {section!r} is a value, not a section")
    place[last] = value
