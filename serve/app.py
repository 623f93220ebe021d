"""The Ray Serve deployment: one replica holds one student.

Admission, deadline and refusals happen inside the replica, not in Serve's proxy: every refusal is
a problem document, and no request pays for a hop to a second deployment.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import LoggingConfig

from serve.config import ServeSettings
from serve.experiments.service import ExperimentService, start_experiment
from serve.http import make_api
from serve.metrics import Metrics, joined
from serve.scorer import Scorer
from serve.service import StudentService

APP_NAME, DEPLOYMENT = "broadfast", "student"
# A child of Serve's own logger: it writes where a replica's log goes.
ACCESS_LOG = "ray.serve.access"
METRICS_TIMEOUT_S = 5.0


class StudentDeployment(StudentService):
    """A replica: loads its student, and speaks HTTP through Ray Serve."""

    def __init__(self, export_dir: str, settings: ServeSettings, digests: Sequence[bytes]):
        thread = ThreadPoolExecutor(1, thread_name_prefix="scorer")
        scorer = thread.submit(Scorer.load, Path(export_dir), settings).result()
        super().__init__(scorer, settings, thread, Metrics(ray_serve.get_replica_context().replica_tag))
        self.digests = digests
        self.dealt: ExperimentService | None = None
        if settings.experiment:
            self.dealt = thread.submit(start_experiment, self, Path(export_dir), settings).result()

    def __serve_build_asgi_app__(self) -> FastAPI:
        log = logging.getLogger(ACCESS_LOG) if self.settings.access_log else None
        return make_api(self.dealt or self, self.settings, self.digests, log)

    async def __del__(self) -> None:
        """Ray Serve calls this once the replica has answered what it had."""
        dealt: ExperimentService | None = getattr(self, "dealt", None)  # a replica that failed to load has none
        if dealt:
            await dealt.close()

    def figures(self) -> str:
        """The figures of this replica alone."""
        return self.metrics.text()

    async def exposition(self) -> str:
        """The figures of all replicas; one that does not answer in time is left out."""
        if self.settings.replicas.max == 1:
            return self.figures()
        handle = ray_serve.get_deployment_handle(DEPLOYMENT, APP_NAME)
        asked = handle.broadcast("figures")
        found = await asked.results_async(timeout_s=METRICS_TIMEOUT_S, return_exceptions=True)
        return joined(text for text in found if isinstance(text, str))


def build_app(export_dir: Path, settings: ServeSettings, digests: Sequence[bytes] = ()) -> Application:
    """Return the Serve application for one export folder, open to tokens with these SHA-256 digests, if any."""
    folder = settings.log_folder
    deployment: Any = ray_serve.deployment(
        ray_serve.ingress()(StudentDeployment),
        name=DEPLOYMENT,
        max_ongoing_requests=settings.max_ongoing_requests,
        graceful_shutdown_timeout_s=settings.drain_s,
        logging_config=LoggingConfig(
            enable_access_log=False,  # ours says more
            encoding="JSON" if settings.access_log else "TEXT",
            logs_dir=str(folder.resolve()) if folder else None,
        ),
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.replicas.min,
            max_replicas=settings.replicas.max,
            target_ongoing_requests=settings.replicas.target_ongoing,
        ),
    )
    return deployment.bind(str(export_dir), with_whole_paths(settings), tuple(digests))


def with_whole_paths(settings: ServeSettings) -> ServeSettings:
    """Return the settings with the experiment's folders as seen from here: a replica works in a folder of Ray's."""
    experiment = settings.experiment
    if experiment is None:
        return settings
    arms = tuple(arm.model_copy(update={"export": str(Path(arm.export).resolve())}) for arm in experiment.arms)
    whole = experiment.model_copy(update={"arms": arms, "folder": experiment.folder.resolve()})
    return settings.model_copy(update={"experiment": whole})
