"""A reader that never reads: the server's memory stays bounded, others go on, and it is cut off."""

from __future__ import annotations

import asyncio
import time

from endurance.figures import Figures, Report
from endurance.server import TEXT, Server, total, until
from endurance.wire import COMPLETIONS, Connection

RECEIVE_BUFFER = 4096
# an event for each token, and much in it: the kernel's own buffers, megabytes of them, fill up within seconds
BURST_SECONDS, CHOICES = 0.001, 32
BODY = {
    "model": TEXT, "prompt": "", "max_tokens": None, "n": CHOICES, "logprobs": 5, "stream": True,
    "stream_options": {"continuous_usage_stats": True},
}  # fmt: skip
GROWTH_BYTES = 1 << 20
PAUSE_SECONDS = 0.3  # without a new token: the generation is paused
FILL_SECONDS = 120.0


async def run(
    stalled_seconds: float = 60.0,
    max_tokens: int = 5000,
    factor: float = 1.5,
    growth_bytes: int = GROWTH_BYTES,
    threads: int = 0,
) -> Figures:
    """``stalled_seconds``: the setting, and so how long the memory is watched while nothing is read.

    ``factor``: of the time that a neighbour takes alone.
    """
    report = Report(stalled_reader_seconds=stalled_seconds, choices=CHOICES)
    settings = {"stalled_reader_seconds": stalled_seconds, "burst_seconds": BURST_SECONDS, "threads": threads}
    async with Server(**settings) as server:
        neighbour = {"prompt": "", "seed": 1, "max_tokens": max_tokens, "stream": True}
        alone = await server.ask(neighbour)
        reads = await Connection.open(server.port)  # the same with a reader: memory that any such stream takes
        await reads.send(COMPLETIONS, BODY)
        for _ in range(100):
            await reads.reader.readuntil(b"\n\n")
        reads.close()
        await server.idle_seconds()
        before = await server.metrics()
        generated = total(before, "aft_generation_tokens_total")
        level = server.anonymous_bytes

        connection = await Connection.open(server.port, RECEIVE_BUFFER)
        connection.reader._transport.pause_reading()  # type: ignore[attr-defined]  # this process, too, must not read
        began = time.monotonic()
        await connection.send(COMPLETIONS, BODY)
        most = 0

        async def paused() -> bool:
            nonlocal most
            tokens = await server.metric("aft_generation_tokens_total")
            await asyncio.sleep(PAUSE_SECONDS)
            most = max(most, server.anonymous_bytes)
            return tokens > generated and await server.metric("aft_generation_tokens_total") == tokens

        await until(paused, FILL_SECONDS)
        report.note(fill_seconds=time.monotonic() - began)
        beside = await server.ask(neighbour)
        held = await server.metric("aft_slots_in_use")
        report.demand(held == CHOICES, "it keeps its slots until it is cut off")
        same = (beside.end, beside.text) == ("done", alone.text)
        report.demand(same, "others get their text while one does not read")
        ratio = (beside.ended - beside.began) / (alone.ended - alone.began)
        report.note(neighbour_seconds=alone.ended - alone.began, neighbour_times_alone=ratio)
        report.demand(ratio <= factor, f"others take at most {factor:g} times as long as alone")
        cut_off, end = False, time.monotonic() + 2 * stalled_seconds + 10
        while not cut_off and time.monotonic() < end:
            await asyncio.sleep(0.05)
            most = max(most, server.anonymous_bytes)
            cut_off = not await server.metric("aft_slots_in_use")
        connection.close()
        report.note(
            cut_off_after_seconds=time.monotonic() - began, grown_bytes=most - level,
            grown_bytes_afterwards=server.anonymous_bytes - level,
        )  # fmt: skip
        after = await server.metrics()
        gone = {name: after.get(name, 0) - before.get(name, 0) for name in after if "disconnects_total" in name}
        report.demand(cut_off, "who reads nothing is cut off, and its slots are free")
        report.demand(sum(gone.values()) == 1, "the cut is counted once")
        report.demand(most - level < growth_bytes, f"memory grows by less than {growth_bytes} bytes")
        report.demand("Traceback" not in server.log(), "no traceback in the log")
    return report.figures()
