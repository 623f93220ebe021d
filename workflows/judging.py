"""Lets the teacher of a run judge a sample of logged answers, by stage 7 in a small run folder of its own.

It imports Ray Serve: commands import it when they run.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from cluster.base.errors import UsageError, UserError
from cluster.base.progress import console
from cluster.base.run_folder import finished_stage, saved_config
from cluster.base.stage_folder import read_manifest
from cluster.base.tables import read_table, write_table
from cluster.pages.html import signed
from mpcot.asking.engines.config import OpenAiEngine
from mpcot.records import PAIR
from mpcot.schemes.scheme import load_scheme
from mpcot.sources.open_source import cleaning_of
from serve.experiments.experiment_service import check_exports
from serve.on_ray.rollout import running_export
from serve.watching.judged import compared
from serve.watching.sample import SAMPLE, Wish, draw_sample, newest_model
from workflows.config import RunConfig, validate
from workflows.runner import run_stages, select, stage_folder
from workflows.stages import JUDGES, find_stage, stages_of


def judge_sample(run_dir: Path, log: Path, folder: Path, wish: Wish) -> RunConfig:
    """Draw the sample into `folder` and let the teacher judge it; the same call goes on after an interruption.

    Return the config of the small run, which the folder holds as that of any other run.

    Raises:
        UserError: the run has no teacher that is finished, there are no answers, the folder has another sample, or the
            teacher cannot be asked.
    """
    config = small_run(run_dir, folder)
    draw(config, log, folder, wish)
    run_stages(config, folder, select("judgements", "judgements", stages_of(config)))
    return config


def model_to_judge(log: Path, folder: Path, since: datetime) -> str | None:
    """Return the model that gave the latest answer, or that of the sample which the folder has already."""
    done = read_manifest(folder / "1-pairs")
    return newest_model(log, since) if done is None else done["figures"]["wish"]["model"]


def small_run(run_dir: Path, folder: Path) -> RunConfig:
    """Return the config of a run whose pairs are the sample, and whose teacher is that which judged in `run_dir`.

    Raises:
        UserError: nobody was asked in that run, or its teacher is not finished.
    """
    saved = saved_config(run_dir)
    config = validate(saved, str(run_dir / "config.json"))
    if config.judge.engine == "none":
        raise UserError(f"{run_dir} has asked no teacher (judge.engine 'none'), so none can judge. Name another run.")
    model, stage = config.teacher.model, JUDGES[config.teacher.tuning]
    if stage and not isinstance(config.engine, OpenAiEngine):
        model = str((finished_stage(run_dir, stage, stage.partition("-")[2]) / "model").resolve())
    cleaning = cleaning_of(config.source, load_scheme(config.labels.scheme))
    source = {"kind": "table", "path": str(folder / SAMPLE), "default_locale": cleaning.default_locale}
    # The unlabelled sample is judged as the pairs of the run were; a fit of the vote would need labels.
    judge = {"splits": ["unlabelled"], "pairs_per_split": None, "budget_pairs": None, "fit": False}
    changed: dict[str, Any] = {"teacher": {"model": model, "tuning": "none"}, "source": source}
    return validate(saved | changed | {"judge": saved["judge"] | judge}, str(run_dir / "config.json"))


def draw(config: RunConfig, log: Path, folder: Path, wish: Wish) -> None:
    """Write the sample and its pairs as the stage 1-pairs of the small run, unless they are there.

    Raises:
        UserError: there are no answers, or the folder has a sample that was drawn otherwise.
    """
    asked = {name: value for name, value in asdict(wish).items() if name != "since"} | {"log": str(log.resolve())}
    done = read_manifest(folder / "1-pairs")
    if done is not None:
        if done["figures"]["wish"] != asked:
            raise UsageError(f"{folder} holds another sample ({done['figures']['wish']}). Name another --out.")
        return
    cleaning = cleaning_of(config.source, load_scheme(config.labels.scheme))
    sample, left_out = draw_sample(log, wish, cleaning)
    write_table(folder / SAMPLE, sample)
    pairs = stage_folder(config, folder, find_stage("pairs", stages_of(config)))
    write_table(pairs.path / "pairs.parquet", read_table(folder / SAMPLE).select(PAIR.names).cast(PAIR))
    pairs.finish({"pairs": len(sample), **left_out}, {"wish": asked})
    said = ", ".join(f"{reason} {count:,}" for reason, count in left_out.items())
    console().print(f"{len(sample):,} pairs ({said})", highlight=False)


def refuse_worse(run_dir: Path, export_dir: Path, wish: Wish) -> None:
    """Compare an export with the one that the service on the connected Ray answers with, by the teacher's votes.

    Raises:
        UserError: it agrees with the teacher less often, with confidence; or the service keeps no answers, or as
            `judge_sample` does.
    """
    settings, before = running_export()
    if settings.answer_log is None:
        raise UserError("--judge: the service keeps no answers (serve.answer_log), so there is nothing to judge.")
    check_exports(export_dir, settings)
    folder = run_dir / "watch" / wish.seed
    config = judge_sample(run_dir, settings.answer_log.folder, folder, wish)
    found = compared(folder, before, export_dir, load_scheme(config.labels.scheme), config.seed)
    if not found["pairs"]:
        raise UserError(f"--judge: the teacher has judged none of the pairs in {folder}.")
    points, ends = signed(found["difference"]), f"{signed(found['low'], '')} to {signed(found['high'])}"
    said = f"{points} against {before} by the teacher's votes on {found['pairs']:,} pairs (95 % interval {ends})"
    if found["high"] < 0:
        raise UserError(f"{export_dir} was not rolled in: {said}. If that is meant, roll without --judge.")
    console().print(f"{export_dir}: {said}", highlight=False)
