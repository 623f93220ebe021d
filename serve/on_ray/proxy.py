"""What takes requests in before Ray Serve's replicas: its own proxy, or HAProxy in front of them.

Ray Serve reads these from the environment when it is imported, so this module imports nothing of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from cluster.base.errors import UserError
from serve.config import ServeSettings

# https://docs.ray.io/en/master/cluster/kubernetes/user-guides/kuberay-serve-high-throughput.html
HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
# A replica that goes answers for so many seconds more. Ray's 30 are for a cloud's load balancer; HAProxy hears at once.
DRAIN, DRAIN_S = "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "5"


def ingress_environment(settings: ServeSettings) -> Mapping[str, str]:
    """Return what the environment of Ray, on every node, must hold for the ingress that is set."""
    return HAPROXY | {DRAIN: os.environ.get(DRAIN, DRAIN_S)} if settings.ingress == "haproxy" else {}


def use_ingress(settings: ServeSettings) -> None:
    """Prepare this process and the local Ray that it starts; call it before anything imports Ray Serve.

    Raises:
        UserError: Ray Serve is imported already, with another environment.
    """
    wanted = ingress_environment(settings)
    if wanted.items() <= os.environ.items():
        return
    if "ray.serve" in sys.modules:
        names = " ".join(f"{name}={value}" for name, value in wanted.items())
        raise UserError(f"serve.on_ray.proxy {settings.ingress!r}: start this process and its Ray with {names}.")
    os.environ.update(wanted)
