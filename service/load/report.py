"""`aft bench serve` at a terminal: the points one after the other, tables for people, files for machines."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from model.machine import facts
from model.runtime.choice import available_cores
from service.load import plot
from service.load.client import Client
from service.load.null import FAST, PACE_SECONDS, PACED, null_server
from service.load.record import LoadError, Plan, Point, Run
from service.load.statistics import OPEN_CONCURRENCY, Results, figures, parse
from service.load.tables import EXPLAINED, remarks, tables

CEILING_SECONDS = 2.0  # of a point against the null server
PACED_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Wish:
    """What to measure, and where its figures go."""

    url: str | None  # None: only the null server
    points: list[Point]
    plan: Plan  # its model is "" where the first of the service is meant
    null: bool = False  # the client's ceiling, too
    key: str | None = None
    pid: int | None = None  # the server's process, where its metrics do not tell its CPU seconds
    json_file: Path | None = None
    lines_file: Path | None = None
    plot: Path | None = None


def run(wish: Wish) -> bool:
    """Measure, print, write; what is measured is printed and written when it is interrupted, too.

    LoadError where there is nothing to measure. Returns whether it went to its end.
    """
    if wish.plot is not None:
        plot.library()  # before minutes of measuring
    results, console = Results(), Console()
    complete = True
    with wish.lines_file.open("w") if wish.lines_file else nullcontext() as lines:
        try:
            asyncio.run(_measure(wish, results, lines))
        except KeyboardInterrupt:
            complete = False
            console.print(
                f"interrupted: {len(results.points)} of {len(wish.points) if wish.url else 0} points measured"
            )
    _publish(wish, results, console)
    if results.points and not any(point.num_ok for point in results.points):
        raise LoadError("no request was answered to its end")
    return complete


def _publish(wish: Wish, results: Results, console: Console) -> None:
    for table in tables(results, machine()):
        console.print(table)
    for point in [*results.ceilings.values(), *results.floors.values(), *results.points]:
        for sentence in remarks(point, results):
            console.print(sentence, highlight=False, markup=False)
    if results.points:
        for paragraph in EXPLAINED.split("\n\n"):  # as wide as the terminal
            console.print(paragraph.replace("\n", " "), highlight=False, markup=False)
    if wish.json_file:
        wish.json_file.write_text(json.dumps(as_json(wish, results), indent=1, allow_nan=False) + "\n")
    if wish.plot and results.points:
        plot.draw(results.model, results.points, wish.plot)


async def _measure(wish: Wish, results: Results, lines: TextIO | None) -> None:
    if wish.url is None:
        await _ceilings(wish, results)
        return
    async with Client(wish.url, wish.key) as client:
        results.model = await client.prepare(wish.plan.model or None)
        results.server = build(await client.metrics(), results.model)
        if wish.pid is not None and _cpu_seconds(wish.pid) is None:
            raise LoadError(f"the CPU seconds of process {wish.pid} cannot be read")
        if wish.null:
            await _ceilings(wish, results)
        plan = replace(wish.plan, model=results.model)
        for number, point in enumerate(wish.points):
            _say(f"[{number + 1}/{len(wish.points)}] {point}, {point.prompt_chars} characters")
            measured = await client.measure(point, plan, f"{plan.seed} {number}", lambda: _cpu_seconds(wish.pid))
            results.points.append(figures(measured, plan.model))
            if lines is not None:
                _write_lines(lines, number, measured)


async def _ceilings(wish: Wish, results: Results) -> None:
    with null_server() as url:
        async with Client(url) as client:
            await client.prepare(FAST)
            fast = replace(wish.plan, model=FAST, seconds=CEILING_SECONDS, requests=None)
            paced = replace(fast, model=PACED, max_tokens=PACED_TOKENS, seconds=2 * PACED_TOKENS * PACE_SECONDS)
            for count in sorted({point.concurrency or OPEN_CONCURRENCY for point in wish.points}):
                _say(f"the client's own limits: {count} at once")
                point = Point(wish.points[0].prompt_chars, count)
                results.ceilings[count] = figures(await client.measure(point, fast, "null"), FAST)
                results.floors[count] = figures(await client.measure(point, paced, "null"), PACED)


def _say(text: str) -> None:
    Console(stderr=True).print(text, highlight=False, markup=False)


def _write_lines(lines: TextIO, number: int, measured: Run) -> None:
    point = {"point": number, **asdict(measured.point)}
    for record in measured.records:
        lines.write(json.dumps({**point, **asdict(record)}) + "\n")
    lines.flush()


def _cpu_seconds(pid: int | None) -> float | None:
    """Of a process, so far; None where there is none."""
    if pid is None:
        return None
    try:
        import psutil
    except ModuleNotFoundError:
        raise LoadError("--pid needs psutil: pip install -e '.[bench]'") from None
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)


def build(metrics: str | None, model: str) -> dict[str, str]:
    """What the server says of a model: version, runtime, isa, fingerprint; empty where it says nothing."""
    for name, labels in parse(metrics or ""):
        if name == "aft_build_info" and dict(labels).get("model") == model:
            return dict(labels)
    return {}


def machine() -> dict[str, object]:
    """Where the client ran."""
    return {
        **facts(), "cores": available_cores(), "aiohttp": importlib.metadata.version("aiohttp"),
        "aft": importlib.metadata.version("aft-serve"),
    }  # fmt: skip


def as_json(wish: Wish, results: Results) -> dict[str, Any]:
    """For machines."""
    return {
        "url": wish.url, "model": results.model, "machine": machine(), "server": results.server,
        "plan": {key: value for key, value in asdict(wish.plan).items() if key != "model"},
        "points": [{**asdict(point), "of_ceiling": results.of_ceiling(point)} for point in results.points],
        "ceilings": [asdict(point) for point in results.ceilings.values()],
        "floors": [asdict(point) for point in results.floors.values()],
    }  # fmt: skip
