"""Ten times as many requests as the service can answer: who is refused is told when to come back, the others notice
nothing.

First a closed loop fills all slots and the queue, and overfills neither: that gives the capacity, and the latency of a
full server. Then an open loop sends at a multiple of that capacity, whatever is answered.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine

from endurance.figures import Figures, Report, per_token, quantile, weighted_quantile
from endurance.server import Server
from endurance.wire import Answer

WORDS = "the king is dead, long live the king. "
Request = Callable[[int], Coroutine[None, None, Answer]]  # by its number


async def run(
    seconds: float = 30.0,
    slots: int = 64,
    queue: int = 256,
    max_tokens: int = 1000,
    times: float = 10.0,
    factor: float = 2.0,
    memory_bytes: int = 2 << 20,
    settle_seconds: float = 5.0,
    threads: int = 0,
) -> Figures:
    """``factor``: of the latency of a full server that is not overloaded."""
    report = Report(seconds=seconds, slots=slots, max_queue=queue, max_tokens=max_tokens, times=times, factor=factor)
    async with Server(slots=slots, max_queue=queue, threads=threads) as server:

        async def one(number: int) -> Answer:
            body = {"prompt": WORDS, "max_tokens": max_tokens, "seed": number, "stream": True}
            return await server.ask({**body, "ignore_eos": True})

        full, capacity = await _closed(one, slots + queue, seconds)
        report.demand(all(answer.end == "done" for answer in full), "a full server refuses nobody")
        # memory that threads take once, and keep: all of them at work, then for a while
        await asyncio.gather(*map(one, range(2 * (slots + queue) + 200)))
        await _open(one, times * capacity, seconds / 4)
        await server.idle_seconds(60)
        await asyncio.sleep(settle_seconds)
        before = server.anonymous_bytes
        used = server.cpu_seconds
        answers, lateness = await _open(one, times * capacity, seconds)
        report.note(server_cpu_seconds=server.cpu_seconds - used)
        await server.idle_seconds(60)
        await asyncio.sleep(settle_seconds)
        grown = server.anonymous_bytes - before
        report.demand("Traceback" not in server.log(), "no traceback in the log")
    admitted = [answer for answer in answers if answer.end == "done" and answer.status == 200]
    refused = [answer for answer in answers if answer.status not in (0, 200)]
    report.note(
        capacity_per_second=capacity, sent=len(answers), admitted=len(admitted), refused=len(refused),
        ends=dict(Counter(answer.end for answer in answers)), client_late_p99=quantile(lateness, 0.99),
        grown_bytes=grown,
    )  # fmt: skip
    report.demand(len(refused) > len(admitted) > 0, "most are refused, some are not")
    report.demand(len(admitted) + len(refused) == len(answers), "everybody is answered or refused")
    report.demand(all(map(_well_refused, refused)), "a refusal is a 503 with queue_full and a time to come back")
    for name, of in (("first_token", _first), ("gap_per_token", _gaps)):
        baseline, loaded = of(full), of(admitted)
        report.note(**{f"{name}_p99_full": baseline, f"{name}_p99_overloaded": loaded})
        promise = f"p99 of {name} of the admitted is at most {factor:g} times that of a full server"
        report.demand(0 < loaded <= factor * baseline, promise)
    report.demand(grown <= memory_bytes, f"memory returns to within {memory_bytes} bytes of its level before")
    return report.figures()


async def _closed(one: Request, workers: int, seconds: float) -> tuple[list[Answer], float]:
    """Each worker sends its next request when its last one is complete. The answers, and how many came in a second."""
    answers: list[Answer] = []
    began = time.perf_counter()
    end = began + seconds

    async def work(worker: int) -> None:
        number = worker
        while time.perf_counter() < end:
            answers.append(await one(number))
            number += workers

    await asyncio.gather(*map(work, range(workers)))
    # by characters: the first answers come late, the last ones after the end
    inside = sum(count for answer in answers for when, count in answer.events if when < end)
    characters = sum(len(answer.text) for answer in answers) / len(answers)
    return answers, inside / characters / seconds


async def _open(one: Request, rate: float, seconds: float) -> tuple[list[Answer], list[float]]:
    """Requests at random times, whatever is complete. The answers, and by how much each was sent too late."""
    draw, tasks, lateness = random.Random(0), list[asyncio.Task[Answer]](), list[float]()
    began = time.perf_counter()
    due = began
    while (due := due + draw.expovariate(rate)) < began + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        lateness.append(time.perf_counter() - due)
        tasks.append(asyncio.create_task(one(len(tasks))))
    return list(await asyncio.gather(*tasks)), lateness


def _well_refused(answer: Answer) -> bool:
    after = answer.headers.get("retry-after", "")
    return (answer.status, answer.code) == (503, "queue_full") and after.isdecimal() and 1 <= int(after) <= 60


def _first(answers: list[Answer]) -> float:
    return quantile((answer.first_seconds() for answer in answers), 0.99)


def _gaps(answers: list[Answer]) -> float:
    return weighted_quantile((gap for answer in answers for gap in per_token(answer.gaps())), 0.99)
