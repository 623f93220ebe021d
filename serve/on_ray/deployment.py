"""The Ray Serve deployment: one replica holds one student, or those of an experiment.

Admission, deadline and refusals are the replica's own work, not that of Serve's proxy. So every refusal is a problem
document, and no request has to go on to a second deployment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve as ray_serve
from ray.serve import Application
from ray.serve import metrics as ray_metrics
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import LoggingConfig

from cluster.base.ray_internals import with_version
from cluster.base.stage_folder import digest
from serve.config import ServeSettings
from serve.http.bearer_tokens import NO_TOKENS, Tokens
from serve.http.metrics import Metrics
from serve.http.routes import make_api
from serve.replica.model_swap import SwappingService

APP_NAME, DEPLOYMENT = "broadfast", "student"
# A child of Serve's own logger, so that it writes into the replica's log.
ACCESS_LOG = "ray.serve.access"
log = logging.getLogger("ray.serve")
HEALTH_CHECK_S = 2.0  # with Ray Serve's 10, a dead replica would stay that long


@dataclass(frozen=True)
class ReplicaState:
    """The export that a replica has loaded, and one that it is loading or has refused since."""

    replica: str
    export_dir: str
    loading: str | None = None
    refused: str | None = None


class StudentDeployment(SwappingService):
    """A replica, which speaks HTTP through Ray Serve and loads the export that its `user_config` names."""

    def __init__(self, settings: ServeSettings, tokens: Tokens):
        super().__init__(settings, Metrics(ray_serve.get_replica_context().replica_tag, ray_metrics))
        self.tokens = tokens
        self.loading: str | None = None
        self.refused: str | None = None
        self.roll: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        access = logging.getLogger(ACCESS_LOG) if self.settings.access_log else None
        return make_api(self, self.settings, self.tokens, access)

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Load an export. Ray Serve calls this at the start and whenever `export_dir` has changed.

        The first export must load, and this waits for it. A later one is loaded in the background, because Ray Serve
        sends a replica no request until this returns. If it does not load, the replica keeps what it has and says so.
        """
        export_dir = Path(config["export_dir"])
        if self.loaded is None:
            await self.load(export_dir)
            return
        self.loading, self.refused = str(export_dir), None
        self.roll = asyncio.create_task(self._roll(export_dir, config["allow_change"], self.roll))

    async def _roll(self, export_dir: Path, allow_change: bool, before: asyncio.Task[None] | None) -> None:
        try:
            if before:
                await asyncio.wait([before])
            if (
                self.current.export_dir != export_dir
            ):  # they are equal where a replica is sent back to what it never left
                await self.load(export_dir, allow_change)
            log.info("%s answers from now on", export_dir)
        except Exception as error:
            self.refused = f"{type(error).__name__}: {error}"
            log.error(
                "%s was not rolled in, so %s continues to answer: %s", export_dir, self.current.export_dir, self.refused
            )
        finally:
            if self.loading == str(export_dir):
                self.loading = None

    async def __del__(self) -> None:
        """Close. Ray Serve calls this once the replica has answered everything."""
        if getattr(self, "loaded", None):  # a replica that failed to load has none
            try:
                await self.close()
            except Exception as error:
                log.error("not everything was written: %s", error)
                raise

    async def check_health(self) -> None:
        """Raise where the model is broken. Ray Serve replaces a replica where this raises three times in a row."""
        if wrong := self.wrong():
            raise RuntimeError(wrong)

    def state(self) -> ReplicaState:
        """Return what this replica has loaded."""
        loaded = str(self.current.export_dir)
        return ReplicaState(ray_serve.get_replica_context().replica_tag, loaded, self.loading, self.refused)

    def deployed(self) -> tuple[ServeSettings, Tokens]:
        """Return what this replica was started with besides its export."""
        return self.settings, self.tokens


def build_app(
    export_dir: Path, settings: ServeSettings, tokens: Tokens = NO_TOKENS, allow_change: bool = False
) -> Application:
    """Return the Serve application for one export folder.

    Args:
        tokens: digests of the tokens that are accepted; without any, no token is needed.
        allow_change: running replicas take the export even if its answers have another form than those before.
    """
    settings = with_whole_paths(settings)
    deployment: Any = ray_serve.deployment(
        ray_serve.ingress()(StudentDeployment),
        name=DEPLOYMENT,
        max_ongoing_requests=settings.max_ongoing_requests,
        graceful_shutdown_timeout_s=settings.drained_within_s,
        health_check_period_s=HEALTH_CHECK_S,
        user_config={"export_dir": str(export_dir), "allow_change": allow_change},
        logging_config=LoggingConfig(
            enable_access_log=False,  # our own log says more
            encoding="JSON" if settings.access_log else "TEXT",
            logs_dir=str(settings.log_folder) if settings.log_folder else None,
        ),
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.replicas.min,
            max_replicas=settings.replicas.max,
            target_ongoing_requests=settings.replicas.target_ongoing,
            upscale_delay_s=settings.replicas.up_after_s,
            downscale_delay_s=settings.replicas.down_after_s,
        ),
    )
    # Ray Serve starts new replicas for a new version, which is random by default. Here the version depends only on what
    # a replica cannot change while it runs, so that the running replicas load a new export.
    version = digest(
        [
            settings.model_dump(mode="json"),
            [token.hex() for token in tokens.asking],
            [token.hex() for token in tokens.scraping],
        ]
    )
    return with_version(deployment, version).bind(settings, tokens)


def with_whole_paths(settings: ServeSettings) -> ServeSettings:
    """Return the settings with absolute folders, because a replica works in a folder of Ray's."""
    if settings.log_folder:
        settings = settings.model_copy(update={"log_folder": settings.log_folder.resolve()})
    if log := settings.answer_log:
        settings = settings.model_copy(update={"answer_log": log.model_copy(update={"folder": log.folder.resolve()})})
    experiment = settings.experiment
    if experiment is None:
        return settings
    arms = tuple(arm.model_copy(update={"export": str(Path(arm.export).resolve())}) for arm in experiment.arms)
    whole = experiment.model_copy(update={"arms": arms, "folder": experiment.folder.resolve()})
    return settings.model_copy(update={"experiment": whole})
