"""The table of metrics, on an injected registry. Prefix ``aft_``, base units."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

LATENCY_BUCKETS = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
FIRST_TOKEN_BUCKETS = (1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
DURATION_BUCKETS = (5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
POSITION_RANGES = ((100, "0-99"), (1_000, "100-999"), (10_000, "1e3-1e4"), (100_000, "1e4-1e5"), (1_000_000, "1e5-1e6"))
LAST_RANGE = "1e6-"


def position_range(position: int) -> str:
    """The label of a position: one of a few fixed ranges."""
    return next((label for end, label in POSITION_RANGES if position < end), LAST_RANGE)


class BurstHistogram(Collector):
    """A histogram that takes a burst at once: m observations of one value for the price of one."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float], registry: CollectorRegistry
    ):
        self._name, self._text, self._labels, self._bounds = name, text, labels, [*buckets, float("inf")]
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()
        registry.register(self)

    def observe(self, labels: tuple[str, ...], value: float, count: int = 1) -> None:
        """Add ``count`` observations of ``value``."""
        with self._lock:
            counts = self._counts.setdefault(labels, [0] * len(self._bounds))
            counts[bisect_left(self._bounds, value)] += count
            self._sums[labels] = self._sums.get(labels, 0.0) + value * count

    def describe(self) -> Iterable[Metric]:
        """Its name alone, so that registering collects nothing."""
        return [HistogramMetricFamily(self._name, self._text, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        """Cumulative buckets, as the exposition format wants them."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        with self._lock:
            for labels, counts in self._counts.items():
                total, buckets = 0, []
                for bound, count in zip(self._bounds, counts, strict=True):
                    total += count
                    buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
                family.add_metric(labels, buckets, self._sums[labels])
        return [family]


class Metrics:
    """Every metric of the service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        model = ["model"]

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, [*model, *labels], registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, [*model, *labels], registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(name, text, [*model, *labels], registry=registry, buckets=buckets)

        self.requests = counter("aft_requests", "Requests by how they ended", "endpoint", "outcome")
        self.running = gauge("aft_requests_running", "Choices and images that hold a slot")
        self.waiting = gauge("aft_requests_waiting", "Choices and images that wait for a slot")
        self.queue_seconds = histogram("aft_request_queue_seconds", "Wait for a slot", DURATION_BUCKETS, "endpoint")
        self.prefill_seconds = histogram(
            "aft_request_prefill_seconds", "From the slot to the first token", DURATION_BUCKETS, "endpoint"
        )
        self.duration_seconds = histogram(
            "aft_request_duration_seconds", "Whole requests", DURATION_BUCKETS, "endpoint"
        )
        self.first_token = histogram(
            "aft_time_to_first_token_seconds", "From arrival to the first token", FIRST_TOKEN_BUCKETS
        )
        self.inter_token = BurstHistogram(
            "aft_inter_token_latency_seconds", "Between a stream's tokens", model, LATENCY_BUCKETS, registry
        )
        self.by_position = BurstHistogram(
            "aft_token_latency_by_position_seconds",
            "The same by position: flat, whatever the position",
            [*model, "position"],
            LATENCY_BUCKETS,
            registry,
        )
        self.prompt_tokens = counter("aft_prompt_tokens", "Tokens of prompts computed")
        self.generation_tokens = counter("aft_generation_tokens", "Tokens generated")
        self.image_pixels = counter("aft_image_pixels", "Pixels drawn")
        self.image_seconds = histogram(
            "aft_image_duration_seconds", "From arrival to an image's last pixel", DURATION_BUCKETS
        )
        self.step_seconds = histogram("aft_engine_step_seconds", "Calls of the runtime", LATENCY_BUCKETS)
        self.batch_size = histogram("aft_batch_size", "Streams in a call of the runtime", BATCH_BUCKETS)
        self.slots = gauge("aft_slots", "Slots")
        self.slots_in_use = gauge("aft_slots_in_use", "Slots that a request holds")
        self.memory_bytes = gauge("aft_memory_bytes", "Memory by what it holds", "kind")
        self.state_bytes = gauge("aft_state_bytes_per_stream", "Recurrent state of one stream")
        self.disconnects = counter("aft_client_disconnects", "Clients that left", "phase")
        self.rejections = counter("aft_admission_rejections", "Requests refused before admission", "reason")
        self.startup_seconds = gauge("aft_startup_seconds", "Time from start by phase", "phase")
        self.build_info = gauge("aft_build_info", "1", "version", "runtime", "isa", "fingerprint")
