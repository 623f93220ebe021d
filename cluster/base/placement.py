"""Where Ray puts an actor that a run cannot do without."""

from __future__ import annotations

from typing import Any


def on_this_node() -> dict[str, Any]:
    """Return the options of an actor that takes no CPU and lives on the driver's node, with which the run ends anyway.

    Elsewhere it would be lost with a node that the run could do without.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}
