"""What a run asks of an engine behind an address: estimates before it runs, and offline batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from cluster.base.errors import UsageError, UserError
from cluster.base.run_folder import finished_stage, saved_config
from cluster.base.stage_folder import read_manifest
from mpcot.asking.address.batch import BatchRead, read_batch, write_batch
from mpcot.asking.address.estimate import estimate
from mpcot.asking.engines.config import OpenAiEngine
from mpcot.asking.generate import select_pairs
from mpcot.asking.plan import GenerationPlan
from mpcot.config import AskingStage
from mpcot.given import Given
from mpcot.pairs.given_judgements import GIVEN
from workflows.config import RunConfig, validate
from workflows.runner import locked
from workflows.stages import Stage, asks, stage_asks, stages_of

PAIRS = Path("1-pairs") / "pairs.parquet"


def generation_plan(config: RunConfig, stage: Stage) -> GenerationPlan:
    """Return what a stage asks. `teacher.model` may name a tokenizer."""
    settings = stage.settings(config)
    assert isinstance(settings, AskingStage)
    return GenerationPlan.of(settings, config.teacher.model, stage_asks(config, stage))


def _pairs_to_ask(config: RunConfig, run_dir: Path, stage: Stage) -> Iterator[pa.RecordBatch]:
    """Yield the pairs that a stage asks about."""
    pairs = select_pairs(run_dir / PAIRS, stage_asks(config, stage))
    if stage.short != "judgements":
        return pairs
    return Given(run_dir / "1-pairs" / GIVEN, config.perspectives.names).to_ask(pairs)


def estimates(config: RunConfig, run_dir: Path, stages: Sequence[Stage]) -> Iterator[str]:
    """Yield a line for each of the stages that has still to ask an engine behind an address."""
    if not isinstance(config.engine, OpenAiEngine):
        return
    for stage in stages:
        if not asks(config, stage) or read_manifest(run_dir / stage.name):
            continue
        if not (run_dir / PAIRS).exists():
            yield f"{stage.name}: tokens and money are estimated once there are pairs (--to pairs)"
            continue
        plan = generation_plan(config, stage)
        pairs = _pairs_to_ask(config, run_dir, stage)
        yield f"{stage.name}: {estimate(plan, pairs, run_dir / stage.name).said()}"


def _waiting_stage(run_dir: Path) -> tuple[RunConfig, Stage]:
    """Return the config of a run and the first of its stages that has still to ask.

    Raises:
        UserError: its engine is not behind an address.
        UsageError: this is not a run folder, a stage before has not finished, or nothing is left to ask.
    """
    config = validate(saved_config(run_dir), str(run_dir / "config.json"))
    if not isinstance(config.engine, OpenAiEngine):
        raise UserError(f"engine.kind {config.engine.kind!r}: batches are for engine.kind 'openai'.")
    stage = next(
        (one for one in stages_of(config) if asks(config, one) and read_manifest(run_dir / one.name) is None), None
    )
    if stage is None:
        raise UsageError(f"{run_dir}: every stage that asks has finished, nothing is left for a batch.")
    for name in stage.reads:
        finished_stage(run_dir, name, name.partition("-")[2])
    return config, stage


def write_requests(run_dir: Path, target: Path | None) -> tuple[str, dict[Path, int]]:
    """Write the requests that the next stage of a run lacks; return an estimate, and how many are in each file.

    Raises:
        UserError: the run has no stage that waits for answers, or the files cannot be written.
    """
    config, stage = _waiting_stage(run_dir)
    plan, pairs = generation_plan(config, stage), _pairs_to_ask(config, run_dir, stage)
    target = target or run_dir / "batches" / f"{stage.name}.jsonl"
    found, files = write_batch(plan, pairs, run_dir / stage.name, target)
    return f"{stage.name}: {found.said()}", files


def read_answers(run_dir: Path, file: Path) -> tuple[str, BatchRead]:
    """Take the answers of a file into the next stage of a run.

    Raises:
        UserError: as `write_requests`, or the file is not one of this stage's.
    """
    config, stage = _waiting_stage(run_dir)
    plan = generation_plan(config, stage)
    with locked(run_dir):
        return stage.name, read_batch(plan, _pairs_to_ask(config, run_dir, stage), run_dir / stage.name, file)
