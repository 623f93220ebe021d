"""The config of a whole run, from a TOML file and `--set a.b=c`. Imports nothing heavy."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import Field, ValidationError, model_validator

from cluster.base.errors import UsageError
from cluster.config import NAME_OF_FOLDER, ClusterSettings, Settings
from distill.config import EmbeddedControl, ExportSettings, StudentSettings, TargetSettings
from distill.report.config import ReportSettings
from distill.study.config import StudyConfig
from mpcot.asking.engines.config import OpenAiEngine
from mpcot.config import (
    ASKING,
    Engine,
    JudgeSettings,
    PerspectiveSettings,
    RationaleSettings,
    SampleSettings,
    TeacherSettings,
    VllmEngine,
)
from mpcot.sources.config import LabelSettings, SourceSettings, SplitSettings, TableSource
from serve.bulk.config import BulkSettings
from serve.config import ServeSettings
from teacher.config import DpoSettings, PreferenceSettings, SftSettings

Model = TypeVar("Model", bound=Settings)


class RunConfig(Settings):
    """A run, with one section per concern; a stage depends on the sections that its own settings class names."""

    name: str = Field(pattern=NAME_OF_FOLDER, description="name of the run, whose folder is runs/NAME")
    seed: int = Field(
        13, description="seed of every random choice: splits, sampling, order of training, initial weights"
    )
    cluster: ClusterSettings = ClusterSettings()
    source: SourceSettings
    split: SplitSettings = SplitSettings()
    labels: LabelSettings = LabelSettings()
    perspectives: PerspectiveSettings = PerspectiveSettings()
    teacher: TeacherSettings = TeacherSettings()
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
    bulk: BulkSettings = BulkSettings()

    def asking(self) -> tuple[str, ...]:
        """Return the sections that say how the teacher is asked, of the stages that the run has."""
        return ASKING[self.teacher.tuning] if self.judge.engine != "none" else ()

    @model_validator(mode="after")
    def _somebody_judges(self) -> RunConfig:
        """Refuse a run without a teacher where one is needed, and one with a teacher that would not be asked."""
        if self.judge.engine == "none":
            if self.teacher.tuning != "none":
                raise ValueError(
                    f"judge.engine 'none' asks nobody, but teacher.tuning is {self.teacher.tuning!r}: set "
                    "teacher.tuning = 'none', or leave judge.engine out"
                )
            if self.source.judgements is None:
                raise ValueError("judge.engine 'none' asks nobody: name the file of judgements in source.judgements")
        elif isinstance(self.engine, OpenAiEngine):
            if self.teacher.tuning != "none":
                raise ValueError(
                    f"teacher.tuning {self.teacher.tuning!r} trains a model of your own, and engine.kind 'openai' asks "
                    "one behind an address: set teacher.tuning = 'none', or take engine.kind 'vllm'"
                )
        elif not self.teacher.model:
            raise ValueError(
                "teacher.model: name a chat model, or ask one behind an address (engine.kind 'openai') or nobody, with "
                "source.judgements, teacher.tuning = 'none' and "
                "judge.engine = 'none'"
            )
        return self

    @model_validator(mode="after")
    def _confidence_counts(self) -> RunConfig:
        """Refuse to ask for a confidence that nobody would state or use."""
        if self.judge.confidence and self.judge.engine == "none":
            raise ValueError("judge.confidence has no effect: judge.engine 'none' asks nobody. Leave it out")
        if self.judge.confidence and not isinstance(self.engine, OpenAiEngine):
            raise ValueError(
                f"judge.confidence has no effect: engine.kind {self.engine.kind!r} gives log-probabilities, which are "
                "taken instead. Leave it out, or ask a model behind an address (engine.kind 'openai')"
            )
        return self

    @model_validator(mode="after")
    def _control_is_embedded(self) -> RunConfig:
        """Refuse a control of the student for which stage 8 would make no vectors."""
        control = self.student.control
        if control in get_args(EmbeddedControl) and control not in self.targets.controls:
            raise ValueError(f"student.control {control!r} needs vectors of its own: add it to targets.controls")
        return self

    @model_validator(mode="after")
    def _same_prompt(self) -> RunConfig:
        """Refuse to judge with a prompt that the teacher was not trained on, and prompts that do not fit."""
        for name in ("few_shot", "description_chars", "guide") if self.teacher.tuning != "none" else ():
            trained, asked = getattr(self.samples, name), getattr(self.judge, name)
            if trained != asked:
                raise ValueError(
                    f"judge.{name} is {asked}, but the teacher learns with samples.{name} {trained}: set both alike"
                )
        trained, asked = (f"{least} to {most}" for least, most in (self.samples.asked_words, self.judge.asked_words))
        if trained != asked and self.teacher.tuning != "none":
            raise ValueError(
                f"judge asks for {asked} words, but the teacher learns to write {trained}: set samples.words and "
                "judge.words alike, or their max_chars"
            )
        if isinstance(self.engine, VllmEngine):
            for name in self.asking():
                ask = getattr(self, name)
                if self.engine.prompt_tokens(ask) <= 0:
                    raise ValueError(
                        f"{name}.max_tokens {ask.max_tokens} leaves no room for a prompt in engine.max_model_len "
                        f"{self.engine.max_model_len}"
                    )
        if "samples" in self.asking() and "train" not in self.samples.splits:
            raise ValueError("samples.splits: must contain train, because preferences are learnt from its samples")
        if "rationales" in self.asking() and self.sft.use_unlabelled and "unlabelled" not in self.rationales.splits:
            raise ValueError("sft.use_unlabelled has no effect: add 'unlabelled' to rationales.splits")
        return self


def load_config(path: Path, changes: Iterable[str] = ()) -> RunConfig:
    """Read the TOML config of a run and apply `a.b=value` changes.

    Raises:
        UsageError: the file does not exist or is not TOML, a key is unknown or a value is wrong; each is named.
    """
    return validate(_read(path, changes), str(path))


def load_study(path: Path, changes: Iterable[str] = ()) -> StudyConfig:
    """Read the config of a study in the same way, and raise the same errors."""
    return _checked(StudyConfig, _read(path, changes), str(path))


def _read(path: Path | None, changes: Iterable[str]) -> dict[str, Any]:
    data = {} if path is None else _toml(path)
    for change in changes:
        _apply(data, change)
    return data


def _toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"no config file {path}. Those of broadfast are in workflows/configs.")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    return {"name": path.stem} | data


class ServiceConfig(Settings):
    """The sections of a config that `broadfast serve` reads, and the only ones in a file for a service alone."""

    serve: ServeSettings = ServeSettings()
    cluster: ClusterSettings = ClusterSettings()


def service_config(path: Path | None, changes: Iterable[str] = ()) -> ServiceConfig:
    """Return the settings of a service, changed by `a.b=value`.

    Args:
        path: the config of a run, or a file with the sections serve and cluster alone; None takes the defaults.

    Raises:
        UsageError: as `load_config`.
    """
    data = _read(path, changes)
    if path is not None and not data.keys() <= {"name", *ServiceConfig.model_fields}:
        config = validate(data, str(path))
        return ServiceConfig(serve=config.serve, cluster=config.cluster)
    data.pop("name", None)
    return _checked(ServiceConfig, data, str(path or "serve"))


class BulkConfig(Settings):
    """What `broadfast score` reads of a config: how the columns of the table are called, and how to score it."""

    source: TableSource
    bulk: BulkSettings = BulkSettings()
    cluster: ClusterSettings = ClusterSettings()


def bulk_config(path: Path | None, table: str, changes: Iterable[str] = ()) -> BulkConfig:
    """Return the settings to score `table` with, changed by `a.b=value`.

    Args:
        path: the config of a run, or a file with the sections source, bulk and cluster alone; None takes the defaults.

    Raises:
        UsageError: as `load_config`.
    """
    data = _read(path, changes)
    name = data.pop("name", None)
    if not data.keys() <= BulkConfig.model_fields.keys():
        config = validate({"name": name} | data, str(path))
        named = config.source.model_dump(include={"columns", "format", "default_locale"})
        data = {"source": named, "bulk": config.bulk, "cluster": config.cluster}
    data["source"] = {**data.get("source", {}), "kind": "table", "path": table}
    return _checked(BulkConfig, data, str(path or "score"))


def validate(data: Mapping[str, Any], where: str) -> RunConfig:
    """Return the config of a run, or raise a `UsageError` with one line for each wrong setting."""
    return _checked(RunConfig, data, where)


def _checked(model: type[Model], data: Mapping[str, Any], where: str) -> Model:
    try:
        return model(**data)
    except ValidationError as error:
        raise UsageError("\n".join([f"{where}:", *(_line(found, model) for found in error.errors())])) from error


def _line(error: Any, root: type[Settings]) -> str:
    place, holder = _setting(error["loc"], root)
    if error["type"] == "extra_forbidden":
        return f"  {place}: no such setting. {_nearest(str(error['loc'][-1]), holder, root)}"
    if error["type"] == "union_tag_not_found":
        last = error["loc"][-1]
        kinds = _kinds(holder if isinstance(last, int) else holder.model_fields[last].annotation)
        return f"  {place}: choose one by kind = {' or '.join(repr(kind) for kind in kinds)}"
    return f"  {place}: {error['msg']} (given: {error.get('input')!r})" if place else f"  {error['msg']}"


def _setting(loc: tuple[Any, ...], root: type[Settings]) -> tuple[str, Any]:
    """Return the dotted name of a setting in the config, and the class of the section that contains it."""
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
        if isinstance(part, int):  # of a list, whose annotation stands for each of its values
            continue
        fields = getattr(holder, "model_fields", {})
        inside = fields[part].annotation if part in fields else None
    return ".".join(names), holder


def _kinds(annotation: Any) -> dict[str, Any]:
    """Return the classes of a union, or of a list of them, by their `kind`, and none for anything else."""
    found = {}
    for choice in get_args(annotation):
        if "kind" in getattr(choice, "model_fields", {}):
            found[choice.model_fields["kind"].default] = choice
        else:
            found |= _kinds(choice)
    return found


def _nearest(name: str, holder: Any, root: type[Settings]) -> str:
    """Say which setting may have been meant by a misspelt key, or where all of them are listed."""
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
