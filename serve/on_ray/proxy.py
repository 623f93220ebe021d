"""The proxy in front of Ray Serve's replicas, which is Ray Serve's own or HAProxy.

Ray Serve reads the choice from the environment when it is imported, so this module does not import Ray Serve.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from cluster.base.errors import UserError
from serve.config import ServeSettings

# https://docs.ray.io/en/master/cluster/kubernetes/user-guides/kuberay-serve-high-throughput.html
HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
# A stopping replica answers for so many more seconds. Ray's 30 are meant for a cloud's load balancer; HAProxy is told
# at once.
DRAIN, DRAIN_S = "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "5"


def ingress_environment(settings: ServeSettings) -> Mapping[str, str]:
    """Return the variables that Ray's environment needs on every node for the ingress in the settings."""
    return HAPROXY | {DRAIN: os.environ.get(DRAIN, DRAIN_S)} if settings.ingress == "haproxy" else {}


def use_ingress(settings: ServeSettings) -> None:
    """Prepare this process and the local Ray that it starts. Call it before anything imports Ray Serve.

    Raises:
        UserError: Ray Serve was imported already, with another environment.
    """
    wanted = ingress_environment(settings)
    if wanted.items() <= os.environ.items():
        return
    if "ray.serve" in sys.modules:
        names = " ".join(f"{name}={value}" for name, value in wanted.items())
        raise UserError(f"serve.ingress {settings.ingress!r}: start this process and its Ray with {names}.")
    os.environ.update(wanted)
