"""A long prompt that arrives beside running streams: the gaps between their events."""

from __future__ import annotations

import asyncio
import itertools
import time

from endurance.figures import Figures, Report, quantile
from endurance.server import TEXT, Server, until
from endurance.wire import ANSWER_SECONDS, COMPLETIONS, Answer, Leave, ask

WORDS = "the king is dead, long live the king. "


async def run(
    characters: int = 100_000, streams: int = 8, rounds: int = 5, factor: float = 2.0, threads: int = 0
) -> Figures:
    """The p99 of gaps while a prompt of so many characters is computed, beside that of as long a time without one.

    Each round has both, one after the other, so that whatever else the machine does meets both.
    """
    report = Report(characters=characters, streams=streams, rounds=rounds, factor=factor)
    async with Server(threads=threads) as server:
        answers: list[Answer] = []

        def seen(answer: Answer) -> None:
            if len(answer.events) == 1:
                answers.append(answer)

        async def stream(number: int) -> None:
            body = {"model": TEXT, "prompt": "", "max_tokens": None, "seed": number, "stream": True}
            await ask(server.port, body, leave=Leave("fin", seconds=4 * ANSWER_SECONDS), seen=seen)

        async def all_run() -> bool:
            return len(answers) == streams

        running = [asyncio.create_task(stream(number)) for number in range(streams)]
        try:
            await until(all_run, 60)
            await asyncio.sleep(0.5)  # the bursts find their length
            alone: list[float] = []
            beside: list[float] = []
            times: list[float] = []
            seconds: list[float] = []
            for number in range(rounds):
                prompt = (f"{number} " + WORDS * (characters // len(WORDS) + 1))[:characters]
                began = time.perf_counter()
                body = {"model": TEXT, "prompt": prompt, "max_tokens": 1}
                answer = await ask(server.port, body, COMPLETIONS)
                report.demand(answer.status == 200, "the prompt is answered")
                ended = time.perf_counter()
                seconds.append(ended - began)
                loaded = _gaps(answers, began, ended)
                await asyncio.sleep(0.5)
                began = time.perf_counter()
                await asyncio.sleep(seconds[-1])
                unloaded = _gaps(answers, began, time.perf_counter())
                times.append(quantile(loaded, 0.99) / quantile(unloaded, 0.99))
                beside += loaded
                alone += unloaded
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        report.demand(len(answers) == streams and not any(answer.end for answer in answers), "every stream goes on")
    figures = {"alone": alone, "beside": beside}
    for share in (0.5, 0.99):
        report.note(**{f"gap_p{100 * share:g}_{name}": quantile(gaps, share) for name, gaps in figures.items()})
    median = quantile(times, 0.5)
    report.note(
        gaps_alone=len(alone), gaps_beside=len(beside), prompt_seconds=quantile(seconds, 0.5), p99_times=median,
        p99_times_by_round=times,
    )  # fmt: skip
    promise = f"the p99 gap beside a long prompt is less than {factor:g} times that alone, in most rounds"
    report.demand(median < factor, promise)
    return report.figures()


def _gaps(answers: list[Answer], began: float, ended: float) -> list[float]:
    """Of all streams: gaps that ended between two times."""
    return [b - a for answer in answers for (a, _), (b, _) in itertools.pairwise(answer.events) if began < b <= ended]
