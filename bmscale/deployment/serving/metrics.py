"""What /metrics tells Prometheus. Nothing in it comes from a text, and its size does not grow with requests."""

from collections.abc import Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client import generate_latest as _generate_latest

from bmscale.deployment.serving.batching import Batcher

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_UNITS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class _ModelMetrics:
    """The observer of one queue."""

    def __init__(self, metrics: "Metrics", model: str) -> None:
        self._units = metrics.batch_units.labels(model)
        self._seconds = metrics.batch_seconds.labels(model)
        self._slots = metrics.slots.labels(model)

    def ran(self, units: int, slots: int, seconds: float) -> None:
        self._units.observe(units)
        self._seconds.observe(seconds)
        self._slots.inc(slots)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("bmscale_requests", "Requests answered", ["route", "code"], registry=self.registry)
        self.request_seconds = Histogram(
            "bmscale_request_seconds", "Time to an answer", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.in_flight = Gauge("bmscale_requests_in_flight", "Requests being read or answered", registry=self.registry)
        self.characters = Counter("bmscale_characters", "Characters of texts accepted", registry=self.registry)
        self.batch_units = Histogram(
            "bmscale_batch_units", "Units (sentences, prompts) of a batch", ["model"], buckets=_UNITS,
            registry=self.registry,
        )  # fmt: skip
        self.batch_seconds = Histogram(
            "bmscale_batch_seconds", "Time that a batch ran", ["model"], buckets=_SECONDS, registry=self.registry
        )
        self.slots = Counter("bmscale_slots", "Slots (tokens times beams) that ran", ["model"], registry=self.registry)
        self.waiting_units = Gauge("bmscale_queue_units", "Units that wait", ["model"], registry=self.registry)
        self.waiting_slots = Gauge("bmscale_queue_slots", "Slots that wait", ["model"], registry=self.registry)

    def observer(self, model: str) -> _ModelMetrics:
        """Who watches the queue of a model."""
        return _ModelMetrics(self, model)

    def text(self, batchers: Mapping[str, Batcher]) -> bytes:
        """All of it in Prometheus' text format."""
        for name, batcher in batchers.items():
            self.waiting_units.labels(name).set(batcher.waiting_units)
            self.waiting_slots.labels(name).set(batcher.waiting_slots)
        return _generate_latest(self.registry)
