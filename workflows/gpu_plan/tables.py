"""What `broadfast plan` prints: memory per GPU, work and hours, the formulas, and what does not fit."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Column, Table

from cluster.base.errors import UserError
from cluster.base.progress import console
from cluster.gpus.memory import GB, RESERVE, find_gpu
from cluster.gpus.speed import formulas
from mpcot.asking.engines.config import OpenAiEngine
from workflows.config import RunConfig
from workflows.dry_run import marked
from workflows.gpu_plan.plan import Fleet, StagePlan, plan_stages
from workflows.gpu_plan.work import billed
from workflows.stages import Stage, asks, stage_asks

MEMORY = (
    "memory: weights = parameters x bytes; optimizer = trained parameters x 12 (8 in fp32) and gradients = trained "
    "parameters x bytes, divided as ZeRO does; KV cache = what is left; activations = about tokens x width x layers x "
    f"34 (with recomputation 2, and one whole layer) + logits x 10; {RESERVE / GB:g} GB are kept in reserve"
)


def print_gpu_plan(
    config: RunConfig, stages: Sequence[Stage], gpu: str, nodes: int, gpus_per_node: int, pairs: int
) -> None:
    """Print the plan of the stages to which the config gives GPUs; no model is loaded and no cluster is asked.

    Raises:
        UserError: something does not fit, which is said with the way out, or no stage takes a GPU.
        UsageError: the table does not contain the GPU.
    """
    fleet = Fleet(find_gpu(gpu), nodes, gpus_per_node, pairs)
    for stage in stages:
        if asks(config, stage) and isinstance(config.engine, OpenAiEngine):
            said = billed(config, stage_asks(config, stage), pairs).said()
            console().print(f"{stage.name}: {said}", highlight=False)
    plans = plan_stages(config, fleet, stages)
    if not plans:
        raise UserError(
            "no stage of this config takes a GPU: set gpus_per_worker and engine.replicas.gpus, or use --dry-run"
        )
    title = f"{config.name} on {nodes} nodes of {gpus_per_node} {gpu}, {pairs:,} pairs"
    console().print(memory_table(plans, fleet, title), time_table(plans))
    for plan in plans:
        if plan.note:
            console().print(f"{plan.stage}: {plan.note}", highlight=False)
    for line in (MEMORY, *formulas(fleet.gpu)):
        console().print(f"[dim]{line}[/dim]", highlight=False)
    if wrong := [f"{plan.stage}: {plan.problem}." for plan in plans if plan.problem]:
        raise UserError("this cannot fit:\n" + "\n".join(wrong))
    hours = sum(plan.hours or 0 for plan in plans)
    console().print(
        f"about {hours:,.1f} hours, from assumed shares of the data sheets' figures; measure before you buy"
    )


def _stages() -> Column:
    return Column("stage", no_wrap=True)  # a new one for each table, which writes its cells into it


def memory_table(plans: Sequence[StagePlan], fleet: Fleet, title: str) -> Table:
    """Return what each stage keeps on one GPU, in GB."""
    table = Table(_stages(), "weights", "optimizer", "gradients", "KV cache", "activations", "GB", title=title)
    for plan in plans:
        held = plan.memory
        parts = (held.weights, held.optimizer, held.gradients, held.kv_cache, held.activations)
        total = marked(round(held.total / GB, 1), fleet.gpu.memory_gb)
        table.add_row(plan.stage, *(f"{part / GB:.1f}" if part else "" for part in parts), total)
    return table


def time_table(plans: Sequence[StagePlan]) -> Table:
    """Return the work of each stage, its tokens per second over all GPUs, and its hours."""
    table = Table(_stages(), "placed", "work", "tokens/s", "hours")
    for plan in plans:
        speed = "" if plan.tokens_per_s is None else f"{plan.tokens_per_s:,.0f}"
        hours = "" if plan.hours is None else f"{plan.hours:,.1f}"
        table.add_row(plan.stage, f"{plan.copies} x {plan.each:g} GPU", plan.work, speed, hours)
    return table
