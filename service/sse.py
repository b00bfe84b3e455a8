"""Server-sent events: bursts -> bytes, heartbeats, and an end that always comes.

A client leaves in two ways: ``receive`` says so, or ``send`` fails. And one that reads nothing leaves ``send``
waiting for ever, so that has a time. Whatever happens, the source is closed here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

HEARTBEAT = b":\n"  # a comment; two newlines would be an empty event for some clients
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]


def event(payload: dict[str, Any], name: str | None = None) -> bytes:
    """One event, named where its dialect names events. Line separators that some readers split at stay escaped."""
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    for sign in ("\u2028", "\u2029", "\x85"):
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {text}\n\n".encode()


async def disconnected(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A response of events from a generator of bytes. In every case it closes the generator, then calls ``on_close``.

    A generator that was never begun runs no ``finally`` when it is closed: hence the call.
    """

    def __init__(
        self,
        source: AsyncGenerator[bytes],
        on_close: Callable[[], None],
        heartbeat_seconds: float,
        stalled_seconds: float,
    ) -> None:
        super().__init__()
        self._on_close = on_close
        self._source, self._heartbeat, self._stalled = source, heartbeat_seconds, stalled_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the source ends, the client leaves, or it accepts nothing for too long."""
        loop = asyncio.get_running_loop()
        sending = asyncio.Lock()  # an event and a heartbeat must not wait for one slow reader side by side
        last = loop.time()  # when the reader last accepted something

        async def sent(message: Message) -> None:
            nonlocal last
            async with sending:
                # a heartbeat that waited for something else is not needed, and must not follow the end
                if message.get("body") == HEARTBEAT and loop.time() - last < self._heartbeat:
                    return
                async with asyncio.timeout(self._stalled):
                    await send(message)
                last = loop.time()

        async def pump() -> None:
            async for part in self._source:
                await sent({"type": "http.response.body", "body": part, "more_body": True})
            await sent({"type": "http.response.body", "body": b"", "more_body": False})

        async def beat() -> None:
            while True:
                await asyncio.sleep(last + self._heartbeat - loop.time())
                await sent({"type": "http.response.body", "body": HEARTBEAT, "more_body": True})

        tasks: list[asyncio.Future[None]] = []
        try:
            await sent({"type": "http.response.start", "status": 200, "headers": HEADERS})
            tasks = [asyncio.ensure_future(task) for task in (pump(), beat(), disconnected(receive))]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (TimeoutError, OSError):
            pass  # nobody reads any more: as if the client had left
        finally:
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._source.aclose()
            finally:
                self._on_close()
