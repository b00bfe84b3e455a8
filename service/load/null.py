"""A server that generates nothing: it answers completions with canned events as fast as it can.

What a client reaches against it is the client's own ceiling, on this machine, with this process beside it. Each event
is one character and one write: the client is spared nothing that a real server's stream of single tokens costs it. At
that speed events wait in the client; so a second model sends one every 20 ms: its times are the least it can see.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

FAST, PACED = "null", "null-paced"
PACE_SECONDS = 0.02
TURN = 8  # events of one stream before another's, at full speed
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def _chunk(data: str) -> bytes:
    raw = f"data: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(raw), raw)


def _event(text: str, reason: str | None) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason, "seed": 0}
    head = {"id": "cmpl-000000000000000000000000", "object": "text_completion", "created": 0, "model": FAST}
    return _chunk(json.dumps({**head, "system_fingerprint": "0" * 12, "choices": [choice], "usage": None}))


TEXT, LAST, DONE = _event("x", None), _event("x", "length"), _chunk("[DONE]")


class Null(asyncio.Protocol):
    """One connection; its requests come one after the other."""

    def __init__(self) -> None:
        self._got, self._writable = b"", asyncio.Event()
        self._writable.set()
        self._answer: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is here."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """And gone."""
        if self._answer is not None:
            self._answer.cancel()

    def pause_writing(self) -> None:
        """The client reads more slowly than this writes."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It has read."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Answer as soon as a request is whole."""
        self._got += data
        head, found, body = self._got.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if not found or len(body) < length:
            return
        self._got = body[length:]
        if head.startswith(b"POST /v1/completions "):
            asked = json.loads(body[:length])
            answer = self._stream(asked["max_tokens"], paced=asked["model"] == PACED)
            self._answer = asyncio.get_running_loop().create_task(answer)
        elif head.startswith(b"GET /v1/models "):
            self._whole(b"200 OK", json.dumps({"data": [{"id": FAST}, {"id": PACED}]}).encode())
        else:
            self._whole(b"404 Not Found", b"{}")

    def _whole(self, status: bytes, body: bytes) -> None:
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
        self._transport.write(head + body)

    async def _stream(self, count: int, *, paced: bool) -> None:
        self._transport.write(HEAD)
        for number in range(1, count):
            self._transport.write(TEXT)
            if paced or number % TURN == 0:
                await asyncio.sleep(PACE_SECONDS if paced else 0)
                await self._writable.wait()
        self._transport.write(LAST)
        usage = {"prompt_tokens": 0, "completion_tokens": count, "total_tokens": count}
        self._transport.write(_chunk(json.dumps({"choices": [], "usage": usage})) + DONE + END)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(Null, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)  # its end: whoever started this is gone
    server.close()


@contextmanager
def null_server() -> Iterator[str]:
    """The URL of one in a process of its own, which ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "service.load.null"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both; the client ends this one
    asyncio.run(_serve())
