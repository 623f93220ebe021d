"""Figures of one replica in Prometheus form, and those of several replicas joined.

Ray Serve counts requests and batches per replica at Ray's own metrics port. Counted here is what it cannot know: pairs,
the time in our queue and in the model, hits of the cache, and errors by kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import cast

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
PAIRS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
disable_created_metrics()  # it would be a second series per figure, which nobody reads


class Metrics:
    """The figures of one replica; each series carries the replica's name."""

    def __init__(self, replica: str = "local") -> None:
        self.registry, self.replica = CollectorRegistry(), replica
        self._queues: list[Callable[[], int]] = []
        self._requests = self._counter("requests", "answered requests", "path", "status")
        self._errors = self._counter("errors", "refusals and faults by kind", "kind")
        self._seconds = Histogram(
            "broadfast_request_seconds", "time of a request in the replica", ("replica", "path"),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.pairs = self._counter("pairs", "pairs that were answered").labels(replica)
        self.cache_hits = self._counter("cache_hits", "pairs answered from the cache").labels(replica)
        self.cache_misses = self._counter("cache_misses", "pairs that were not in the cache").labels(replica)
        self.queue_seconds = self._histogram("queue_seconds", "time of a request before the model took it", SECONDS)
        self.batch_pairs = self._histogram("batch_pairs", "pairs of one batch", PAIRS)
        self.model_seconds = self._histogram("model_seconds", "time of one batch in the model", SECONDS)
        gauge = Gauge("broadfast_waiting_requests", "requests in the queue now", ("replica",), registry=self.registry)
        gauge.labels(replica).set_function(lambda: sum(count() for count in self._queues))

        about = "exposures that wait to be written, and those that were lost because they could not be written"
        self._exposures = Gauge("broadfast_exposures", about, ("replica", "state"), registry=self.registry)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"broadfast_{name}", about, ("replica", *labels), registry=self.registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        full = Histogram(f"broadfast_{name}", about, ("replica",), buckets=buckets, registry=self.registry)
        return full.labels(self.replica)

    def watch_waiting(self, count: Callable[[], int]) -> None:
        """Add the length of one more queue to the waiting requests; it is read whenever somebody asks."""
        self._queues.append(count)

    def forget_waiting(self, count: Callable[[], int]) -> None:
        """Leave that queue out from now on."""
        self._queues.remove(count)

    def answered(self, path: str, status: int, seconds: float, kind: str | None) -> None:
        """Count one request by the template of its path and its status, and by the kind of its error if it failed."""
        self._requests.labels(self.replica, path, str(status)).inc()
        self._seconds.labels(self.replica, path).observe(seconds)
        if kind:
            self._errors.labels(self.replica, kind).inc()

    def shadow_refused(self) -> None:
        """Count a request that a shadow arm did not score."""
        self._errors.labels(self.replica, "shadow_refused").inc()

    def watch_exposures(self, waiting: Callable[[], int], lost: Callable[[], int]) -> None:
        """Read how many exposures wait to be written and how many were lost; the newest experiment replaces others."""
        self._exposures.labels(self.replica, "waiting").set_function(waiting)
        self._exposures.labels(self.replica, "lost").set_function(lost)

    def text(self) -> str:
        """Return everything in the text form of Prometheus."""
        return generate_latest(self.registry).decode()


def joined(texts: Iterable[str]) -> str:
    """Join the texts of several replicas: each family once, with the samples of all."""
    families: dict[str, Metric] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            families[family.name].samples.extend(family.samples)
    return generate_latest(cast(Collector, SimpleNamespace(collect=families.values))).decode()
