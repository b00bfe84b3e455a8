"""The options of ``aft bench serve``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from service.commands.terminal import fail


def _numbers(text: str, name: str, least: float) -> list[float]:
    """``1,16,64`` -> numbers. ValueError names the option."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} is numbers by commas, not {text!r}") from None
    if not all(least <= number < float("inf") for number in numbers):
        raise ValueError(f"{name}: each is at least {least:g}")
    return numbers


def _whole(text: str, name: str, least: int) -> list[int]:
    numbers = _numbers(text, name, least)
    if any(number % 1 for number in numbers):
        raise ValueError(f"{name} is whole numbers by commas, not {text!r}")
    return [int(number) for number in numbers]


def serve(
    url: Annotated[str | None, typer.Argument(help="The service, as http://127.0.0.1:8000.")] = None,
    model: Annotated[str, typer.Option(help="Name of the text model; the first of the service.")] = "",
    key: Annotated[str | None, typer.Option(envvar="AFT_KEY", help="Key that the service wants.")] = None,
    concurrency: Annotated[
        str | None, typer.Option(help="Closed loop: requests at once, by commas; 1,16,64 without --rates.")
    ] = None,
    rates: Annotated[str | None, typer.Option(help="Open loop: arrivals a second, by commas.")] = None,
    prompt_chars: Annotated[str, typer.Option(help="Characters of a prompt, by commas.")] = "64",
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 256,
    seconds: Annotated[float, typer.Option(min=0.05, help="How long a point sends requests.")] = 10.0,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests of a point, instead of --seconds.")] = None,
    warm_up: Annotated[
        int | None, typer.Option(min=0, help="Requests before a point, not counted; as many as run at once.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of arrivals, prompts and answers.")] = 0,
    timeout: Annotated[float, typer.Option(min=0.05, help="Seconds after which a request has failed.")] = 300.0,
    null: Annotated[
        bool, typer.Option("--null", help="Measure the client's own ceiling, too; alone without URL.")
    ] = False,
    pid: Annotated[int | None, typer.Option(help="The server's process, where /metrics lacks its CPU time.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    lines: Annotated[Path | None, typer.Option(help="Write every request here, a JSON line each.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw latency by throughput here (PNG).")] = None,
) -> None:
    """Load a service over HTTP with streams, and measure what its clients see."""
    from service.load.record import LoadError, Plan, Point

    try:
        if importlib.util.find_spec("aiohttp") is None:
            raise LoadError("bench serve needs aiohttp: pip install -e '.[bench]'")
        from service.load.report import Wish, run

        if url is None and not null:
            raise ValueError("bench serve needs the URL of a service, or --null")
        closed = concurrency or ("" if rates else "1,16,64")
        points = [
            Point(length, concurrency=at_once, rate=rate)
            for length in _whole(prompt_chars, "--prompt-chars", 0)
            for at_once, rate in [
                *((count, None) for count in (_whole(closed, "--concurrency", 1) if closed else [])),
                *((None, each) for each in (_numbers(rates, "--rates", 0.001) if rates else [])),
            ]
        ]
        plan = Plan(model, max_tokens, seconds, requests, warm_up, seed, timeout)
        complete = run(Wish(url, points, plan, null, key, pid, json_file, lines, plot))
    except (LoadError, ValueError, OSError) as error:
        raise fail(str(error)) from None
    if not complete:
        raise typer.Exit(130)  # as a shell says of a process that SIGINT ended
