"""The histogram of bursts against prometheus_client's own; names and shapes of all metrics."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import LAST_RANGE, LATENCY_BUCKETS, POSITION_RANGES, BurstHistogram, Metrics, position_range

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
VALUES = st.sampled_from([*LATENCY_BUCKETS, 0.0, 3.0]) | st.floats(0, 5)


def samples(registry: CollectorRegistry) -> Samples:
    """What a scrape reads, without the times of creation."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@given(st.lists(st.tuples(st.sampled_from("ab"), VALUES, st.integers(1, 300)), max_size=12))
def test_a_burst_is_so_many_observations(bursts: list[tuple[str, float, int]]) -> None:
    """Equal to a Histogram that observes each one: buckets, sum and count, by label."""
    mine, theirs = CollectorRegistry(), CollectorRegistry()
    burst = BurstHistogram("h", "text", ["model"], LATENCY_BUCKETS, mine)
    one = Histogram("h", "text", ["model"], buckets=LATENCY_BUCKETS, registry=theirs)
    for label, value, count in bursts:
        burst.observe((label,), value, count)
        for _ in range(count):
            one.labels(label).observe(value)
    got, wanted = samples(mine), samples(theirs)
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        assert got[key] == pytest.approx(value, rel=1e-9), key


def test_registering_collects_nothing() -> None:
    """And a name can be taken only once."""
    registry = CollectorRegistry()
    BurstHistogram("h", "text", ["model"], [1.0], registry)
    with pytest.raises(ValueError, match=r"[Dd]uplicate"):
        BurstHistogram("h", "text", ["model"], [1.0], registry)


@pytest.mark.parametrize(
    ("position", "label"),
    [(0, "0-99"), (99, "0-99"), (100, "100-999"), (999, "100-999"), (1000, "1e3-1e4"), (99_999, "1e4-1e5"),
     (999_999, "1e5-1e6"), (1_000_000, "1e6-"), (10**12, "1e6-")],
)  # fmt: skip
def test_ranges_of_positions(position: int, label: str) -> None:
    """At most 8, and every position has one."""
    assert position_range(position) == label
    assert len(POSITION_RANGES) + 1 <= 8
    assert LAST_RANGE not in [name for _, name in POSITION_RANGES]


def test_the_table() -> None:
    """Prefix, base units, the label model; every name and its labels as documented."""
    metrics = Metrics(CollectorRegistry())
    wanted = {
        "aft_requests": {"model", "endpoint", "outcome"},
        "aft_requests_running": {"model"},
        "aft_requests_waiting": {"model"},
        "aft_request_queue_seconds": {"model", "endpoint"},
        "aft_request_prefill_seconds": {"model", "endpoint"},
        "aft_request_duration_seconds": {"model", "endpoint"},
        "aft_time_to_first_token_seconds": {"model"},
        "aft_inter_token_latency_seconds": {"model"},
        "aft_token_latency_by_position_seconds": {"model", "position"},
        "aft_prompt_tokens": {"model"},
        "aft_generation_tokens": {"model"},
        "aft_image_pixels": {"model"},
        "aft_image_duration_seconds": {"model"},
        "aft_engine_step_seconds": {"model"},
        "aft_batch_size": {"model"},
        "aft_slots": {"model"},
        "aft_slots_in_use": {"model"},
        "aft_memory_bytes": {"model", "kind"},
        "aft_state_bytes_per_stream": {"model"},
        "aft_client_disconnects": {"model", "phase"},
        "aft_admission_rejections": {"model", "reason"},
        "aft_startup_seconds": {"model", "phase"},
        "aft_build_info": {"model", "version", "runtime", "isa", "fingerprint"},
    }
    for metric in vars(metrics).values():
        if isinstance(metric, BurstHistogram):
            metric.observe(("x",) * len(metric._labels), 0.001)
        elif hasattr(metric, "labels"):
            metric.labels(*["x"] * len(metric._labelnames))
    families = {f.name: f for f in text_string_to_metric_families(generate_latest(metrics.registry).decode())}
    labels = {n: set(family.samples[0].labels) - {"le"} for n, family in families.items() if "_created" not in n}
    assert labels == wanted
    assert all(family.documentation for family in families.values())


@pytest.mark.parametrize("metric", ["step_seconds", "inter_token", "by_position"])
def test_latency_buckets(metric: str) -> None:
    """From 50 us to 2.5 s."""
    made = getattr(Metrics(CollectorRegistry()), metric)
    bounds = made._bounds if isinstance(made, BurstHistogram) else made._upper_bounds
    assert (bounds[0], bounds[-2], bounds[-1]) == (5e-5, 2.5, float("inf"))
    assert bounds == sorted(bounds)


@pytest.mark.parametrize(
    ("metric", "least", "most"),
    [("first_token", 1e-3, 300), ("duration_seconds", 5e-3, 3600), ("queue_seconds", 5e-3, 3600)],
)
def test_other_buckets(metric: str, least: float, most: float) -> None:
    """What is waited for takes longer, and under overload minutes; an unlimited stream may take an hour."""
    bounds = getattr(Metrics(CollectorRegistry()), metric)._upper_bounds
    assert (bounds[0], bounds[-2], bounds[-1]) == (least, most, float("inf"))
    assert bounds == sorted(bounds)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: make system-packages")
def test_promtool_accepts_the_exposition() -> None:
    """Prometheus' own checker finds nothing to say about names, help texts and types."""
    metrics = Metrics(CollectorRegistry())
    metrics.requests.labels("m", "completions", "stop").inc()
    metrics.step_seconds.labels("m").observe(0.1)
    metrics.inter_token.observe(("m",), 0.01, 3)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=generate_latest(metrics.registry), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
