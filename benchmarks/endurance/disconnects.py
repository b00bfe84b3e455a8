"""Clients that leave by FIN and by RST, in the queue, in prefill and in decode, while neighbours stream."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

from endurance.figures import Figures, Report
from endurance.server import IMAGES, TEXT, Server, total
from endurance.wire import COMPLETIONS, GENERATIONS, HOWS, Answer, Leave, ask

SLOTS, WORKERS = 4, 10  # more clients than slots: some leave the queue
WORDS = "the king is dead, long live the king. "
IDLE_SECONDS = 1.0


def _text(draw: random.Random, *, stream: bool) -> dict[str, Any]:
    return {
        "model": TEXT, "prompt": WORDS * draw.randint(0, 3), "max_tokens": 5000, "seed": draw.randrange(1000),
        "stream": stream,
    }  # fmt: skip


def victim(draw: random.Random) -> tuple[str, dict[str, Any], Leave]:
    """A request, and when its client leaves: some in decode, some in a long prompt, some at once."""
    how = draw.choice(HOWS)
    kind = draw.choice(("decode", "decode", "prefill", "prefill", "soon", "whole", "image", "image whole"))
    if kind == "decode":
        return COMPLETIONS, _text(draw, stream=True), Leave(how, seconds=30, events=draw.randint(1, 4))
    if kind == "prefill":
        body = {**_text(draw, stream=draw.random() < 0.5), "prompt": WORDS * 1000}
        return COMPLETIONS, body, Leave(how, seconds=draw.uniform(0, 0.6))
    if kind in ("soon", "whole"):
        most = 0.02 if kind == "soon" else 0.5
        return COMPLETIONS, _text(draw, stream=kind == "soon"), Leave(how, seconds=draw.uniform(0, most))
    body = {"model": IMAGES, "prompt": "", "stream": kind == "image"}
    if kind == "image":
        body["partial_images"] = 3
    events = draw.randint(1, 3) if kind == "image" else None
    return GENERATIONS, body, Leave(how, seconds=30 if events else draw.uniform(0, 0.3), events=events)


async def run(
    count: int = 1000, seed: int = 0, max_tokens: int = 3000, idle_seconds: float = IDLE_SECONDS, threads: int = 0
) -> Figures:
    """``count`` clients that leave, and two neighbours whose texts must be those that they get alone.

    ``idle_seconds``: until all slots are free.
    """
    report = Report(clients=count, seed=seed)
    async with Server(slots=SLOTS, threads=threads) as server:
        bodies = [{"prompt": WORDS, "seed": seed, "max_tokens": max_tokens, "stream": True} for seed in (1, 2)]
        references = [await server.ask(body) for body in bodies]
        queue = iter([victim(random.Random(f"{seed} {i}")) for i in range(1, count)])
        left = asyncio.Event()
        # the first one leaves in prefill whatever else there is: slots are free, and its prompt takes many seconds
        first = Leave("rst", seconds=1.0)
        body = {"model": TEXT, "prompt": WORDS * 10_000, "max_tokens": 1, "stream": True}
        gone = [(await ask(server.port, body, COMPLETIONS, first), first)]

        async def leaver() -> None:
            for path, body, leave in queue:
                gone.append((await ask(server.port, body, path, leave), leave))

        async def neighbour(place: int) -> list[Answer]:
            answers = [await server.ask(bodies[place])]
            while not left.is_set():
                answers.append(await server.ask(bodies[place]))
            return answers

        neighbours = [asyncio.create_task(neighbour(place)) for place in range(len(bodies))]
        await asyncio.gather(*[leaver() for _ in range(WORKERS)])
        left.set()
        beside = [await task for task in neighbours]
        idle = await server.idle_seconds()
        for reference, answers in zip(references, beside, strict=True):
            same = all((each.end, each.text) == ("done", reference.text) for each in [reference, *answers])
            report.demand(same and len(reference.text) > max_tokens // 2, "neighbours get the text that they get alone")
        sent = count + len(references) + sum(map(len, beside))
        _account(report, await server.metrics(), gone, sent, sent - count)
        report.note(idle_seconds=idle, neighbours_streams=sent - count - len(references))
        report.demand(idle <= idle_seconds, f"all slots are free within {idle_seconds:g} s")
        report.demand("Traceback" not in server.log(), "no traceback in the log")
    return report.figures()


def _account(
    report: Report, metrics: dict[str, float], gone: list[tuple[Answer, Leave]], sent: int, complete: int
) -> None:
    """What the service counted beside what its clients did."""
    names = ("stop", "length", "cancelled", "rejected", "error", "timeout")
    outcomes = {name: int(total(metrics, "aft_requests_total", outcome=name)) for name in names}
    phases = {
        name: int(total(metrics, "aft_client_disconnects_total", phase=name))
        for name in ("queued", "prefill", "decode")
    }
    ends = Counter(answer.end for answer, _ in gone)
    complete += sum(answer.end == "done" and answer.status == 200 for answer, _ in gone)
    refused = sum(answer.status == 503 for answer, _ in gone)
    report.note(
        sent=sent, outcomes=outcomes, disconnects=phases, ends=dict(ends),
        left_by=dict(Counter(leave.how for answer, leave in gone if answer.end == "left")),
        left_before_an_answer=sum(answer.end == "left" and not answer.status for answer, _ in gone),
    )  # fmt: skip
    report.demand(set(ends) <= {"done", "left"}, "nobody who stays is cut off")
    report.demand(sum(outcomes.values()) == sent, "one outcome for each request")
    report.demand(outcomes["error"] + outcomes["timeout"] == 0, "no errors")
    # a client may leave after the last byte was sent, so some who left count as complete
    report.demand(
        complete <= outcomes["stop"] + outcomes["length"] <= complete + ends["left"], "who stays is counted as complete"
    )
    report.demand(refused <= outcomes["rejected"] <= refused + ends["left"], "rejected are those that were refused")
    report.demand(0 < outcomes["cancelled"] <= ends["left"], "cancelled are those that left")
    report.demand(all(phases.values()), "clients left in every phase")
    # who leaves before the body was read is cancelled without a phase
    early = sum(answer.end == "left" and not answer.status for answer, _ in gone)
    report.demand(
        outcomes["cancelled"] - early <= sum(phases.values()) <= outcomes["cancelled"], "each disconnect has its phase"
    )
