"""Settings of the service. Combinations that cannot work are refused here. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cluster.config import Resources
from serve.experiments.config import ExperimentSettings
from serve.watching.config import AnswerLogSettings

Ingress = Literal["ray", "haproxy"]


class BatchSettings(Resources):
    """Dynamic batching across requests, and how a batch is cut for the model."""

    max_batch_pairs: PositiveInt = Field(256, description="pairs scored in one call, from any number of requests")
    batch_wait_ms: NonNegativeFloat = Field(
        2.0, description="how long a batch waits for more requests while the model is free"
    )
    max_batch_tokens: PositiveInt | None = Field(
        None,
        description="padded tokens of one forward pass; empty takes 1024 on a processor, whose caches hold as many, and"
        " 16384 on a GPU",
    )


class ReplicaSettings(Resources):
    """Autoscaling: Ray Serve adds replicas while each holds more than `target_ongoing` requests."""

    min: PositiveInt = Field(1, description="smallest number of replicas")
    max: PositiveInt = Field(1, description="largest number of replicas")
    target_ongoing: PositiveFloat = Field(8.0, description="requests per replica that autoscaling aims at")
    up_after_s: NonNegativeFloat = Field(
        30.0, description="how long there must be too many requests before a replica is added"
    )
    down_after_s: NonNegativeFloat = Field(
        600.0, description="how long there must be too few requests before a replica is removed"
    )

    @model_validator(mode="after")
    def _check(self) -> ReplicaSettings:
        if self.max < self.min:
            raise ValueError(f"serve.replicas.max is {self.max}, which is below min {self.min}: raise max")
        return self


class LimitSettings(Resources):
    """Bounds on one request. An answer names the bound that was exceeded: 413 or, if late, 408 for a body, else 422."""

    products_per_request: PositiveInt = Field(200, description="number of products or documents")
    id_chars: PositiveInt = Field(256, description="characters of a product's id")
    query_chars: PositiveInt = Field(1_000, description="characters of the query")
    title_chars: PositiveInt = Field(4_000, description="characters of a title, or of a brand")
    description_chars: PositiveInt = Field(
        20_000, description="characters of a description, of the bullet points, or of an attribute"
    )
    attributes: PositiveInt = Field(500, description="number of a product's attributes")
    document_chars: PositiveInt = Field(20_000, description="characters of a text or title in `/v1/rerank`")
    body_bytes: PositiveInt = Field(4 * 2**20, description="bytes of the body")
    body_seconds: PositiveFloat = Field(10.0, description="how long the body of a request may take to arrive")


class AuthSettings(Resources):
    """Bearer tokens, which are read once at the start. Without either source, everybody may ask."""

    tokens_file: Path | None = Field(None, description="file with one token per line")
    tokens_env: str | None = Field(None, description="name of an environment variable that holds tokens")
    scrape_tokens_file: Path | None = Field(
        None, description="the same for tokens that open `/metrics` alone, such as that of Prometheus"
    )
    scrape_tokens_env: str | None = Field(None, description="name of an environment variable that holds such tokens")


class CacheSettings(Resources):
    """Scores of a query with a product that a replica keeps. It keeps none unless a size is set."""

    max_pairs: NonNegativeInt = Field(
        0, description="how many pairs to keep; the least recently used go first, and 0 keeps none"
    )
    max_age_s: PositiveFloat = Field(300.0, description="how long a score is kept")


class ServeSettings(Resources):
    """The service: where it listens, how it batches, scales and protects itself."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 is all")
    port: int = Field(8000, ge=1, le=65_535, description="port to listen on")
    ingress: Ingress = Field(
        "ray",
        description="what accepts requests: Ray Serve's own proxy, or HAProxy, which costs less per request but opens"
        " the replicas' own ports on all interfaces",
    )
    batch: BatchSettings = BatchSettings()
    max_ongoing_requests: PositiveInt = Field(
        1024, description="requests that Ray Serve gives to a replica at the same time"
    )
    replicas: ReplicaSettings = ReplicaSettings()
    limits: LimitSettings = LimitSettings()
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="number format of the encoder; auto is bf16 where the hardware multiplies it"
    )
    kept_products: NonNegativeInt = Field(
        50_000, description="product texts whose tokens a replica keeps; 0 keeps none"
    )
    threads: PositiveInt | None = Field(None, description="CPU threads of the model; empty takes cpus_per_replica")
    cpus_per_replica: NonNegativeFloat = Field(1.0, description="CPUs of a replica, and threads of its model")
    gpus_per_replica: NonNegativeFloat = Field(0.0, description="GPUs of a replica; 0 scores on CPUs")
    request_timeout_s: PositiveFloat = Field(
        2.0,
        description="deadline of a request; past it the answer is 503, and so it is at once where what waits already"
        " takes more than half of this",
    )
    auth: AuthSettings = AuthSettings()
    cors_origins: tuple[str, ...] = Field(
        (), description="origins such as https://shop.example whose pages may ask from a browser; `*` is all"
    )
    cache: CacheSettings = CacheSettings()
    experiment: ExperimentSettings | None = Field(
        None, description="an online experiment that compares exports; empty runs none"
    )
    answer_log: AnswerLogSettings | None = Field(
        None, description="a sample of the answers with their texts, for `broadfast watch`; empty keeps none"
    )
    access_log: bool = Field(False, description="one JSON line per request: id, path, status, time, pairs")
    log_queries: bool = Field(False, description="put the query into that line as well")
    log_folder: Path | None = Field(None, description="folder of the replicas' logs; empty takes Ray's own")
    drain_s: PositiveFloat | None = Field(
        None, description="how long a stopping replica may finish its requests; empty takes request_timeout_s + 5"
    )

    @model_validator(mode="after")
    def _check(self) -> ServeSettings:
        held = 2 * self.batch.max_batch_pairs
        if self.max_ongoing_requests < held:
            raise ValueError(
                f"serve.max_ongoing_requests is {self.max_ongoing_requests}: Ray Serve would hand a replica too few"
                f" requests to fill a batch beside the one that is scored. Set at least 2 x batch.max_batch_pairs ="
                f" {held}"
            )
        if self.limits.products_per_request > self.batch.max_batch_pairs:
            raise ValueError(
                f"serve.limits.products_per_request is {self.limits.products_per_request}, more than"
                f" serve.batch.max_batch_pairs {self.batch.max_batch_pairs}: one request must fit one batch"
            )
        if self.log_queries and not self.access_log:
            raise ValueError("serve.log_queries has no effect without serve.access_log: set that to true as well")
        return self

    @property
    def longest_wait_s(self) -> float:
        """Seconds that a request may wait for its batch, and that a batch of several requests may take."""
        return self.request_timeout_s / 2

    @property
    def drained_within_s(self) -> float:
        """Seconds after which a stopping replica is killed; the deadlines of its requests are shorter."""
        return self.drain_s or self.request_timeout_s + 5

    @property
    def model_threads(self) -> int:
        """CPU threads of the model in one replica."""
        return self.threads or max(1, int(self.cpus_per_replica))
