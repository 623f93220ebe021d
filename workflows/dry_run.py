"""What `--dry-run` prints: which stages would run, with how many rows, and whether the cluster is large enough."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from cluster.base.errors import UserError
from cluster.base.processor import cores
from cluster.base.progress import console
from cluster.base.ray_internals import local_gpus
from cluster.base.ray_session import ray_address, ray_session
from cluster.base.stage_folder import read_manifest
from cluster.config import ClusterSettings
from workflows.behind_address import estimates
from workflows.config import RunConfig
from workflows.resources import Nodes, lacking
from workflows.runner import own_folder
from workflows.stages import Stage


def print_dry_run(config: RunConfig, run_dir: Path, stages: Sequence[Stage], redo: bool = False) -> None:
    """Print the plan as a table, without writing or loading anything; with `redo`, finished stages are made again."""
    nodes = available(config.cluster)
    have = {kind: sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
    table = Table("stage", "reads", "state", "rows", "model", "CPUs", "GPUs", title=f"{config.name} -> {run_dir}")
    for stage in stages:
        need = stage.need(config)
        table.add_row(
            stage.name,
            ", ".join(name.partition("-")[0] for name in stage.reads),
            "again" if redo else state(config, run_dir, stage),
            rows(config, run_dir, stage),
            need.model,
            marked(need.cpus, have["CPU"]),
            marked(need.gpus, have["GPU"]),
        )
    console().print(table)
    for stage in stages:
        if (redo or state(config, run_dir, stage) != "finished") and (problem := lacking(config, stage, nodes)):
            console().print(problem, style="red", highlight=False)
    for line in estimates(config, run_dir, stages):
        console().print(line, highlight=False)
    where = f"the cluster at {config.cluster.address}" if config.cluster.address else "a local Ray"
    console().print(f"{where} has {have['CPU']:g} CPUs and {have['GPU']:g} GPUs")


def available(settings: ClusterSettings) -> Nodes:
    """Return what each node of the cluster has, or this machine where a local Ray would start."""
    if ray_address(settings) is None:
        return [{"CPU": float(settings.num_cpus or len(cores())), "GPU": float(local_gpus())}]
    with ray_session(settings) as nodes:
        return nodes


def marked(count: float, have: float) -> str:
    """Return a number of CPUs or GPUs as text, marked where there are fewer."""
    return f"{count:g}" if count <= have else f"[red]{count:g} of {have:g}[/red]"


def state(config: RunConfig, run_dir: Path, stage: Stage) -> str:
    """Return whether a stage is finished, was finished with other settings, was begun, or is new."""
    folder = run_dir / stage.name
    if read_manifest(folder):
        try:
            own_folder(config, run_dir, stage)
        except UserError:  # the run will refuse it too
            return "[red]other settings[/red]"
        return "finished"
    return "begun" if folder.exists() and any(folder.iterdir()) else "new"


def rows(config: RunConfig, run_dir: Path, stage: Stage) -> str:
    """Return the first count of a finished stage, or what is known beforehand."""
    manifest = read_manifest(run_dir / stage.name)
    if manifest:
        return next((f"{count:,} {name}" for name, count in manifest["counts"].items()), "")
    if stage.short == "pairs":
        from mpcot.pairs.stage import plan_rows
        from mpcot.sources.config import PairsStage

        settings = stage.settings(config)
        assert isinstance(settings, PairsStage)
        known = plan_rows(settings)
        return f"{known:,} pairs" if known is not None else "unknown"
    return "unknown"
