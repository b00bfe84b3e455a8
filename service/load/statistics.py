"""From the records of one point to figures, and beside them what the server's own metrics say.

Quantile q is the smallest value that at least a share q of all weight does not exceed (nearest rank).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from service.load.record import Record, Run

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
FIRST_TOKEN = "aft_time_to_first_token_seconds"
PER_TOKEN = "aft_inter_token_latency_seconds"
OPEN_CONCURRENCY = 64  # an open loop's ceiling is that of so many requests at once


def quantile(values: Iterable[tuple[float, int]], share: float) -> float | None:
    """The ``share`` quantile of values with weights; None of nothing."""
    ordered = sorted(values)
    total = sum(weight for _, weight in ordered)
    below = 0
    for value, weight in ordered:
        below += weight
        if total and below >= share * total - 1e-9 * total:  # 0.9 * 10 is a little above 9
            return value
    return None


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Seconds; None: there was nothing to measure."""

    p50: float | None
    p90: float | None
    p99: float | None


def quantiles(values: Iterable[tuple[float, int]]) -> Quantiles:
    """Of values with weights."""
    ordered = sorted(values)
    return Quantiles(*(quantile(ordered, share) for share in (0.5, 0.9, 0.99)))


@dataclass(frozen=True, slots=True)
class Comparison:
    """One quantile by the server's histogram and by the client."""

    metric: str
    share: float
    above: float  # the server's is in (above, at_most]
    at_most: float | None  # None: above all bounds
    client: float
    agrees: bool  # the client's is in the same bucket, or a neighbour


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """What the server spent, from its metrics before and after; None: it has no such metric."""

    cpu_seconds: float | None  # all of its process, the model's arithmetic included
    cpu_seconds_per_event: float | None
    engine_share: float | None  # wall seconds inside calls of the runtime / wall seconds
    num_first_tokens: int  # that it observed; more than requests of this client: others were there
    comparisons: list[Comparison]


@dataclass(frozen=True, slots=True)
class Figures:
    """One point. Rates count successful requests within the window; quantiles all successful requests."""

    load: str
    concurrency: int | None
    rate: float | None
    prompt_chars: int
    num_requests: int
    num_ok: int
    failures: dict[str, int]
    first_failure: str
    num_warm_up_failed: int
    num_without_usage: int  # their characters are counted as tokens
    window_seconds: float
    wall_seconds: float
    tokens_per_second: float
    requests_per_second: float
    events_per_second: float  # of all requests, until the last answer
    characters_per_event: float
    first_token: Quantiles
    gap: Quantiles  # between events
    per_token: Quantiles  # m characters after a gap g are m times g / m
    duration: Quantiles
    max_late_seconds: float  # how long after it was due the client sent a request
    client_cpu_share: float  # of one core
    server: ServerFigures | None


@dataclass(slots=True)
class Results:
    """What is measured so far."""

    model: str = ""
    server: dict[str, str] = field(default_factory=dict)
    points: list[Figures] = field(default_factory=list)
    ceilings: dict[int, Figures] = field(default_factory=dict)  # the null server at full speed, by requests at once
    floors: dict[int, Figures] = field(default_factory=dict)  # the same, paced

    def ceiling(self, point: Figures) -> Figures | None:
        """What the client reaches at as many requests at once."""
        return self.ceilings.get(point.concurrency or OPEN_CONCURRENCY)

    def of_ceiling(self, point: Figures) -> float | None:
        """The point's events a second as a share of it."""
        ceiling = self.ceiling(point)
        return point.events_per_second / ceiling.events_per_second if ceiling and ceiling.events_per_second else None


def _tokens_within(record: Record, seconds: float) -> float:
    """Tokens that came before a time: as characters did."""
    if not record.events:
        return record.num_tokens if record.ended <= seconds else 0
    came = sum(characters for now, characters in record.events if now <= seconds)
    return record.num_tokens * came / record.num_characters


def figures(run: Run, model: str) -> Figures:
    """Everything about one point."""
    good = [record for record in run.records if record.ok]
    bad = [record for record in run.records if not record.ok]
    window, wall = max(run.window_seconds, 1e-9), max(run.wall_seconds, 1e-9)
    num_events = sum(len(record.events) for record in run.records)
    gaps = [gap for record in good for gap in record.gaps()]
    first = bad[0] if bad else None
    first_token = quantiles((record.first_seconds, 1) for record in good if record.first_seconds is not None)
    per_token = quantiles((gap / characters, characters) for gap, characters in gaps)
    return Figures(
        load=str(run.point),
        concurrency=run.point.concurrency,
        rate=run.point.rate,
        prompt_chars=run.point.prompt_chars,
        num_requests=len(run.records),
        num_ok=len(good),
        failures=dict(Counter(record.outcome for record in bad)),
        first_failure=f"{first.outcome}: {first.detail}" if first else "",
        num_warm_up_failed=run.num_warm_up_failed,
        num_without_usage=sum(record.tokens is None for record in good),
        window_seconds=run.window_seconds,
        wall_seconds=run.wall_seconds,
        tokens_per_second=sum(_tokens_within(record, run.window_seconds) for record in good) / window,
        requests_per_second=sum(record.ended <= run.window_seconds for record in good) / window,
        events_per_second=num_events / wall,
        characters_per_event=sum(record.num_characters for record in run.records) / max(num_events, 1),
        first_token=first_token,
        gap=quantiles((gap, 1) for gap, _ in gaps),
        per_token=per_token,
        duration=quantiles((record.ended - record.due, 1) for record in good),
        max_late_seconds=max((record.began - record.due for record in run.records), default=0.0),
        client_cpu_share=run.client_cpu_seconds / wall,
        server=_server(run, model, num_events, first_token, per_token),
    )


def parse(text: str) -> Samples:
    """The samples of Prometheus' text format. Nothing of what is no such text."""
    try:
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    except (ValueError, KeyError, IndexError):
        return {}


def histogram(before: Samples, after: Samples, name: str, model: str) -> list[tuple[float, int]]:
    """Upper bounds and observations (each bucket's own) that a model's histogram got in between."""
    cumulative: dict[float, float] = {}
    for (sample, labels), value in after.items():
        have = dict(labels)
        if sample == f"{name}_bucket" and have.get("model") == model:
            bound = float(have["le"])
            cumulative[bound] = cumulative.get(bound, 0.0) + value - before.get((sample, labels), 0.0)
    total, own = 0, []
    for bound in sorted(cumulative):
        own.append((bound, round(cumulative[bound]) - total))
        total = round(cumulative[bound])
    return own


def compare(buckets: Sequence[tuple[float, int]], metric: str, share: float, client: float | None) -> Comparison | None:
    """Where the server's quantile lies, and whether the client's is there or next to it; None without either."""
    at_most = quantile(buckets, share)
    if client is None or at_most is None:
        return None
    bounds = [bound for bound, _ in buckets]
    place = bounds.index(at_most)
    agrees = abs(bisect_left(bounds, client) - place) <= 1
    above = bounds[place - 1] if place else 0.0
    return Comparison(metric, share, above, at_most if math.isfinite(at_most) else None, client, agrees)


def _server(
    run: Run, model: str, num_events: int, first_token: Quantiles, per_token: Quantiles
) -> ServerFigures | None:
    before, after = parse(run.before or ""), parse(run.after or "")

    def spent(name: str, **labels: str) -> float | None:
        wanted = set(labels.items())
        keys = [key for key in after if key[0] == name and wanted <= key[1]]
        return sum(after[key] - before.get(key, 0.0) for key in keys) if keys else None

    cpu = run.server_cpu_seconds
    if cpu is None:
        cpu = spent("process_cpu_seconds_total")
    # the engine's thread serves all models by turns
    engine = spent("aft_engine_step_seconds_sum")
    if cpu is None and engine is None:
        return None
    comparisons = []
    for metric, client in ((FIRST_TOKEN, first_token), (PER_TOKEN, per_token)):
        buckets = histogram(before, after, metric, model)
        for share, value in ((0.5, client.p50), (0.9, client.p90), (0.99, client.p99)):
            found = compare(buckets, metric, share, value)
            if found is not None:
                comparisons.append(found)
    return ServerFigures(
        cpu_seconds=cpu,
        cpu_seconds_per_event=cpu / num_events if cpu is not None and num_events else None,
        engine_share=engine / run.wall_seconds if engine is not None and run.wall_seconds else None,
        num_first_tokens=round(spent(f"{FIRST_TOKEN}_count", model=model) or 0),
        comparisons=comparisons,
    )
