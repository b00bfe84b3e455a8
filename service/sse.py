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
from starlette.types import Receive, Scope, Send

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
        watcher = asyncio.ensure_future(disconnected(receive))
        try:
            async with asyncio.timeout(self._stalled):
                await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await self._pump(watcher, send)
        except (TimeoutError, OSError):
            pass  # nobody reads any more: as if the client had left
        finally:
            watcher.cancel()
            try:
                await self._source.aclose()
            finally:
                self._on_close()

    async def _pump(self, watcher: asyncio.Future[None], send: Send) -> None:
        upcoming: asyncio.Future[bytes] | None = None
        ended = False
        try:
            while not ended and not watcher.done():
                upcoming = upcoming or asyncio.ensure_future(anext(self._source))
                await asyncio.wait((upcoming, watcher), timeout=self._heartbeat, return_when=asyncio.FIRST_COMPLETED)
                if watcher.done():
                    return
                part = HEARTBEAT
                if upcoming.done():
                    try:
                        part = upcoming.result()
                    except StopAsyncIteration:
                        part = b""
                    ended, upcoming = not part, None
                async with asyncio.timeout(self._stalled):
                    await send({"type": "http.response.body", "body": part, "more_body": not ended})
        finally:
            if upcoming is not None:
                upcoming.cancel()
                await asyncio.wait((upcoming,))
