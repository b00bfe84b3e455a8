"""The tables of `aft bench serve`, and what a reader must know of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from service.load.statistics import FIRST_TOKEN, PER_TOKEN, Figures, Results

BOTTLENECK = 0.5  # above this share of its ceiling the client itself is part of what is measured
NAMES = {FIRST_TOKEN: "first token", PER_TOKEN: "a token"}
EXPLAINED = """\
Null: a server that generates nothing; at full speed it shows the client's ceiling (its times there are those of the
client's own queue), at an event every 20 ms the least times that this client can see.

Client: "of ceiling" is events a second over those of the null server at full speed, "core" the client's CPU seconds
over wall seconds. Above 50 % of either, the client is part of what was measured.

Server: "CPU an event" is all CPU of the server's process, the model's arithmetic included, over events of so many
characters: an upper bound of what sending one costs, no estimate of it. "Engine" is wall time inside calls of the
runtime over wall time. The two are not subtracted: threads of the runtime wait inside a call, and a call may use
several cores. Both count whatever else the server did.

Histograms: the bucket in which the server's quantile lies, in ms, and the client's quantile. A ! marks one that is not
in that bucket or next to it."""


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ms(*seconds: float | None) -> str:
    return " / ".join(_number(None if value is None else 1000 * value) for value in seconds)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("load", *columns):
        table.add_column(name, justify="right")
    return table


def tables(results: Results, machine: Mapping[str, object]) -> list[Table]:
    """For people: what was delivered, what clients felt, and what client and server had to do for it."""
    where = f"{machine['cpu']}, cores: {machine['cores']}, {machine['date']}"
    rates = _table(
        f"{results.model or 'null server'} over HTTP\n{where}",
        "prompt", "tokens/s", "requests/s", "late ms", "ok", "failed",
    )  # fmt: skip
    times = _table("Milliseconds", "first token\np50 / p90 / p99", "gap\np50 / p99", "duration\np50 / p99")
    spent = _table(
        "Client and server",
        "events/s",
        "characters\nan event",
        "client: of\nceiling",
        "core",
        "server: CPU\nan event, us",
        "engine",
    )
    rows = [
        *(("null, ", point) for point in results.ceilings.values()),
        *(("null 20 ms, ", point) for point in results.floors.values()),
        *(("", point) for point in results.points),
    ]
    for who, point in rows:
        load = f"{who}{point.load}"
        failed = ", ".join(f"{kind} {count}" for kind, count in sorted(point.failures.items()))
        rates.add_row(
            load, f"{point.prompt_chars:,}", _number(point.tokens_per_second), _number(point.requests_per_second),
            _ms(point.max_late_seconds), str(point.num_ok), failed or "0",
        )  # fmt: skip
        load = f"{load}, {point.prompt_chars:,}"
        first = point.first_token
        times.add_row(
            load, _ms(first.p50, first.p90, first.p99), _ms(point.gap.p50, point.gap.p99),
            _ms(point.duration.p50, point.duration.p99),
        )  # fmt: skip
        each = point.server.cpu_seconds_per_event if point.server else None
        of_ceiling = "" if who else _percent(results.of_ceiling(point))
        spent.add_row(
            load, _number(point.events_per_second), _number(point.characters_per_event), of_ceiling,
            _percent(point.client_cpu_share), _number(None if each is None else 1e6 * each),
            _percent(point.server.engine_share if point.server else None),
        )  # fmt: skip
    found = [rates, times, spent] if rows else []
    if any(point.server and point.server.comparisons for point in results.points):
        found.append(_comparisons(results.points))
    return found


def _comparisons(points: Sequence[Figures]) -> Table:
    table = _table("The server's histograms beside the client", "what", "p50", "p90", "p99")
    for point in points:
        cells: dict[str, list[str]] = {}
        for found in point.server.comparisons if point.server else []:
            bucket = f"({_ms(found.above)}, {'inf' if found.at_most is None else _ms(found.at_most)}]"
            mark = "" if found.agrees else " !"
            cells.setdefault(found.metric, []).append(f"{bucket} {_ms(found.client)}{mark}")
        for metric, row in cells.items():
            table.add_row(f"{point.load}, {point.prompt_chars:,}", NAMES[metric], *row)
    return table


def remarks(point: Figures, results: Results) -> list[str]:
    """What a reader of the table must know of one point."""
    name = f"{point.load}, {point.prompt_chars} characters: "
    said = []
    if point.first_failure:
        said.append(f"{name}first failure: {point.first_failure}")
    if point.num_warm_up_failed:
        said.append(f"{name}{point.num_warm_up_failed} requests of the warm-up failed")
    if point.num_without_usage:
        said.append(f"{name}{point.num_without_usage} answers without usage: their characters are taken for tokens")
    if point.max_late_seconds > 0.05:
        said.append(f"{name}the client sent up to {_ms(point.max_late_seconds)} ms too late; times count from the due")
    if point not in results.points:
        return said
    if max(results.of_ceiling(point) or 0.0, point.client_cpu_share) > BOTTLENECK:
        said.append(f"{name}THE CLIENT IS THE BOTTLENECK, or near it")
    if point.server and point.server.num_first_tokens > point.num_requests:
        said.append(f"{name}the server had other clients, or more than one choice: its metrics count them, too")
    return said
