"""The gaps of a text stream while images are drawn: `benchmarks/text_beside_images.py` has the measurement."""

from __future__ import annotations

import asyncio

import text_beside_images

from endurance.figures import Figures, Report
from endurance.server import Server


async def run(
    characters: int = 5000, rounds: int = 5, counts: tuple[int, ...] = (1, 10), factor: float = 2.0, tail: int = 99,
    threads: int = 0,
) -> Figures:  # fmt: skip
    """``counts``: images at a time; ``factor``: of the gap alone, both at the percentile ``tail``."""
    report = Report(characters=characters, rounds=rounds, factor=factor)
    text_beside_images.CHARACTERS, text_beside_images.ROUNDS = characters, rounds
    async with Server(threads=threads) as server:
        text_beside_images.URL = f"http://127.0.0.1:{server.port}"
        await asyncio.to_thread(text_beside_images.text)
        rows = [await asyncio.to_thread(text_beside_images.measure, count, tail) for count in (0, *counts)]
    report.note(rows=rows)
    for row in rows[1:]:
        times = row[f"gap_ms_p{tail}"] / rows[0][f"gap_ms_p{tail}"]
        report.note(**{f"p{tail}_times_beside_{row['images_at_a_time']}": times})
        report.demand(row["fewest_requests_of_images"] > 0, "images were drawn in every round")
        promise = f"the p{tail} gap beside {row['images_at_a_time']} images is at most {factor:g} times that alone"
        report.demand(times <= factor, promise)
    return report.figures()
