"""The bytes of a stream, and that it ends and is closed once, whatever the client does. Raw ASGI calls."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.sse import DONE, HEARTBEAT, EventStream, event

Send = Callable[[dict[str, Any]], Awaitable[None]]
Sent = list[dict[str, Any]]


def test_the_bytes_of_an_event() -> None:
    """One line of compact JSON, two newlines, UTF-8 as it is."""
    assert event({"a": "é\n€", "b": None}) == 'data: {"a":"é\\n€","b":null}\n\n'.encode()


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\u0085"])
def test_line_separators_are_escaped(sign: str) -> None:
    """Some readers split lines at them."""
    raw = event({"text": f"a{sign}b"})
    assert raw == b'data: {"text":"a\\u%04xb"}\n\n' % ord(sign)
    assert json.loads(raw.removeprefix(b"data: "))["text"] == f"a{sign}b"


@given(st.text())
def test_any_text_is_one_line(text: str) -> None:
    """By every notion of a line."""
    lines = event({"text": text}).decode().splitlines()
    assert lines[1:] == [""]
    assert json.loads(lines[0].removeprefix("data: ")) == {"text": text}


class Source:
    """A source of bytes that knows whether it was closed."""

    def __init__(self, *parts: bytes, then: str = "end", pause: float = 0.0) -> None:
        self.parts, self.then, self.pause = parts, then, pause
        self.begun = self.finished = False
        self.closes = 0

    def on_close(self) -> None:
        """The stream's callback."""
        assert self.finished or not self.begun  # the generator's finally has run before
        self.closes += 1

    async def __call__(self) -> AsyncGenerator[bytes]:
        """The parts, then the end, an error, or silence for ever."""
        self.begun = True
        try:
            for part in self.parts:
                await asyncio.sleep(self.pause)
                yield part
            if self.then == "error":
                raise RuntimeError("a fault of the source")
            if self.then == "silence":
                await asyncio.Event().wait()
        finally:
            self.finished = True


async def never() -> dict[str, Any]:
    """A client that stays."""
    await asyncio.Event().wait()
    raise AssertionError


def call(
    source: Source,
    receive: Callable[[], Awaitable[dict[str, Any]]] = never,
    send: Send | None = None,
    heartbeat: float = 5.0,
    stalled: float = 5.0,
) -> Sent:
    """Run a stream to its end; what was sent. Closed exactly once in any case."""
    sent: Sent = []

    async def keep(message: dict[str, Any]) -> None:
        if send is not None:
            await send(message)
        sent.append(message)

    async def run() -> None:
        stream = EventStream(source(), source.on_close, heartbeat, stalled)
        async with asyncio.timeout(60):
            await stream({"type": "http"}, receive, keep)  # type: ignore[arg-type]

    try:
        asyncio.run(run())
    finally:
        assert source.closes == 1
        assert source.finished == source.begun
    return sent


def bodies(sent: Sent) -> list[bytes]:
    """The parts of the body."""
    return [message["body"] for message in sent if message["type"] == "http.response.body"]


def test_a_whole_stream() -> None:
    """Head, parts, an end."""
    sent = call(Source(b"one", b"two", DONE))
    assert sent[0]["status"] == 200
    assert dict(sent[0]["headers"]) == {
        b"content-type": b"text/event-stream; charset=utf-8",
        b"cache-control": b"no-cache, no-transform",
        b"x-accel-buffering": b"no",
    }
    assert bodies(sent) == [b"one", b"two", DONE, b""]
    assert [m.get("more_body") for m in sent[1:]] == [True, True, True, False]


def test_the_head_goes_out_before_the_first_part() -> None:
    """A client knows at once that it was taken."""
    times: list[float] = []

    async def send(_: dict[str, Any]) -> None:
        times.append(asyncio.get_running_loop().time())

    call(Source(b"one", pause=0.1), send=send)
    assert times[1] - times[0] >= 0.09


def test_heartbeats_fill_a_silence() -> None:
    """A colon and one newline; no part is lost to them."""
    assert HEARTBEAT == b":\n"
    parts = bodies(call(Source(b"one", b"two", pause=1.0), heartbeat=0.04))
    assert [part for part in parts if part != HEARTBEAT] == [b"one", b"two", b""]
    assert parts[:2] == [HEARTBEAT, HEARTBEAT]
    assert parts.count(HEARTBEAT) >= 4


def test_one_message_is_sent_at_a_time() -> None:
    """A reader slower than the heartbeat gets what it is sent one by one, and nothing after the end."""
    under_way = most = 0
    begun: Sent = []

    async def send(message: dict[str, Any]) -> None:
        nonlocal under_way, most
        begun.append(message)
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(1.0)
        under_way -= 1

    sent = call(Source(b"one", b"two"), send=send, heartbeat=0.3)
    assert most == 1
    assert [part for part in bodies(sent) if part != HEARTBEAT] == [b"one", b"two", b""]
    assert begun == sent
    assert [message.get("more_body") for message in sent[1:]] == [True] * (len(sent) - 2) + [False]


def test_no_heartbeat_follows_what_was_just_accepted() -> None:
    """One that waited for a slow part is no longer needed."""

    async def send(message: dict[str, Any]) -> None:
        if message.get("body") == b"slow":
            await asyncio.sleep(1.5)

    assert bodies(call(Source(b"slow"), send=send, heartbeat=0.5)) == [b"slow", b""]


def test_a_client_that_says_it_left() -> None:
    """``receive`` ends a stream that is silent; messages of the request's body do not."""
    messages = iter([{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}])

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.05)
        return next(messages)

    sent = call(Source(b"one", then="silence"), receive)
    assert bodies(sent) == [b"one"]


def test_a_client_that_had_left_before() -> None:
    """The source is never begun, and still closed."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    source = Source(b"one", then="silence")
    call(source, receive)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_send_raises(at: int) -> None:
    """At the head, at the first part, at a later one: as if the client had left."""
    count = 0

    async def send(_: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if count > at:
            raise OSError("broken pipe")

    source = Source(b"one", b"two", then="silence")
    assert len(call(source, send=send)) == at
    assert source.begun == (at > 0)


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_send_hangs(at: int) -> None:
    """A reader that takes nothing is cut off: at the head, at a part, and at the stream's very end."""
    count = 0

    async def send(_: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if count > at:
            await asyncio.Event().wait()

    source = Source(b"one", b"two")
    began = time.monotonic()
    assert len(call(source, send=send, stalled=0.1)) == at
    assert time.monotonic() - began < 2


def test_a_heartbeat_that_hangs() -> None:
    """Silence and a reader that takes nothing: cut off as well, and the source's wait is ended."""

    async def send(message: dict[str, Any]) -> None:
        if message.get("body") == HEARTBEAT:
            await asyncio.Event().wait()

    source = Source(then="silence")
    call(source, send=send, heartbeat=0.02, stalled=0.1)


def test_a_fault_of_the_source() -> None:
    """It is not swallowed, and all is closed."""
    source = Source(b"one", then="error")
    with pytest.raises(RuntimeError, match="a fault of the source"):
        call(source)


def test_the_task_is_cancelled() -> None:
    """A server that ends cancels its tasks: closed, and the cancellation goes on."""
    source = Source(b"one", then="silence")
    sent: Sent = []

    async def keep(message: dict[str, Any]) -> None:
        sent.append(message)

    async def run() -> None:
        stream = EventStream(source(), source.on_close, 5, 5)
        task = asyncio.ensure_future(stream({"type": "http"}, never, keep))  # type: ignore[arg-type]
        while len(sent) < 2:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert (source.finished, source.closes) == (True, 1)
