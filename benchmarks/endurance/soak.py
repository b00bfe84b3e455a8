"""Everything at once for a while: memory stays where it was after a warm-up, and a long stream keeps its pace."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections import Counter
from typing import Any

from endurance.figures import Figures, Report
from endurance.server import IMAGES, TEXT, Server, total
from endurance.wire import COMPLETIONS, GENERATIONS, HOWS, Answer, Leave, ask

WORDS = "the king is dead, long live the king. "
WORKERS = 6
AT_ONCE = 24  # at first: memory that threads take once, and keep
SAMPLE_SECONDS = 0.5
GROWTH_BYTES = 2 << 20
FLAT = 1.5  # between the parts of a stream's first half, in the middle, and the last part
PARTS = 10
IMAGE = {"model": IMAGES, "prompt": ""}


def completion(draw: random.Random, size: float, **changes: Any) -> dict[str, Any]:
    """A body of random length and seed."""
    tokens = draw.randint(1, int(400 * size))
    return {
        "model": TEXT, "prompt": WORDS[: draw.randint(0, 38)], "max_tokens": tokens, "seed": draw.randrange(2**31),
        **changes,
    }  # fmt: skip


def prompt(draw: random.Random, least: int, most: int, size: float) -> str:
    """So many sentences."""
    return WORDS * draw.randint(int(least * size) + 1, int(most * size) + 1)


def jobs(draw: random.Random, size: float) -> list[tuple[str, str, dict[str, Any] | None, Leave | None]]:
    """One of each kind of request: its kind, path and body, and when its client leaves; in random order."""
    score = {"prompt": [prompt(draw, 1, 20, size)] * 2, "max_tokens": 0, "echo": True, "logprobs": 1}
    leave = Leave(draw.choice(HOWS), seconds=draw.uniform(0, 1))
    made = [
        ("stream", COMPLETIONS, completion(draw, size, stream=True), None),
        ("stream", COMPLETIONS, completion(draw, size, stream=True, temperature=0.7, top_p=0.9), None),
        ("whole", COMPLETIONS, completion(draw, size, stop=[draw.choice("aeiou") + " "]), None),
        ("samples", COMPLETIONS, completion(draw, size, n=3, best_of=4, logprobs=2), None),
        ("score", COMPLETIONS, completion(draw, size, **score), None),
        ("long prompt", COMPLETIONS, completion(draw, size, prompt=prompt(draw, 50, 300, size), max_tokens=1), None),
        ("image", GENERATIONS, IMAGE, None),
        ("image stream", GENERATIONS, {**IMAGE, "stream": True, "partial_images": 2}, None),
        ("tokenize", "/v1/tokenize", {"model": TEXT, "prompt": prompt(draw, 1, 50, size)}, None),
        ("models", "/v1/models", None, None),
        ("refused", COMPLETIONS, completion(draw, size, temperature=3), None),
        ("leaves", COMPLETIONS, completion(draw, size, stream=True, max_tokens=5000), leave),
    ]
    draw.shuffle(made)
    return made


async def run(
    seconds: float = 1200.0, warm_up: float = 120.0, growth_bytes: int = GROWTH_BYTES, flat: float = FLAT,
    parts: int = PARTS, size: float = 1.0, threads: int = 0, seed: int = 0,
) -> Figures:  # fmt: skip
    """``growth_bytes``: what memory may grow by after the warm-up; ``flat``: what the pace may change by.

    Memory is compared between the first and the last of so many ``parts``, the pace between the first half of them and
    the last. ``size`` scales the lengths of answers and prompts.
    """
    report = Report(seconds=seconds, warm_up_seconds=warm_up, workers=WORKERS)
    async with Server(threads=threads, max_stream_tokens=10**9) as server:
        kinds: Counter[str] = Counter()
        statuses: Counter[int] = Counter()
        wrong: Counter[str] = Counter()

        draw = random.Random(seed)
        queue = (job for _ in itertools.count() for job in jobs(draw, size))

        async def one() -> None:
            kind, path, body, leave = next(queue)
            answer = await ask(server.port, body, path, leave)
            kinds[kind] += 1
            statuses[answer.status] += 1
            if reason := _wrong(kind, answer):
                wrong[f"{kind}: {reason}"] += 1

        async def worker() -> None:
            while time.perf_counter() < end:
                await one()

        await asyncio.gather(*[one() for _ in range(AT_ONCE)])
        end = time.perf_counter() + warm_up + seconds
        body = {"prompt": "", "max_tokens": None, "seed": seed, "stream": True}
        endless = asyncio.create_task(server.ask(body, Leave("fin", seconds=warm_up + seconds)))
        workers = [asyncio.create_task(worker()) for _ in range(WORKERS)]
        memory: list[tuple[float, int]] = []
        began = time.perf_counter()
        while (now := time.perf_counter()) < end:
            memory.append((now - began, server.anonymous_bytes))
            await asyncio.sleep(SAMPLE_SECONDS)
        await asyncio.gather(*workers)
        stream = await endless
        idle = await server.idle_seconds()
        counted = total(await server.metrics(), "aft_requests_total")
        report.demand("Traceback" not in server.log(), "no traceback in the log")
    _memory(report, memory, warm_up, growth_bytes, parts)
    _pace(report, stream, warm_up, flat, parts)
    report.note(requests=dict(kinds), statuses={str(status): count for status, count in sorted(statuses.items())})
    report.note(wrong=dict(wrong), idle_seconds=idle)
    report.demand(not wrong, "every request ends as it should")
    report.demand(counted == kinds.total() + 1, "one outcome for each request")
    return report.figures()


def _wrong(kind: str, answer: Answer) -> str:
    """What is wrong with an answer; a 503 that says when to come back is none, and is counted by its status."""
    if kind == "leaves":
        return "" if answer.end in ("left", "done") else f"the end is {answer.end!r}"
    if answer.status == 503 and answer.code == "queue_full" and "retry-after" in answer.headers:
        return ""
    expected = 400 if kind == "refused" else 200
    if answer.status != expected:
        return f"status {answer.status} {answer.code}"
    return "" if answer.end == "done" else f"the end is {answer.end!r}"


def _memory(report: Report, samples: list[tuple[float, int]], warm_up: float, most: int, parts: int) -> None:
    after = [size for when, size in samples if when >= warm_up]
    part = max(1, len(after) // parts)
    first, last = statistics.median(after[:part]), statistics.median(after[-part:])
    report.note(
        anonymous_bytes_at_start=samples[0][1], anonymous_bytes_after_warm_up=first, anonymous_bytes_at_end=last,
        grown_bytes=last - first, most_bytes=max(after),
    )  # fmt: skip
    report.demand(last - first < most, f"memory grows by less than {most} bytes after the warm-up")


def _pace(report: Report, stream: Answer, warm_up: float, flat: float, parts: int) -> None:
    times = [(when - stream.began, count) for when, count in stream.events]
    each = [(b - a) / count for (a, _), (b, count) in itertools.pairwise(times) if a >= warm_up]
    part = max(1, len(each) // parts)
    # one part may be slow by what runs beside it, the first as well as the last
    medians = [statistics.median(each[at : at + part]) for at in range(0, part * parts, part) if each[at : at + part]]
    last, early = medians[-1], statistics.median(medians[: max(1, len(medians) // 2)])
    report.note(
        stream_characters=len(stream.text), parts=parts, seconds_per_character_by_part=medians,
        seconds_per_character_last_part=last,
    )  # fmt: skip
    report.demand(stream.end == "left", "the long stream goes on to the end")
    report.demand(last < flat * early, f"the last part of a stream takes less than {flat:g} times the first half's")
