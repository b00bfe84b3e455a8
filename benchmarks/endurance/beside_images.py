"""The gaps of a text stream while images are drawn: `benchmarks/text_beside_images.py` has the measurement."""

from __future__ import annotations

import asyncio

import text_beside_images

from endurance.figures import Figures, Report
from endurance.server import Server


async def run(
    characters: int = 5000, rounds: int = 5, counts: tuple[int, ...] = (1, 10), factor: float = 2.0, threads: int = 0
) -> Figures:
    """``counts``: images at a time; ``factor``: of the p99 gap alone."""
    report = Report(characters=characters, rounds=rounds, factor=factor)
    text_beside_images.CHARACTERS, text_beside_images.ROUNDS = characters, rounds
    async with Server(threads=threads) as server:
        text_beside_images.URL = f"http://127.0.0.1:{server.port}"
        await asyncio.to_thread(text_beside_images.text)
        rows = [await asyncio.to_thread(text_beside_images.measure, count) for count in (0, *counts)]
    report.note(rows=rows)
    for row in rows[1:]:
        times = row["gap_ms_p99"] / rows[0]["gap_ms_p99"]
        report.note(**{f"p99_times_beside_{row['images_at_a_time']}": times})
        report.demand(row["seconds_per_request_of_images"] > 0, "images were drawn")
        promise = f"the p99 gap beside {row['images_at_a_time']} images is at most {factor:g} times that alone"
        report.demand(times <= factor, promise)
    return report.figures()
