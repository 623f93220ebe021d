"""Figures of one replica in Prometheus form, which a replica also reports through Ray, for the whole cluster.

Ray Serve counts requests and batches per replica itself. Counted here is what it cannot know: pairs, the time in our
queue and in the model, hits of the cache, and refusals and errors by kind. `/metrics` shows those of the replica that
answers; Ray's own metrics ports show those of all, each with the prefix `ray_`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from serve.http.schemas import DriftReport

if TYPE_CHECKING:
    from serve.watching.window import DriftWindow

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
PAIRS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
DRIFT_PSI, DRIFT_PAIRS = "broadfast_drift_psi", "broadfast_drift_pairs"
ABOUT_PSI = "population stability index of the latest scored pairs beside the dev split"
ABOUT_PAIRS = "latest scored pairs that are compared with the dev split"
DRIFT_EVERY_S = 10.0  # how often the drift is reported through Ray
FIRST_FAULT = 500  # the first status that is the service's own fault
disable_created_metrics()  # it would be a second series per figure, which nobody reads


@dataclass(frozen=True)
class Series:
    """A counter or a histogram, kept here and, in a replica, reported through Ray as well."""

    own: Any
    through_ray: Any = None
    names: Sequence[str] = ()
    values: Mapping[str, str] = field(default_factory=dict)

    def labels(self, *values: str) -> Series:
        """Return the series with these values of its labels, in their order; Ray Serve adds that of the replica."""
        told = dict(zip(self.names[1:], values[1:], strict=True))
        return Series(self.own.labels(*values), self.through_ray, (), told)

    def inc(self, amount: float = 1) -> None:
        """Count so many more."""
        self.own.inc(amount)
        if self.through_ray and amount:  # Ray refuses to add nothing
            self.through_ray.inc(amount, tags=self.values)

    def observe(self, value: float) -> None:
        """Count one more value."""
        self.own.observe(value)
        if self.through_ray:
            self.through_ray.observe(value, tags=self.values)


@dataclass(frozen=True)
class ModelFigures:
    """The figures of one model: of a replica's export, or of an arm's."""

    pairs: Series
    cache_hits: Series
    cache_misses: Series
    queue_seconds: Series
    batch_pairs: Series
    model_seconds: Series


class Drifts(Collector):
    """The drift of each model that the replica has loaded, compared whenever somebody asks."""

    def __init__(self, replica: str, ray_metrics: Any) -> None:
        self.replica, self.told = replica, -DRIFT_EVERY_S
        self.windows: list[DriftWindow] = []
        keys = {DRIFT_PSI: ("model", "quantity"), DRIFT_PAIRS: ("model",)}
        abouts = {DRIFT_PSI: ABOUT_PSI, DRIFT_PAIRS: ABOUT_PAIRS}
        self.rays = ray_metrics and {n: ray_metrics.Gauge(n, abouts[n], tag_keys=keys[n]) for n in keys}

    def report(self) -> DriftReport:
        """Return the drift of all models; of one that is loaded twice, as during a roll, that of the latest."""
        latest = {window.model: window for window in self.windows}
        return DriftReport(replica=self.replica, models=[window.drift() for window in latest.values()])

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the two gauges, for Prometheus."""
        psi = GaugeMetricFamily(DRIFT_PSI, ABOUT_PSI, labels=("replica", "model", "quantity"))
        pairs = GaugeMetricFamily(DRIFT_PAIRS, ABOUT_PAIRS, labels=("replica", "model"))
        for found in self.report().models:
            pairs.add_metric((self.replica, found.model), found.pairs)
            for one in found.quantities:
                if one.psi is not None:
                    psi.add_metric((self.replica, found.model, one.quantity), one.psi)
        yield from (psi, pairs)

    def forget(self, window: DriftWindow) -> None:
        """Leave a model out that leaves. Ray keeps the last value of a gauge, so it is told of no pairs and no PSI."""
        self.windows.remove(window)
        if self.rays and all(other.model != window.model for other in self.windows):
            self.rays[DRIFT_PAIRS].set(0, tags={"model": window.model})
            for name in window.edges:
                self.rays[DRIFT_PSI].set(math.nan, tags={"model": window.model, "quantity": name})

    def tell_ray(self) -> None:
        """Report the gauges through Ray, unless that was done a moment ago."""
        if self.rays and time.monotonic() - self.told >= DRIFT_EVERY_S:
            self.told = time.monotonic()
            for family in self.collect():
                for sample in family.samples:
                    tags = {name: value for name, value in sample.labels.items() if name != "replica"}
                    self.rays[family.name].set(sample.value, tags=tags)


class Metrics:
    """The figures of one replica; each series carries the replica's name.

    Args:
        ray_metrics: the module `ray.serve.metrics` in a replica, which reports what is counted through Ray too.
    """

    def __init__(self, replica: str = "local", ray_metrics: Any = None) -> None:
        self.registry, self.replica, self.ray_metrics = CollectorRegistry(), replica, ray_metrics
        self._queues: list[Callable[[], int]] = []
        self._requests = self._counter("requests", "answered requests", "path", "status")
        self._errors = self._counter("errors", "answers with a status of 500 and more, by kind", "kind")
        self._refusals = self._counter("refusals", "answers with a status of 400 to 499, by kind", "kind")
        self._seconds = self._histogram("request_seconds", "time of a request in the replica", SECONDS, "path")
        self._pairs = self._counter("pairs", "pairs that were answered", "model")
        self._hits = self._counter("cache_hits", "pairs answered from the cache", "model")
        self._misses = self._counter("cache_misses", "pairs that were not in the cache", "model")
        self._queue_seconds = self._histogram(
            "queue_seconds", "time of a request before the model took it", SECONDS, "model"
        )
        self._batch_pairs = self._histogram("batch_pairs", "pairs of one batch", PAIRS, "model")
        self._model_seconds = self._histogram("model_seconds", "time of one batch in the model", SECONDS, "model")
        self._arms = self._counter("arm_requests", "requests that an arm scored", "arm", "model", "shadow")
        self._skipped = self._counter("shadow_skipped", "requests that a shadow arm did not score", "arm")
        lost = self._counter("exposures_lost", "exposures that were lost because they could not be written")
        self.exposures_lost = lost.labels(replica)
        lost = self._counter("answers_lost", "answers of the log that were lost because they could not be written")
        self.answers_lost = lost.labels(replica)
        self._waiting_exposures = self._gauge("exposures_waiting", "exposures that wait to be written")
        self.drifts = Drifts(replica, ray_metrics)
        self.registry.register(self.drifts)
        self._gauge("waiting_requests", "requests in the queue now").set_function(
            lambda: sum(count() for count in self._queues)
        )

    def _counter(self, name: str, about: str, *labels: str) -> Series:
        names, full = ("replica", *labels), f"broadfast_{name}"
        rays = self.ray_metrics and self.ray_metrics.Counter(f"{full}_total", about, tag_keys=labels)
        return Series(Counter(full, about, names, registry=self.registry), rays, names)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Series:
        names, full = ("replica", *labels), f"broadfast_{name}"
        rays = self.ray_metrics and self.ray_metrics.Histogram(full, about, boundaries=list(buckets), tag_keys=labels)
        return Series(Histogram(full, about, names, buckets=buckets, registry=self.registry), rays, names)

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(f"broadfast_{name}", about, ("replica",), registry=self.registry).labels(self.replica)

    def of_model(self, model: str) -> ModelFigures:
        """Return the figures of one model; one that is loaded again goes on with those that it had."""
        every = self._pairs, self._hits, self._misses, self._queue_seconds, self._batch_pairs, self._model_seconds
        return ModelFigures(*(one.labels(self.replica, model) for one in every))

    def watch_waiting(self, count: Callable[[], int]) -> None:
        """Add the length of one more queue to the waiting requests; it is read whenever somebody asks."""
        self._queues.append(count)

    def forget_waiting(self, count: Callable[[], int]) -> None:
        """Leave that queue out from now on."""
        self._queues.remove(count)

    def answered(self, path: str, status: int, seconds: float, kind: str | None) -> None:
        """Count one request by the template of its path and its status, and by the kind of its refusal or error."""
        self._requests.labels(self.replica, path, str(status)).inc()
        self._seconds.labels(self.replica, path).observe(seconds)
        if kind:
            (self._errors if status >= FIRST_FAULT else self._refusals).labels(self.replica, kind).inc()

    def scored_by(self, arm: str, model: str, shadow: bool) -> None:
        """Count a request that an arm of an experiment scored."""
        self._arms.labels(self.replica, arm, model, str(shadow).lower()).inc()

    def shadow_skipped(self, arm: str) -> None:
        """Count a request that a shadow arm did not score."""
        self._skipped.labels(self.replica, arm).inc()

    def watch_exposures(self, waiting: Callable[[], int]) -> None:
        """Read how many exposures wait to be written; the newest experiment replaces others."""
        self._waiting_exposures.set_function(waiting)

    def text(self) -> str:
        """Return everything in the text form of Prometheus."""
        return generate_latest(self.registry).decode()
