"""``aft bench serve``: every failure is counted as what it is, arrivals wait for nothing, figures on known numbers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import live
import pytest
from fake_runtime import FakeRuntime
from typer.testing import CliRunner

from service.cli import app
from service.load import plot as load_plot
from service.load import report as load_report
from service.load.client import Client, arrivals
from service.load.null import PACED, null_server
from service.load.record import FailedError, LoadError, Plan, Point, Reader, Record, Run
from service.load.statistics import Figures, compare, figures, histogram, parse, quantile, quantiles

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
TEXT = b'data: {"choices": [{"text": "ab"}], "usage": null}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}\n\n'
DONE = b"data: [DONE]\n\n"


def writes(*parts: bytes) -> Answer:
    """An answer of these bytes, then the end of the connection."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.writelines(parts)

    return answer


async def hang(_: asyncio.StreamWriter) -> None:
    """Nothing, for as long as the server lives. (A task that waits for what nobody else knows would be collected.)"""
    await asyncio.sleep(3600)


async def reset(writer: asyncio.StreamWriter) -> None:
    """An answer that breaks off."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    writer.write(b"%x\r\n%b\r\n" % (len(TEXT), TEXT))
    await writer.drain()
    writer.transport.abort()


FAULTS: dict[str, Answer] = {
    "ok": writes(HEAD, TEXT, USAGE, DONE),
    "http_500": writes(b"HTTP/1.1 500 Oh\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"),
    "disconnect": reset,
    "disconnect ": writes(),
    "no_done": writes(HEAD, TEXT),
    "error_event": writes(HEAD, TEXT, b'data: {"error": {"message": "x", "code": "internal_error"}}\n\n'),
    "malformed": writes(HEAD, TEXT, b"data: {]\n\n", DONE),
    "malformed ": writes(HEAD, TEXT, b'data: {"choices": [{"delta": 1}]}\n\n', DONE),
    "malformed  ": writes(HEAD, b"ab\n\n", DONE),
    "malformed   ": writes(HEAD, TEXT, DONE, TEXT),
    "malformed    ": writes(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
    "malformed     ": writes(b"what is this\r\n\r\n"),
    "timeout": hang,
}


class Fake:
    """A server that answers completions by a function, and knows how many it had at once."""

    def __init__(self, answers: Iterator[Answer], *, status: str = "200 OK") -> None:
        self.bodies: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.at_once = self.most_at_once = 0
        self._answers, self._status = answers, status

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads.append(head.decode())
                if head.startswith(b"POST"):
                    length = next(int(line[16:]) for line in head.lower().split(b"\r\n") if b"content-length" in line)
                    self.bodies.append(json.loads(await reader.readexactly(length)))
                    self.at_once += 1
                    self.most_at_once = max(self.at_once, self.most_at_once)
                    try:
                        await next(self._answers)(writer)
                    finally:
                        self.at_once -= 1
                    return
                body = b'{"data": [{"id": "pics", "kind": "image"}, {"id": "m", "kind": "text"}]}'
                writer.write(f"HTTP/1.1 {self._status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@contextlib.contextmanager
def serving(fake: Fake) -> Iterator[str]:
    """Its URL; it runs in a thread of its own."""
    loop, address = asyncio.new_event_loop(), list[str]()
    started = threading.Event()

    async def main() -> None:
        server = await asyncio.start_server(fake.handle, "127.0.0.1", 0)
        address.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        started.set()
        await stop.wait()
        server.close()

    stop = asyncio.Event()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(main())

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(10)
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
    assert not thread.is_alive()


def measure(url: str, point: Point, plan: Plan) -> Run:
    """One point."""

    async def go() -> Run:
        async with Client(url) as client:
            await client.prepare(None)
            return await client.measure(point, plan, "")

    return asyncio.run(go())


def bench(*arguments: object) -> tuple[int, str]:
    """Exit status and all output of ``aft bench serve``."""
    result = CliRunner().invoke(app, ["bench", "serve", *map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result.exit_code, result.output


def test_every_failure_is_counted_as_what_it_is() -> None:
    """One request each, and none is lost."""
    fake = Fake(iter(FAULTS.values()))
    with serving(fake) as url:
        plan = Plan("m", requests=len(FAULTS), warm_up=0, timeout_seconds=2)
        run = measure(url, Point(3, concurrency=1), plan)
    assert [record.outcome for record in run.records] == [name.strip() for name in FAULTS]
    found = figures(run, "m")
    assert found.num_ok == 1
    assert found.failures == Counter(name.strip() for name in FAULTS if name != "ok")
    assert found.first_failure == "http_500: no"
    assert sum(found.failures.values()) + found.num_ok == found.num_requests == len(FAULTS)
    assert found.tokens_per_second == 2 / run.window_seconds
    assert all(record.ended >= record.began for record in run.records)


def test_nobody_listens_any_more() -> None:
    """A server that goes away in mid-run: the records say so, and what was measured is kept."""

    async def go(url: str) -> Run:
        async with Client(url) as client:
            client.url = "http://127.0.0.1:1"
            return await client.measure(Point(1, concurrency=1), Plan("m", requests=2, warm_up=1), "")

    with null_server() as url:
        found = figures(asyncio.run(go(url)), "m")
    assert found.failures == {"connect": 2}
    assert found.num_warm_up_failed == 1
    assert found.server is None


def test_an_open_loop_waits_for_no_answer() -> None:
    """The server answers nobody until all have asked; a closed loop never has more than its workers."""
    all_came = asyncio.Event()

    async def answer(writer: asyncio.StreamWriter) -> None:
        if fake.at_once == 8:
            all_came.set()
        await all_came.wait()
        await FAULTS["ok"](writer)

    fake = Fake(itertools.repeat(answer))
    with serving(fake) as url:
        run = measure(url, Point(3, rate=50.0), Plan("m", requests=8, warm_up=0, seed=5))
        assert [record.outcome for record in run.records] == ["ok"] * 8
        assert fake.most_at_once == 8
        dues = list(arrivals(50.0, 5, seconds=0, requests=8))
        assert [record.due for record in run.records] == dues
        assert all(record.began >= record.due for record in run.records)
        assert all(record.first_seconds == record.events[0][0] - record.due for record in run.records)
        fake.most_at_once = 0
        run = measure(url, Point(3, concurrency=3), Plan("m", requests=9, warm_up=4))
        assert len(run.records) == 9
        assert fake.most_at_once <= 4  # the warm-up
    assert len({(body["prompt"], body["seed"]) for body in fake.bodies[:8]}) == 8
    assert [body["seed"] for body in fake.bodies[:8]] == list(range(5, 13))
    assert all("ignore_eos" not in body for body in fake.bodies)


def test_arrivals_are_poisson() -> None:
    """Seeded; gaps are exponential with the mean 1 / rate (Kolmogorov-Smirnov, 0.1 %), also in time."""
    times = list(arrivals(20.0, 1, seconds=0, requests=4000))
    assert times == list(arrivals(20.0, 1, seconds=0, requests=4000))
    assert times[:5] != list(arrivals(20.0, 2, seconds=0, requests=5))
    gaps = sorted(after - before for before, after in itertools.pairwise([0.0, *times]))
    distance = max(abs(1 - math.exp(-20.0 * gap) - i / len(gaps)) for i, gap in enumerate(gaps))
    assert distance < 1.95 / math.sqrt(len(gaps))
    within = list(arrivals(20.0, 1, seconds=10, requests=None))
    assert within == [now for now in times if now < 10]


def test_seconds_end_the_sending() -> None:
    """Requests are sent until then; rates count what came within."""
    with null_server() as url:
        run = measure(url, Point(8, concurrency=2), Plan("null", max_tokens=4, seconds=0.3, warm_up=0))
    assert all(record.ok and record.tokens == 4 and record.num_characters == 4 for record in run.records)
    assert max(record.began for record in run.records) < 0.3 <= run.wall_seconds
    assert run.window_seconds == 0.3
    assert len(run.records) >= 2


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_come_in_any_pieces(size: int) -> None:
    """Line ends of both kinds, comments, names and several lines of data."""
    record = Record(0, 0, 0.0, 0.0)
    reader = Reader(record)
    whole = (
        b':\n:\nevent: x\r\ndata: {"choices":\r\ndata: [{"text": "a\xc3\xa4"}]}\r\n\r\n' + TEXT + b":\n" + USAGE + DONE
    )
    for i in range(0, len(whole), size):
        reader.feed(whole[i : i + size], float(i))
    assert reader.done
    assert [characters for _, characters in record.events] == [2, 2]
    assert (record.prompt_tokens, record.tokens) == (1, 2)
    with pytest.raises(FailedError):
        reader.feed(DONE, 0.0)


def test_figures_on_known_numbers() -> None:
    """Two streams of a closed loop, one of them beyond the window, and one failure."""
    first = Record(0, 0, 0.0, 0.0, 3.0, "ok", "", [(1.0, 1), (2.0, 4), (3.0, 5)], 7, 20)
    second = Record(1, 1, 0.5, 1.0, 6.0, "ok", "", [(2.5, 2), (6.0, 2)])
    failed = Record(2, 2, 0.0, 0.0, 1.0, "disconnect", "gone", [(0.5, 3)])
    found = figures(Run(Point(7, rate=2.0), [first, second, failed], 0, 4.0, 8.0, 2.0), "m")
    assert (found.num_requests, found.num_ok, found.failures) == (3, 2, {"disconnect": 1})
    assert found.tokens_per_second == (20 + 2) / 4.0  # of the second, two of four characters
    assert found.requests_per_second == 1 / 4.0
    assert found.events_per_second == 6 / 8.0
    assert found.characters_per_event == 17 / 6
    assert (found.first_token.p50, found.first_token.p99) == (1.0, 2.0)
    assert (found.gap.p50, found.gap.p99) == (1.0, 3.5)
    # weights: 4 at 0.25, 5 at 0.2, 2 at 1.75
    assert (found.per_token.p50, found.per_token.p99) == (0.25, 1.75)
    assert (found.duration.p50, found.duration.p99) == (3.0, 5.5)
    assert (found.max_late_seconds, found.client_cpu_share, found.num_without_usage) == (0.5, 0.25, 1)


def test_quantiles() -> None:
    """Nearest rank."""
    values = [(float(i), 1) for i in range(100, 0, -1)]
    found = quantiles(values)
    assert (found.p50, found.p90, found.p99) == (50.0, 90.0, 99.0)
    assert quantile([(3.0, 1), (1.0, 8), (2.0, 1)], 0.9) == 2.0
    assert quantile([], 0.5) is None
    assert quantile([(1.0, 0), (2.0, 0)], 0.5) is None


METRICS = """\
# TYPE aft_time_to_first_token_seconds histogram
aft_time_to_first_token_seconds_bucket{{model="m",le="0.1"}} {0}
aft_time_to_first_token_seconds_bucket{{model="m",le="0.5"}} {1}
aft_time_to_first_token_seconds_bucket{{model="m",le="1.0"}} {2}
aft_time_to_first_token_seconds_bucket{{model="m",le="+Inf"}} {3}
aft_time_to_first_token_seconds_count{{model="m"}} {3}
aft_time_to_first_token_seconds_sum{{model="m"}} 1
aft_time_to_first_token_seconds_bucket{{model="other",le="0.1"}} 77
# TYPE aft_engine_step_seconds histogram
aft_engine_step_seconds_sum{{model="m"}} {4}
aft_engine_step_seconds_sum{{model="other"}} 5
# TYPE process_cpu_seconds counter
process_cpu_seconds_total {5}
"""


def test_the_servers_own_metrics() -> None:
    """Differences of two scrapes; the buckets in which its quantiles lie, and whether the client's do."""
    before, after = METRICS.format(1, 1, 1, 1, 2.0, 10.0), METRICS.format(2, 9, 10, 11, 4.0, 13.0)
    buckets = histogram(parse(before), parse(after), "aft_time_to_first_token_seconds", "m")
    assert buckets == [(0.1, 1), (0.5, 7), (1.0, 1), (math.inf, 1)]
    close = compare(buckets, "x", 0.5, 0.05)
    assert close is not None
    assert (close.above, close.at_most, close.agrees) == (0.1, 0.5, True)
    assert [compare(buckets, "x", 0.5, v).agrees for v in (0.3, 0.9, 1.1)] == [True, True, False]  # type: ignore[union-attr]
    last = compare(buckets, "x", 0.99, 9.0)
    assert last is not None
    assert (last.above, last.at_most, last.agrees) == (1.0, None, True)
    assert compare([(1.0, 0)], "x", 0.5, 1.0) is None
    assert compare(buckets, "x", 0.5, None) is None
    record = Record(0, 0, 0.0, 0.0, 3.0, "ok", "", [(0.4, 1), (2.0, 4)], 7, 5)
    server = figures(Run(Point(7, 1), [record], 0, 4.0, 4.0, 2.0, before, after), "m").server
    assert server is not None
    assert (server.cpu_seconds, server.cpu_seconds_per_event, server.engine_share) == (3.0, 1.5, 0.5)
    assert server.num_first_tokens == 10
    assert [found.share for found in server.comparisons] == [0.5, 0.9, 0.99]
    named = figures(Run(Point(7, 1), [record], 0, 4.0, 4.0, 2.0, before, after, 8.0), "m").server
    assert named is not None
    assert named.cpu_seconds == 8.0
    assert figures(Run(Point(7, 1), [record], 0, 4.0, 4.0, 2.0, "<html>", "<html>"), "m").server is None


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The null server for a moment."""
    monkeypatch.setattr(load_report, "CEILING_SECONDS", 0.05)
    monkeypatch.setattr(load_report, "PACED_TOKENS", 3)


@pytest.mark.usefixtures("short")
def test_against_the_service(tmp_path: Path) -> None:
    """All files and tables, on a service that decodes without a model; it counts as many as were sent."""
    json_file, lines, plot = tmp_path / "out.json", tmp_path / "lines.jsonl", tmp_path / "plot.png"
    with live.serve_app(live.fake_loader(FakeRuntime(4))) as client:
        status, said = bench(
            client.url + "/v1/", "--concurrency", "1,3", "--rates", "40", "--prompt-chars", "0,9", "--requests", 6,
            "--max-tokens", 20, "--json", json_file, "--lines", lines, "--plot", plot, "--null", "--key", "secret",
        )  # fmt: skip
        assert status == 0, said
        assert client.metric("aft_requests_total", model="fake0") == 6 * 6 + 2 * (1 + 3 + 4)
    assert "secret" not in said + json_file.read_text() + lines.read_text()
    for word in ("fake0", "3 at once", "40 a second", "null 20 ms", "first token", "histograms"):
        assert word in said
    found = json.loads(json_file.read_text())
    assert found["model"] == "fake0"
    assert {"cpu", "cores", "python", "aiohttp", "aft", "commit", "date"} <= found["machine"].keys()
    assert [point["load"] for point in found["points"]] == 2 * ["1 at once", "3 at once", "40 a second"]
    for point in found["points"]:
        assert (point["num_ok"], point["failures"], point["num_without_usage"]) == (6, {}, 0)
        assert point["tokens_per_second"] > 0
        assert point["first_token"]["p50"] <= point["first_token"]["p99"] <= point["duration"]["p99"]
        assert point["server"]["num_first_tokens"] == 6
        assert point["of_ceiling"] > 0
    assert [point["concurrency"] for point in found["ceilings"]] == [1, 3, 64]
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(records) == 36
    assert {record["outcome"] for record in records} == {"ok"}
    assert all(sum(characters for _, characters in record["events"]) == 20 for record in records)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_build_is_that_of_the_model_measured(tmp_path: Path) -> None:
    """Not of the first one that the server names."""
    with live.serve_app(live.fake_loader(FakeRuntime(1), FakeRuntime(1))) as client:
        status, said = bench(
            client.url, "--model", "fake1", "--requests", 1, "--max-tokens", 2, "--json", tmp_path / "out.json"
        )
        assert status == 0, said
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["model"], found["server"]["model"]) == ("fake1", "fake1")


def test_ignore_eos_where_the_service_knows_it() -> None:
    """Read from its description, written there or referred to."""
    from service.load.client import _knows_ignore_eos

    def described(schema: dict[str, Any]) -> str:
        content = {"application/json": {"schema": schema}}
        paths = {"/v1/completions": {"post": {"requestBody": {"content": content}}}}
        return json.dumps({"paths": paths, "components": {"schemas": {"C": {"properties": {"ignore_eos": {}}}}}})

    assert _knows_ignore_eos(200, described({"properties": {"ignore_eos": {}}}))
    assert _knows_ignore_eos(200, described({"$ref": "#/components/schemas/C"}))
    assert not _knows_ignore_eos(200, described({"properties": {}}))
    assert not _knows_ignore_eos(404, described({"properties": {"ignore_eos": {}}}))
    assert not _knows_ignore_eos(200, "no JSON")


@pytest.mark.usefixtures("short")
def test_the_null_server_alone() -> None:
    """Its rows without a service; what it sends is what it was asked for."""
    status, said = bench("--null", "--concurrency", "2", "--max-tokens", 300)
    assert status == 0, said
    assert "null, 2 at once" in said
    with null_server() as url:
        run = measure(url, Point(8, concurrency=1), Plan(PACED, max_tokens=5, requests=2, warm_up=0))
    assert [record.tokens for record in run.records] == [5, 5]
    assert all(len(record.events) == 5 for record in run.records)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "URL"),
        (["http://127.0.0.1:1"], "no service answers"),
        (["127.0.0.1:8000"], "http://"),
        (["URL", "--model", "other"], "it has m"),
        (["URL", "--model", "pics"], "no text model pics"),
        (["URL", "--concurrency", "0"], "at least 1"),
        (["URL", "--concurrency", "1.5"], "whole"),
        (["URL", "--rates", "x"], "'x'"),
        (["URL", "--pid", "99999999"], "99999999"),
        (["URL", "--lines", "/absent/x"], "/absent/x"),
        (["URL", "--requests", "1", "--concurrency", "1"], "no request was answered"),
    ],
)
def test_refused(arguments: list[str], word: str) -> None:
    """One line, status 1."""
    with serving(Fake(itertools.repeat(FAULTS["http_500"]))) as url:
        status, said = bench(*[url if argument == "URL" else argument for argument in arguments])
    assert status == 1
    line = said.splitlines()[-1]
    assert line.startswith("aft: ")
    assert word in line


@pytest.mark.parametrize(
    ("code", "word"), [("401 No", "--key"), ("200 OK", "serves no"), ("503 No", "no list of models")]
)
def test_a_service_that_cannot_be_measured(code: str, word: str) -> None:
    """No key, no such model, no list."""
    fake = Fake(iter(()), status=code)
    with serving(fake) as url:
        status, said = bench(url, "--key", "secret", "--model", "x")
    assert (status, said.count("\n")) == (1, 1)
    assert word in said
    assert "authorization: bearer secret" in fake.heads[0].lower()
    assert "secret" not in said


def test_matplotlib_and_aiohttp_are_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them it is said what to install, before anything is measured."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(LoadError, match="pip install matplotlib"):
        load_plot.library()
    status, said = bench("http://127.0.0.1:1", "--plot", "x.png")
    assert (status, "matplotlib" in said) == (1, True)
    monkeypatch.setattr("service.load.cli.importlib.util.find_spec", lambda _: None)
    status, said = bench("http://127.0.0.1:1")
    assert (status, said) == (1, "aft: bench serve needs aiohttp: pip install -e '.[bench]'\n")


def test_a_client_at_its_ceiling_is_named() -> None:
    """By events a second, or by its core."""
    from service.load.statistics import Results
    from service.load.tables import remarks

    def point(cpu: float, events: int) -> Figures:
        record = Record(0, 0, 0.0, 0.0, 1.0, "ok", "", [(0.1, 1)] * events, 1, events)
        return figures(Run(Point(1, 1), [record], 0, 1.0, 1.0, cpu), "m")

    for cpu, events, named in ((0.1, 49, False), (0.1, 51, True), (0.6, 1, True)):
        measured = point(cpu, events)
        results = Results("m", {}, [measured], {1: point(1.0, 100)})
        assert any("BOTTLENECK" in said for said in remarks(measured, results)) is named


def test_remarks() -> None:
    """What went wrong beside the figures is said in a sentence each."""
    from service.load.statistics import Results
    from service.load.tables import remarks, tables

    late = Record(0, 0, 0.0, 0.2, 1.0, "ok", "", [(0.1, 1)])
    failed = Record(1, 1, 0.0, 0.0, 1.0, "no_done", "the end")
    before, after = METRICS.format(0, 0, 0, 0, 0, 0), METRICS.format(1, 9, 9, 9, 1, 1)
    measured = figures(Run(Point(1, rate=2.0), [late, failed], 3, 1.0, 1.0, 0.1, before, after), "m")
    said = remarks(measured, Results("m", {}, [measured]))
    assert len(said) == 5
    for sentence, words in zip(
        said, ["first failure: no_done: the end", "3 requests of the warm-up", "1 answers without usage",
               "up to 200 ms too late", "other clients"], strict=True,
    ):  # fmt: skip
        assert words in sentence
    machine = {"cpu": "c", "cores": 1, "date": "d"}
    assert len(tables(Results("m", {}, [measured]), machine)) == 4
    assert tables(Results(), machine) == []


def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C: status 130, and the points that were complete are printed and written."""
    fake = Fake(itertools.chain([FAULTS["ok"]] * 2, itertools.repeat(hang)))
    # a shell that runs the tests in the background has them ignore it, and so would the child
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGINT, before)
        url = stack.enter_context(serving(fake))
        process = subprocess.Popen(
            [str(live.AFT), "bench", "serve", url, "--concurrency", "1", "--prompt-chars", "1,2", "--requests", "1",
             "--json", str(tmp_path / "out.json")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        live.wait_until(lambda: len(fake.bodies) == 3)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "interrupted: 1 of 2 points" in said
    assert "Traceback" not in errors
    assert len(json.loads((tmp_path / "out.json").read_text())["points"]) == 1
