"""The ordered table of stages: what each reads, which settings it depends on, what runs it and what it needs.

`STAGES` holds all of them, and `stages_of` those that a run has by its settings. Heavy code is imported when a stage
runs, not when the table is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pkgutil import resolve_name
from typing import Any

from cluster.base.errors import UsageError
from cluster.config import Settings, Workers
from distill.config import EncoderWorkers, ExportStage, StudentStage, TargetsStage
from distill.report.config import ReportStage
from mpcot.asking.engines.config import OpenAiEngine
from mpcot.config import (
    AnswerSettings,
    AskingStage,
    GivenPairsStage,
    JudgeStage,
    RationaleStage,
    SampleStage,
    UntunedJudgeStage,
    VllmEngine,
)
from mpcot.sources.config import PairsStage
from teacher.config import DpoStage, PreferenceStage, SftStage
from workflows.config import RunConfig


@dataclass(frozen=True)
class Need:
    """What a stage takes of the cluster at a time, the model that it loads, and among how many processes.

    Each of the `count` engines or workers takes an equal part, all of it on one node.
    """

    cpus: float = 1
    gpus: float = 0
    model: str = ""
    count: int = 1


@dataclass(frozen=True)
class Stage:
    """One row of the table."""

    name: str
    reads: tuple[str, ...]
    config: type[Settings]
    entry: str
    need: Callable[[RunConfig], Need]
    about: str

    @property
    def short(self) -> str:
        return self.name.partition("-")[2]

    def settings(self, config: RunConfig) -> Settings:
        """Return the sections of the run's config that the stage depends on."""
        return self.config(**{name: getattr(config, name) for name in self.config.model_fields})

    def run(self) -> Callable[[Any, Any], None]:
        """Import and return the function that runs the stage."""
        return resolve_name(self.entry)


def _engine(config: RunConfig, model: str) -> Need:
    replicas = config.engine.replicas
    gpus = replicas.gpus
    if isinstance(config.engine, VllmEngine) and gpus:
        gpus = max(gpus, config.engine.tensor_parallel)
    asked = config.engine.model if isinstance(config.engine, OpenAiEngine) else model
    return Need(replicas.min * replicas.cpus, replicas.min * gpus, asked, replicas.min)


def _workers(workers: Workers | EncoderWorkers, model: str) -> Need:
    count = workers.count
    return Need(count * workers.cpus_per_worker, count * workers.gpus_per_worker, model, count)


# By `teacher.tuning`: the stage whose model judges, if any, and the stages that the run does not have.
JUDGES = {"sft+dpo": "6-dpo", "sft": "3-sft", "none": None}
SKIPPED = {
    "sft+dpo": (),
    "sft": ("4-samples", "5-preferences", "6-dpo"),
    "none": ("2-rationales", "3-sft", "4-samples", "5-preferences", "6-dpo"),
}

STAGES: tuple[Stage, ...] = (
    Stage(
        "1-pairs", (), PairsStage, "mpcot.pairs.stage:run",
        lambda c: Need(), "read sources into checked pairs, split by query",
    ),
    Stage(
        "2-rationales", ("1-pairs",), RationaleStage, "mpcot.rationales:run_rationales",
        lambda c: _engine(c, c.teacher.model), "the teacher reasons from every perspective",
    ),
    Stage(
        "3-sft", ("1-pairs", "2-rationales"), SftStage, "teacher.sft:run",
        lambda c: _workers(c.sft.train.workers, c.teacher.model), "the teacher learns from its correct rationales",
    ),
    Stage(
        "4-samples", ("1-pairs", "3-sft"), SampleStage, "mpcot.rationales:run_samples",
        lambda c: _engine(c, "3-sft"), "the teacher answers each training pair again",
    ),
    Stage(
        "5-preferences", ("1-pairs", "2-rationales", "3-sft", "4-samples"), PreferenceStage,
        "teacher.preferences.stage:run",
        lambda c: _workers(c.preferences.workers, "3-sft"), "turn conflicts into preferences, and score them",
    ),
    Stage(
        "6-dpo", ("3-sft", "5-preferences"), DpoStage, "teacher.dpo:run",
        lambda c: _workers(c.dpo.train.workers, "3-sft"), "the teacher learns to prefer the right rationale",
    ),
    Stage(
        "7-judgements", ("1-pairs", "6-dpo"), JudgeStage, "mpcot.judgements:run",
        lambda c: Need() if c.judge.engine == "none" else _engine(c, JUDGES[c.teacher.tuning] or c.teacher.model),
        "the teacher judges every pair: verdicts, vote, soft labels",
    ),
    Stage(
        "8-targets", ("1-pairs", "7-judgements"), TargetsStage, "distill.targets.stage:run",
        lambda c: _workers(c.targets.workers, c.targets.encoder), "turn rationales into vectors of a frozen encoder",
    ),
    Stage(
        "9-student", ("1-pairs", "7-judgements", "8-targets"), StudentStage, "distill.lrkd.stage:run",
        lambda c: _workers(c.student.train.workers, c.student.model), "the student learns labels and reasoning",
    ),
    Stage(
        "10-export", ("1-pairs", "7-judgements", "9-student"), ExportStage, "distill.export:run",
        lambda c: Need(model="9-student"), "write the folder to serve, and check that it answers alike",
    ),
    Stage(
        "11-report",
        ("1-pairs", "2-rationales", "3-sft", "4-samples", "5-preferences", "6-dpo", "7-judgements", "8-targets",
         "9-student", "10-export"),
        ReportStage, "distill.report.stage:run", lambda c: Need(model="10-export"), "write a page and its numbers",
    ),
)  # fmt: skip


def asks(config: RunConfig, stage: Stage) -> bool:
    """Return whether the stage asks the teacher."""
    return issubclass(stage.config, AskingStage) and (stage.short != "judgements" or config.judge.engine != "none")


def stage_asks(config: RunConfig, stage: Stage) -> AnswerSettings:
    """Return how a stage that asks the teacher does so."""
    return getattr(config, {"judgements": "judge"}.get(stage.short, stage.short))


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """Return the stages that the run has. What they read follows from which of them there are."""
    judge, skipped = JUDGES[config.teacher.tuning], SKIPPED[config.teacher.tuning]

    def row(stage: Stage) -> Stage:
        if stage.short == "pairs" and config.source.judgements:
            return replace(stage, config=GivenPairsStage)
        reads = (judge if name == "6-dpo" else name for name in stage.reads if name == "6-dpo" or name not in skipped)
        left = replace(stage, reads=tuple(dict.fromkeys(name for name in reads if name)))
        if stage.short == "judgements" and config.judge.engine == "none":
            return replace(left, entry="mpcot.judgements:run_given")
        if stage.short == "judgements" and judge is None:
            return replace(left, config=UntunedJudgeStage, entry="mpcot.judgements:run_untuned")
        return left

    return tuple(row(stage) for stage in STAGES if stage.name not in skipped)


def find_stage(name: str, stages: Sequence[Stage] = STAGES) -> Stage:
    """Return a stage by its full or short name (`3-sft`, `sft`).

    Raises:
        UsageError: there is no such stage, or it is none of `stages`.
    """
    for stage in stages:
        if name in (stage.name, stage.short):
            return stage
    known = ", ".join(s.short for s in stages)
    if any(name in (stage.name, stage.short) for stage in STAGES):
        raise UsageError(f"no stage {name!r} in a run with this teacher.tuning; its stages are {known}")
    raise UsageError(f"no stage {name!r}; stages are {known}")
