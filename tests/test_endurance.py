"""What the service endures, in short: `make soak` runs the same scenarios at length (benchmarks/endurance).

And the client that they use: it must end a connection as it says, and must notice every answer that has no end.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from endurance.figures import Report, per_token, quantile, weighted_quantile
from endurance.forms import LONG, SHORT
from endurance.server import total
from endurance.wire import Answer, Connection, Leave, ask, get

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"text":"ab","finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"text":"c","finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"m","type":"t","param":null,"code":"shutting_down"}}\n\n'


@pytest.mark.xdist_group("endurance")  # they measure, so one at a time
@pytest.mark.parametrize("name", SHORT)
def test_every_promise_is_kept(name: str) -> None:
    """With both shipped models and the native runtime."""
    pytest.importorskip("model.runtime.native._kernel", reason="the native kernel is not built here")
    figures = asyncio.run(_bounded(SHORT[name]()))
    assert figures["broken"] == [], figures


async def _bounded(scenario: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    async with asyncio.timeout(240):
        return await scenario


def test_each_has_a_short_and_a_long_form() -> None:
    """What is not run at length is not endured."""
    assert set(LONG) == set(SHORT)


def chunks(*parts: bytes, end: bool = True) -> bytes:
    """An answer as a server sends it."""
    return HEAD + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n" * end


def against(
    answer: bytes, test: Callable[[int], Coroutine[None, None, Any]], *, stay: bool = False
) -> tuple[Any, str | None]:
    """What ``test`` gives beside a server that sends one answer, and how that server saw the client end.

    The server closes after its answer, or stays until the client goes.
    """

    async def main() -> tuple[Any, str | None]:
        seen: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
                while stay and await reader.read(1000):
                    pass
                seen.set_result("fin")
            except ConnectionResetError:
                seen.set_result("rst")
            finally:
                writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            given = await test(server.sockets[0].getsockname()[1])
            return given, await asyncio.wait_for(seen, 10) if stay else None

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "end", "text"),
    [
        (chunks(EVENT, b":\n", LAST, DONE), "done", "abc"),
        (chunks((EVENT + LAST + DONE)[:30], (EVENT + LAST + DONE)[30:]), "done", "abc"),  # an event in two pieces
        (chunks(EVENT, ERROR), "shutting_down", "ab"),
        (chunks(EVENT, LAST), "", "abc"),  # complete HTTP, but no [DONE]
        (chunks(EVENT, end=False), "cut", "ab"),
        (HEAD, "cut", ""),
        (b"", "cut", ""),
    ],
)
def test_the_client_sees_how_an_answer_ends(answer: bytes, end: str, text: str) -> None:
    """And whether it has an end at all."""
    given, _ = against(answer, lambda port: ask(port, None))
    assert (given.end, given.text) == (end, text)


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("when", [{"seconds": 0.1}, {"events": 1}])
def test_the_client_leaves_as_it_says(how: Any, when: dict[str, Any]) -> None:
    """By time or by events; the other side reads an end, or a reset."""
    answer = chunks(EVENT, end=False)
    given, seen = against(answer, lambda port: ask(port, None, leave=Leave(how, **when)), stay=True)
    assert (given.end, seen) == ("left", how)


def test_a_small_window_is_asked_for_before_connecting() -> None:
    """Or the kernel would take megabytes for a reader that reads nothing."""

    async def window(port: int) -> int:
        connection = await Connection.open(port, 4096)
        size = connection.sock.getsockopt(1, 8)  # SOL_SOCKET, SO_RCVBUF
        connection.close()
        return size

    size, _ = against(b"", window)
    assert size <= 2 * 4096


def test_nobody_listens() -> None:
    """No answer is status 0, not an exception: a server that starts is polled."""
    answer = asyncio.run(get(1, "/readyz"))
    assert (answer.status, answer.end) == (0, "cut")


def test_the_shape_of_a_refusal() -> None:
    """Only the one shape of all errors has a code."""
    good = b'{"error":{"message":"m","type":"t","param":null,"code":"queue_full"}}'
    assert Answer(0, body=good).code == "queue_full"
    for bad in (b"", b"Internal Server Error", b'{"error":{"code":"queue_full"}}', good.replace(b'"m"', b'""')):
        assert Answer(0, body=bad).code == ""


def test_figures() -> None:
    """Quantiles, gaps, sums over labels, and promises."""
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile(range(1, 101), 0.99) == 99
    assert quantile([], 0.5) == 0
    assert weighted_quantile([(1.0, 98), (5.0, 2)], 0.98) == 1
    assert weighted_quantile([(1.0, 98), (5.0, 2)], 0.99) == 5
    answer = Answer(1.0, events=[(1.5, 3), (2.0, 5), (4.0, 4)])
    assert answer.first_seconds() == 0.5
    assert per_token(answer.gaps()) == [(0.1, 5), (0.5, 4)]
    samples = {'a_total{x="1",y="2"}': 3.0, 'a_total{x="2",y="2"}': 4.0, 'a_total_created{x="1"}': 9.0, "b": 5.0}
    assert (total(samples, "a_total"), total(samples, "a_total", x="1"), total(samples, "b")) == (7, 3, 5)
    report = Report(count=1)
    report.demand(True, "kept")
    report.demand(False, "not kept")
    report.note(other=2)
    assert report.figures() == {"count": 1, "other": 2, "broken": ["not kept"]}
