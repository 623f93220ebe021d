"""Settings of the service. Imports nothing heavy; a combination that cannot work is refused here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cluster.config import Resources
from serve.experiments.config import ExperimentSettings

Ingress = Literal["ray", "haproxy"]


class BatchSettings(Resources):
    """Dynamic batching across requests, and how a batch is cut for the model."""

    max_batch_pairs: PositiveInt = Field(256, description="pairs scored in one call, from any number of requests")
    batch_wait_ms: NonNegativeFloat = Field(2.0, description="how long a batch waits for company")
    max_batch_tokens: PositiveInt | None = Field(
        None,
        description="padded tokens of one forward pass; empty takes 1024 on a processor, whose caches hold those, and"
        " 16384 on a GPU",
    )


class ReplicaSettings(Resources):
    """Autoscaling: Ray Serve adds replicas while each holds more than `target_ongoing` requests."""

    min: PositiveInt = Field(1, description="replicas at the least")
    max: PositiveInt = Field(1, description="replicas at the most")
    target_ongoing: PositiveFloat = Field(8.0, description="requests per replica that autoscaling aims at")
    up_after_s: NonNegativeFloat = Field(30.0, description="how long there must be too many before one is added")
    down_after_s: NonNegativeFloat = Field(600.0, description="how long there must be too few before one goes")

    @model_validator(mode="after")
    def _check(self) -> ReplicaSettings:
        if self.max < self.min:
            raise ValueError(f"serve.replicas.max is {self.max}, below min {self.min}: raise max")
        return self


class LimitSettings(Resources):
    """Bounds on one request. Past one, the answer names it: 413 or, where it is late, 503 for the body, else 422."""

    products_per_request: PositiveInt = Field(200, description="products or documents")
    id_chars: PositiveInt = Field(256, description="characters of a product's id")
    query_chars: PositiveInt = Field(1_000, description="characters of the query")
    title_chars: PositiveInt = Field(4_000, description="characters of a title, or of a brand")
    description_chars: PositiveInt = Field(20_000, description="characters of a description")
    document_chars: PositiveInt = Field(20_000, description="a text or title of `/v1/rerank`")
    body_bytes: PositiveInt = Field(4 * 2**20, description="bytes of the body")
    body_seconds: PositiveFloat = Field(10.0, description="how long the body of a request may take to arrive")


class AuthSettings(Resources):
    """Bearer tokens, read once at the start. With neither source set, everybody may ask."""

    tokens_file: Path | None = Field(None, description="a file of tokens, one per line")
    tokens_env: str | None = Field(None, description="the name of an environment variable that holds tokens")


class CacheSettings(Resources):
    """Scores of a query with a product that are kept in a replica. Off unless a size is set."""

    max_pairs: NonNegativeInt = Field(0, description="pairs to keep, the longest unused go first; 0 keeps none")
    max_age_s: PositiveFloat = Field(300.0, description="how long a score is kept")


class ServeSettings(Resources):
    """The service: where it listens, how it batches, scales and protects itself."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 is all")
    port: int = Field(8000, ge=1, le=65_535, description="of the service")
    ingress: Ingress = Field(
        "ray",
        description="what takes requests in: Ray Serve's own proxy, or HAProxy, which costs less per request but opens"
        " the replicas' own ports on all interfaces",
    )
    batch: BatchSettings = BatchSettings()
    max_queued_requests: NonNegativeInt = Field(
        128, description="requests a replica lets wait for the model; past it 503 at once"
    )
    max_ongoing_requests: PositiveInt = Field(512, description="requests Ray Serve hands a replica at once")
    replicas: ReplicaSettings = ReplicaSettings()
    limits: LimitSettings = LimitSettings()
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of the encoder; auto is bf16 where the hardware multiplies it"
    )
    kept_products: NonNegativeInt = Field(
        50_000, description="product texts whose tokens are kept in a replica; 0 keeps none"
    )
    threads: PositiveInt | None = Field(None, description="CPU threads of the model; empty takes cpus_per_replica")
    cpus_per_replica: NonNegativeFloat = Field(1.0, description="threads of each, too")
    gpus_per_replica: NonNegativeFloat = Field(0.0, description="0 scores on CPUs")
    request_timeout_s: PositiveFloat = Field(30.0, description="deadline of a request; past it 503")
    auth: AuthSettings = AuthSettings()
    cache: CacheSettings = CacheSettings()
    experiment: ExperimentSettings | None = Field(None, description="named arms over exports; empty deals nobody")
    access_log: bool = Field(False, description="one JSON line per request: id, path, status, time, pairs")
    log_queries: bool = Field(False, description="put the query into that line, too")
    log_folder: Path | None = Field(None, description="where replicas log; empty is Ray's folder of logs")
    drain_s: PositiveFloat | None = Field(
        None, description="how long a stopping replica may finish what it has; empty is 5 s over request_timeout_s"
    )

    @model_validator(mode="after")
    def _check(self) -> ServeSettings:
        held = self.batch.max_batch_pairs + self.max_queued_requests
        if self.max_ongoing_requests < held:
            raise ValueError(
                f"serve.max_ongoing_requests is {self.max_ongoing_requests}: Ray Serve would hand a replica too few"
                f" requests to fill a batch. Set at least batch.max_batch_pairs + max_queued_requests = {held}"
            )
        if self.limits.products_per_request > self.batch.max_batch_pairs:
            raise ValueError(
                f"serve.limits.products_per_request is {self.limits.products_per_request}, more than"
                f" serve.batch.max_batch_pairs {self.batch.max_batch_pairs}: one request must fit one batch"
            )
        return self

    @model_validator(mode="after")
    def _check_log(self) -> ServeSettings:
        if self.log_queries and not self.access_log:
            raise ValueError("serve.log_queries has no effect without serve.access_log: set that to true, too")
        return self

    @property
    def drained_within_s(self) -> float:
        """Seconds after which a stopping replica is ended. A request that was taken ends before by its own deadline."""
        return self.drain_s or self.request_timeout_s + 5

    @property
    def model_threads(self) -> int:
        """CPU threads of one replica's model."""
        return self.threads or max(1, int(self.cpus_per_replica))
