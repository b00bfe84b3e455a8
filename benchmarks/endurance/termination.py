"""SIGTERM under load: every stream has a final event, new work is sent elsewhere, and the process ends well."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

from endurance.figures import Figures, Report
from endurance.server import TEXT, Server, until
from endurance.wire import COMPLETIONS, Answer, ask, get

AT_ONCE_SECONDS = 1.0  # from the signal to a red /readyz
SECOND_SECONDS = 5.0  # from the second signal to the end
LAST_WORDS_SECONDS = 5.0  # beyond the drain's deadline


async def run(
    streams: int = 64, drain_seconds: float = 10.0, threads: int = 0, factor: float = 1.0, *, second: bool = False
) -> Figures:
    """Half of the streams can finish, half cannot, and half as many wait in the queue; ``second``: two signals.

    ``factor``: of the times that the service has to react.
    """
    report = Report(streams=streams, drain_seconds=drain_seconds, second_signal=second)
    async with Server(slots=streams, drain_seconds=drain_seconds, threads=threads) as server:
        begun = 0

        def seen(answer: Answer) -> None:
            nonlocal begun
            begun += len(answer.events) == 1

        async def stream(number: int) -> Answer:
            most = 150 if number % 2 and not second else None
            body = {"model": TEXT, "prompt": "", "max_tokens": most, "seed": number, "stream": True}
            return await ask(server.port, body, seen=seen)

        running = [asyncio.create_task(stream(number)) for number in range(streams + streams // 2)]

        async def all_run() -> bool:
            return begun >= streams

        await until(all_run, 60)
        server.terminate()
        signalled = time.monotonic()

        async def not_ready() -> bool:
            return (await get(server.port, "/readyz")).status == 503

        red = await until(not_ready, 10)
        report.note(not_ready_after_seconds=red)
        report.demand(red <= factor * AT_ONCE_SECONDS, "/readyz is 503 at once, and the port stays open")
        for stream_too in (False, True):
            body = {"model": TEXT, "prompt": "", "max_tokens": 5, "stream": stream_too}
            _refused(report, await ask(server.port, body, COMPLETIONS))
        if second:
            server.terminate()
            signalled = time.monotonic()
        status = await server.exit_status(drain_seconds + 30)
        took = time.monotonic() - signalled
        answers = await asyncio.gather(*running)
        _final(report, answers, {"shutting_down"} if second else {"shutting_down", "done"})
        report.note(exit_status=status, exit_after_seconds=took)
        report.demand(status == 0, "the exit status is 0")
        most = factor * SECOND_SECONDS if second else drain_seconds + factor * LAST_WORDS_SECONDS
        report.demand(took <= most, f"the process ends within {most:g} s")
        report.demand("Traceback" not in server.log(), "no traceback in the log")
    return report.figures()


def _refused(report: Report, answer: Answer) -> None:
    headers: dict[str, Any] = answer.headers
    report.demand((answer.status, answer.code) == (503, "shutting_down"), "new work is refused with 503")
    report.demand(1 <= int(headers.get("retry-after", 0)) <= 60, "the refusal says when to come back")
    report.demand(headers.get("connection") == "close", "the refusal closes the connection")


def _final(report: Report, answers: list[Answer], expected: set[str]) -> None:
    ends = Counter(answer.end for answer in answers)
    report.note(ends=dict(ends))
    report.demand(set(ends) == expected, "every stream has a final event, of the kinds that were to come")
    finished = [answer for answer in answers if answer.end == "done"]
    report.demand(all(answer.finish for answer in finished), "who is done has a finish_reason")
