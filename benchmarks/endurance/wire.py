"""HTTP on plain connections to 127.0.0.1: a library would decide how a connection ends, and here that is the point."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

COMPLETIONS, GENERATIONS = "/v1/completions", "/v1/images/generations"
How = Literal["fin", "rst"]
HOWS: tuple[How, How] = ("fin", "rst")
ANSWER_SECONDS = 300.0  # no answer takes longer, so every scenario ends
DRAIN_SECONDS = 5.0  # for the server to see an end and close its own side


@dataclass(frozen=True, slots=True)
class Leave:
    """How a client goes, and when: so many events after the first byte, or so many seconds after its request."""

    how: How
    seconds: float = ANSWER_SECONDS
    events: int | None = None


@dataclass(slots=True)
class Answer:
    """What came back, and when."""

    began: float  # perf_counter's time when the request was sent
    ended: float = 0.0
    status: int = 0  # 0: the client had left before
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""  # where it is no stream
    parts: list[str] = field(default_factory=list)  # the text of a stream
    events: list[tuple[float, int]] = field(default_factory=list)  # those with text or an image: when, characters
    end: str = ""  # done, left, cut, late, or the code of the error that was the last event
    finish: str = ""  # the last finish_reason of a stream

    @property
    def text(self) -> str:
        """All text of a stream."""
        return "".join(self.parts)

    @property
    def stream(self) -> bool:
        """Whether events came, or were to come."""
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def code(self) -> str:
        """The code of a refusal that has the one shape of all errors; otherwise empty."""
        with contextlib.suppress(ValueError, LookupError, TypeError):
            error = json.loads(self.body)["error"]
            if set(error) == {"message", "type", "param", "code"} and error["message"]:
                return str(error["code"])
        return ""

    def first_seconds(self) -> float:
        """From the request to the first text."""
        return self.events[0][0] - self.began

    def gaps(self) -> list[tuple[float, int]]:
        """Seconds between two events, and the characters of the later one."""
        return [(b[0] - a[0], b[1]) for a, b in itertools.pairwise(self.events)]


class Connection:
    """One request on a connection of its own."""

    def __init__(self, sock: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sock, self.reader, self._writer = sock, reader, writer
        self.headers: dict[str, str] = {}

    @classmethod
    async def open(cls, port: int, receive_buffer: int | None = None) -> Connection:
        """Connect; a small ``receive_buffer`` makes a reader that stops be felt soon."""
        sock = socket.socket()
        try:
            if receive_buffer:  # before it connects, or the window is wide already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            return cls(sock, *await asyncio.open_connection(sock=sock))
        except BaseException:
            sock.close()
            raise

    async def send(self, path: str, body: dict[str, Any] | None) -> None:
        """A request: GET where there is no body."""
        raw = b"" if body is None else json.dumps(body).encode()
        head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n"
        self._writer.write(f"{head}\r\n".encode() + raw)
        await self._writer.drain()

    async def head(self) -> int:
        """Read the status and the headers."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        return int(lines[0].split()[1])

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it comes. IncompleteReadError or ConnectionError where it ends too early."""
        if "content-length" in self.headers:
            yield await self.reader.readexactly(int(self.headers["content-length"]))
            return
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)

    async def leave(self, how: How) -> None:
        """Go: FIN while nothing stays unread, or the kernel would send RST instead; or RST."""
        if how == "rst":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()
            return
        with contextlib.suppress(OSError, TimeoutError):
            self._writer.write_eof()
            async with asyncio.timeout(DRAIN_SECONDS):
                while await self.reader.read(1 << 16):
                    pass

    def close(self) -> None:
        """Close, whatever is unread."""
        self._writer.close()


async def ask(
    port: int,
    body: dict[str, Any] | None,
    path: str = COMPLETIONS,
    leave: Leave | None = None,
    seen: Callable[[Answer], None] | None = None,
) -> Answer:
    """One request, and its answer to the end or until the client is to leave; ``seen`` is called at each event."""
    connection = await Connection.open(port)
    answer = Answer(time.perf_counter())
    stay = Leave("fin") if leave is None else leave
    try:
        try:
            async with asyncio.timeout(stay.seconds):
                await connection.send(path, body)
                await _read(connection, answer, stay.events, seen)
        except TimeoutError:
            answer.end = "late" if leave is None else "left"
        except (OSError, asyncio.IncompleteReadError):
            answer.end = answer.end or "cut"
        answer.ended = time.perf_counter()
        if answer.end == "left":
            await connection.leave(stay.how)
    finally:
        connection.close()
    return answer


async def get(port: int, path: str) -> Answer:
    """GET; status 0 where nobody listens."""
    try:
        return await ask(port, None, path)
    except OSError:
        return Answer(time.perf_counter(), end="cut")


async def _read(
    connection: Connection, answer: Answer, most: int | None, seen: Callable[[Answer], None] | None
) -> None:
    answer.status = await connection.head()
    answer.headers = connection.headers
    if not answer.stream:
        answer.body = b"".join([part async for part in connection.parts()])
        answer.end = "done"
        return
    rest = b""
    async for part in connection.parts():
        *lines, rest = (rest + part).split(b"\n")
        now = time.perf_counter()
        for line in lines:
            if line.startswith(b"data: "):
                _event(answer, line[6:], now)
                if seen is not None:
                    seen(answer)
        if most is not None and len(answer.events) >= most and not answer.end:
            answer.end = "left"
            return


def _event(answer: Answer, data: bytes, now: float) -> None:
    if data == b"[DONE]":
        answer.end = "done"
        return
    payload = json.loads(data)
    if "error" in payload:
        answer.end = str(payload["error"]["code"])
    elif "b64_json" in payload:
        answer.events.append((now, len(payload["b64_json"])))
        if payload["type"].endswith(".completed"):  # streams of images have no [DONE]
            answer.end = "done"
    else:
        text = "".join(choice["text"] for choice in payload["choices"])
        reasons = [choice["finish_reason"] for choice in payload["choices"] if choice["finish_reason"]]
        answer.finish = (reasons or [answer.finish])[-1]
        if text:
            answer.parts.append(text)
            answer.events.append((now, len(text)))
