"""What stages take of the cluster, compared with what its nodes have before a model loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.base.errors import UserError
from mpcot.config import VllmEngine
from workflows.config import RunConfig
from workflows.stages import Need, Stage, asks

Nodes = Sequence[Mapping[str, float]]  # what each node has, by Ray's names


def check_resources(config: RunConfig, stages: Sequence[Stage], nodes: Nodes) -> None:
    """Refuse stages for which Ray would wait for ever.

    Raises:
        UserError: a stage asks for more than there is, or one of its engines or workers fits on no node.
    """
    for stage in stages:
        if problem := lacking(config, stage, nodes):
            raise UserError(problem)


def lacking(config: RunConfig, stage: Stage, nodes: Nodes) -> str | None:
    """Return why the stage finds no room on the nodes, with the way out, or None if it does."""
    need = stage.need(config)
    for kind, asked in (("CPU", need.cpus), ("GPU", need.gpus)):
        if asked > (have := sum(node.get(kind, 0) for node in nodes)):
            more = "raise cluster.num_cpus" if kind == "CPU" else "use more GPUs"
            return (
                f"{stage.name} asks for {asked:g} {kind}s and the cluster has {have:g}. Lower its workers or replicas, "
                f"or {more}."
            )
    if (room := sum(_places(need, node) for node in nodes)) >= need.count:
        return None
    one = "engine" if asks(config, stage) else "worker"
    each = f"{need.gpus / need.count:g} GPUs and {need.cpus / need.count:g} CPUs"
    if room:
        return (
            f"{stage.name} asks for {need.count} {one}s of {each} each, and the nodes have room for {room}, since none "
            f"is divided among nodes. Lower the number of {one}s, or what each takes."
        )
    way_out = f"Lower what each {one} takes."
    if one == "engine" and isinstance(config.engine, VllmEngine) and config.engine.tensor_parallel > 1:
        way_out = (
            "Lower engine.tensor_parallel to the GPUs of a node, and raise engine.replicas for more engines (data "
            "parallel). A model that needs more GPUs than a node has is divided among nodes by `vllm serve` with "
            "--pipeline-parallel-size, and asked behind its address (engine.kind 'openai')."
        )
    return f"{stage.name}: a single {one} takes {each}, and no node has as many; none is divided among nodes. {way_out}"


def _places(need: Need, node: Mapping[str, float]) -> int:
    """Return how many of the stage's engines or workers the node has room for."""
    kinds = {"CPU": need.cpus / need.count, "GPU": need.gpus / need.count}
    return min(int(node.get(kind, 0) // each) for kind, each in kinds.items() if each)
