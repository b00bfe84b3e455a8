"""What a text stream feels of images that are drawn beside it, over HTTP.

    .venv/bin/python benchmarks/text_beside_images.py --json benchmarks/results/text_beside_images.json

Streams text alone, beside one image after another, and beside ten at a time; events' gaps as the client sees them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

PORT = 8765
URL = f"http://127.0.0.1:{PORT}"
CHARACTERS, ROUNDS = 5_000, 5


def text() -> tuple[float, list[float]]:
    """Characters a second, and the gaps between events in seconds, of one stream. ValueError where it is not whole."""
    body = {"model": "shakespeare", "prompt": "", "max_tokens": CHARACTERS, "stream": True, "seed": 1}
    gaps, written, began = [], 0, time.perf_counter()
    last, line = began, ""
    with httpx.stream("POST", f"{URL}/v1/completions", json=body, timeout=120) as response:
        response.raise_for_status()
        for line in filter(None, response.iter_lines()):
            if line.startswith("data: {"):
                now = time.perf_counter()
                gaps.append(now - last)
                last, event = now, json.loads(line.removeprefix("data: "))
                if "choices" not in event:
                    raise ValueError(f"a stream was cut off: {line}")
                written += sum(len(choice["text"]) for choice in event["choices"])
    if line != "data: [DONE]":
        raise ValueError(f"a stream ended after {written} characters by {line!r}")
    return written / (last - began), gaps[1:]


def draw(count: int, end: threading.Event) -> list[float]:
    """Images, ``count`` at a time, until told to end: the seconds of each request that was done by then."""
    drawn = []
    while not end.is_set():
        began = time.perf_counter()
        body = {"model": "emoji", "prompt": "", "n": count}
        httpx.post(f"{URL}/v1/images/generations", json=body, timeout=120).raise_for_status()
        if not end.is_set():
            drawn.append(time.perf_counter() - began)
    return drawn


def measure(count: int, tail: int = 99) -> dict[str, float]:
    """Medians of some rounds beside ``count`` images at a time; of all gaps the median and the percentile ``tail``."""
    rates: list[float] = []
    gaps: list[float] = []
    drawn: list[list[float]] = []
    for _ in range(ROUNDS):
        end = threading.Event()
        with ThreadPoolExecutor(1) as painter:
            painted = painter.submit(draw, count, end) if count else None
            try:
                time.sleep(0.2 if count else 0)
                rate, more = text()
            finally:
                end.set()
        if painted is not None:
            drawn.append(painted.result())
        rates.append(rate)
        gaps += more
    gaps.sort()
    return {
        "images_at_a_time": count,
        "characters_per_second": statistics.median(rates),
        "low": min(rates),
        "high": max(rates),
        "gap_ms_p50": 1000 * gaps[len(gaps) // 2],
        f"gap_ms_p{tail}": 1000 * gaps[len(gaps) * tail // 100],
        "seconds_per_request_of_images": statistics.median(itertools.chain(*drawn)) if any(drawn) else 0.0,
        "fewest_requests_of_images": min(map(len, drawn), default=0),  # of a round
    }


def main() -> None:
    """Serve, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    aft = Path(sys.executable).with_name("aft")
    server = subprocess.Popen([aft, "serve", "--port", str(PORT)], env={**os.environ, "AFT_LOG_LEVEL": "warning"})
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{URL}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        text()
        rows = [measure(count) for count in (0, 1, 10)]
    finally:
        server.terminate()
        server.wait(60)
    for row in rows:
        print({key: round(value, 2) for key, value in row.items()})
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
