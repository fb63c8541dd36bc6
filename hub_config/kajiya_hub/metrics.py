"""The numbers of the service for Prometheus: one registry for each application, so that tests never share one."""

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kajiya.types import Ending, Status
from kajiya_hub.measures import Measures
from kajiya_hub.store.rows import Counts

_WAITS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
_LAGS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60)
_LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)


class Metrics(Measures):
    """All metrics. Times are in seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.queue_wait = Histogram(
            "kajiya_queue_wait_seconds",
            "From submit, or from being queued again, to the start of an attempt.",
            buckets=_WAITS,
            registry=self.registry,
        )
        self.reconcile_lag = Histogram(
            "kajiya_reconcile_lag_seconds",
            "How much later than due a round of the loop ended.",
            buckets=_LAGS,
            registry=self.registry,
        )
        self.reconcile_failures = Counter(
            "kajiya_reconcile_failures_total", "Rounds of the loop that failed.", registry=self.registry
        )
        self.requests = Histogram(
            "kajiya_http_request_seconds",
            "From request to the end of the answer, streams left out.",
            ("method", "route", "status"),
            buckets=_LATENCIES,
            registry=self.registry,
        )
        self.streams = Gauge("kajiya_streams", "Event streams open now.", registry=self.registry)

    def waited(self, seconds: float) -> None:
        """A job began its attempt after so long."""
        self.queue_wait.observe(max(0.0, seconds))

    def round(self, seconds: float) -> None:
        """A round of the loop ended so long after it was due."""
        self.reconcile_lag.observe(max(0.0, seconds))

    def failed(self) -> None:
        """A round of the loop failed."""
        self.reconcile_failures.inc()

    def watch_store(self, counts: Callable[[], Counts]) -> None:
        """Adds the jobs by status and the attempts by ending, counted anew for each answer."""
        self.registry.register(_Jobs(counts))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Jobs(Collector):
    def __init__(self, counts: Callable[[], Counts]) -> None:
        self._counts = counts

    def describe(self) -> Iterator[Metric]:
        # Without this the registry would count when it takes the collector in, before the store is asked for.
        return iter(())

    def collect(self) -> Iterator[Metric]:
        counts = self._counts()
        jobs = GaugeMetricFamily("kajiya_jobs", "Jobs by status.", labels=["status"])
        for status in Status:
            jobs.add_metric([status.value], counts.jobs.get(status, 0))
        yield jobs
        endings = CounterMetricFamily("kajiya_attempts_ended", "Attempts by how they ended.", labels=["ending"])
        for ending in Ending:
            endings.add_metric([ending.value], counts.endings.get(ending, 0))
        yield endings
        oldest = counts.oldest_queued_at
        age = 0.0 if oldest is None else max(0.0, time.time() - oldest.timestamp())
        yield GaugeMetricFamily("kajiya_oldest_queued_seconds", "How long the oldest waiting job has waited.", age)
