"""The log: one line a request, with what an operator asks and nothing that a client said in confidence."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from fake_runtime import FakeRuntime
from fastapi import FastAPI
from live import fake_loader, make_checkpoints, serve
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.access import key_line
from service.app import create_app
from service.metrics import Metrics
from service.middleware import Envelope, Faults
from service.request import Ended, Outcome
from service.settings import Settings

LOGGER = "aft.requests"
FIELDS = {
    "id", "client_request_id", "method", "path", "status", "outcome", "key", "client", "model", "prompt_tokens",
    "generated_tokens", "choices", "queue_seconds", "first_token_seconds", "seconds",
}  # fmt: skip
SECRET = "my-own-words"


# lines


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """Reads what went to standard error; loggers are afterwards as they were."""
    root, uvicorn = logging.getLogger(), logging.getLogger("uvicorn")
    before = root.handlers[:], root.level, uvicorn.level
    yield lambda: capsys.readouterr().err
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    uvicorn.setLevel(before[2])


def fail() -> None:
    """A fault, with a prompt in a variable."""
    prompt = SECRET[::-1] + SECRET
    raise RuntimeError(f"{len(prompt)} letters")


def say() -> None:
    """Each kind of line."""
    log = logging.getLogger("aft.test")
    log.debug("unheard")
    log.info("serving %s", "tiny")
    try:
        fail()
    except RuntimeError:
        log.exception("request failed", extra={"id": "7"})
    logging.getLogger("uvicorn.error").info("unheard too")
    logging.getLogger("uvicorn.error").warning("a bad request")


def test_json(written: Callable[[], str]) -> None:
    """A record a line, exceptions too; times in UTC; the standard library's loggers speak through it."""
    logs.configure("info", "json")
    say()
    text = written()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["event"], line["level"], line["logger"]) for line in lines] == [
        ("serving tiny", "info", "aft.test"),
        ("request failed", "error", "aft.test"),
        ("a bad request", "warning", "uvicorn.error"),
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line["timestamp"]) for line in lines)
    assert lines[1]["id"] == "7"
    assert lines[1]["exception"].startswith("Traceback")
    assert "RuntimeError: 24 letters" in lines[1]["exception"]
    assert SECRET not in text


def test_console(written: Callable[[], str]) -> None:
    """Plain lines, tracebacks without variables, no colours where nobody looks, no fields without a value."""
    logs.configure("info", "console")
    say()
    logging.getLogger("aft.test").info("request", extra={"model": "", "status": None, "key": "anna"})
    text = written()
    first, *_, last = text.splitlines()
    assert re.fullmatch(r"\d{4}-\S+Z \[info +\] serving tiny \[aft\.test\]", first), first
    assert "key=anna" in last
    assert "model" not in last
    assert "status" not in last
    assert "RuntimeError: 24 letters" in text
    assert SECRET not in text
    assert "\x1b" not in text


def test_levels(written: Callable[[], str]) -> None:
    """Whatever is less severe is not written; a second call changes it, and doubles nothing."""
    logs.configure("error", "json")
    say()
    assert written().count("\n") == 1
    logs.configure("debug", "json")
    logging.getLogger("aft.test").debug("heard")
    assert written().count("heard") == 1


# requests


class Caller:
    """Requests to the application without a socket, and what was logged of each."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.caplog, self.sent = caplog, list[Message]()
        caplog.set_level(logging.INFO, LOGGER)

    async def request(
        self, app: ASGIApp, method: str, path: str, *received: Message, query: bytes = b"", **headers: str
    ) -> dict[str, Any]:
        """The one line; {} where there is none."""
        self.caplog.clear()
        self.sent = []
        messages = [*received] or [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Message:
            if messages:
                return messages.pop(0)
            return await asyncio.Future()

        async def send(message: Message) -> None:
            self.sent.append(message)

        given = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode("utf-8", "replace"), "query_string": query, "root_path": "",
            "headers": [(b"host", b"localhost"), *given], "client": ("10.9.8.7", 40_000), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        try:
            await app(scope, receive, send)
        finally:
            lines = [record for record in self.caplog.records if record.getMessage() == "request"]
            assert len(lines) <= 1
            line = {name: getattr(lines[0], name) for name in FIELDS} if lines else {}
        if line and self.sent:
            assert (b"x-request-id", line["id"].encode()) in self.sent[0]["headers"]
        return line


@pytest.fixture
def caller(caplog: pytest.LogCaptureFixture) -> Caller:
    """Reads the log of this process."""
    return Caller(caplog)


def make(**settings: Any) -> FastAPI:
    """The application; its models are never loaded."""
    return create_app(Settings(**settings))


def body(**fields: Any) -> Message:
    """The body of a completion."""
    raw = json.dumps({"model": "fake0", "prompt": SECRET, "max_tokens": 5, "seed": 1, **fields}).encode()
    return {"type": "http.request", "body": raw, "more_body": False}


def counted(app: FastAPI) -> dict[tuple[str, str, str], float]:
    """The counter of requests by model, endpoint and outcome."""
    (family,) = app.state.service.metrics.requests.collect()
    samples = [sample for sample in family.samples if sample.name.endswith("_total")]
    return {(s.labels["model"], s.labels["endpoint"], s.labels["outcome"]): s.value for s in samples}


async def ready(app: FastAPI) -> None:
    """Wait until its models are there."""
    while app.state.service.engine is None:
        await asyncio.sleep(0.001)


def test_a_completion(caller: Caller) -> None:
    """Who, what, how long and how much; nothing of the prompt, the text or the key."""
    app = create_app(Settings(api_keys=["sesame"]), load=fake_loader(FakeRuntime()))
    headers = {"authorization": "Bearer sesame", "content_type": "application/json", "x_request_id": "mine-1.2_3"}

    async def run(stream: bool) -> dict[str, Any]:
        async with app.router.lifespan_context(app):
            await ready(app)
            path, message = "/v1/completions", body(stream=stream)
            return await caller.request(app, "POST", path, message, query=f"q={SECRET}".encode(), **headers)

    for stream in (False, True):
        line = asyncio.run(run(stream))
        assert line.keys() == FIELDS
        assert {
            "client_request_id": "mine-1.2_3", "method": "POST", "path": "/v1/completions", "status": 200,
            "outcome": "length", "key": "key-1", "client": "10.9.8.7", "model": "fake0", "prompt_tokens": len(SECRET),
            "generated_tokens": 5, "choices": 1,
        }.items() <= line.items()  # fmt: skip
        assert 0 <= line["queue_seconds"] <= line["first_token_seconds"] <= line["seconds"] < 30
        everything = "".join(str(vars(record)) for record in caller.caplog.records)
        for secret in (SECRET, "sesame", "quick", "fox"):
            assert secret not in everything
        app = create_app(Settings(api_keys=["sesame"]), load=fake_loader(FakeRuntime()))


def test_refusals(caller: Caller) -> None:
    """No model and no tokens, but who and why."""
    app = make(api_keys=["sesame"])
    line = asyncio.run(caller.request(app, "POST", "/v1/completions", body(), authorization="Bearer open"))
    assert (line["status"], line["outcome"], line["key"], line["model"]) == (401, "rejected", "", "")
    assert [line[name] for name in ("prompt_tokens", "choices", "queue_seconds", "client_request_id")] == [None] * 4
    line = asyncio.run(caller.request(app, "GET", "/v1/models", authorization="Bearer sesame"))
    assert (line["status"], line["outcome"], line["key"]) == (503, "rejected", "key-1")
    assert counted(app) == {("", "completions", "rejected"): 1, ("", "models", "rejected"): 1}
    assert "open" not in str([vars(record) for record in caller.caplog.records])


def test_probes(caller: Caller) -> None:
    """Only those that fail; neither is counted."""
    app = make()
    for path in ("/livez", "/metrics"):
        assert asyncio.run(caller.request(app, "GET", path)) == {}
        assert caller.sent[0]["status"] == 200
    line = asyncio.run(caller.request(app, "GET", "/readyz"))
    assert (line["status"], line["path"]) == (503, "/readyz")
    assert counted(app) == {}
    asyncio.run(caller.request(app, "POST", "/metrics"))  # that is none of theirs
    assert list(counted(app).values()) == [1]


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        ("/v1/models", "/v1/models"), ("/a\nb\x1b[2J\r", "/a\\nb\\x1b[2J\\r"), ("/\ud800é", "/\\ud800\\xe9"),
        ("/" + "x" * 5000, "/" + "x" * 127 + "\\u2026"),
    ],
)  # fmt: skip
def test_paths(caller: Caller, path: str, logged: str) -> None:
    """Short, in one line of ASCII, and without the query."""
    line = asyncio.run(caller.request(make(), "GET", path, query=SECRET.encode()))
    assert line["path"] == logged
    assert SECRET not in str(line)


@pytest.mark.parametrize(
    ("given", "logged"),
    [
        ("a.B-c_9", "a.B-c_9"), ("x" * 64, "x" * 64), ("x" * 65, None), ("", None), ("a b", None), ("a\n", None),
        ("a/b", None), ("\xe9", None), ("\xb2", None),
    ],
)  # fmt: skip
def test_ids_of_clients(caller: Caller, given: str, logged: str | None) -> None:
    """Beside ours, if it is a decent one."""
    line = asyncio.run(caller.request(make(), "GET", "/nothing", x_request_id=given))
    assert line["client_request_id"] == logged
    assert re.fullmatch(r"[0-9a-f]{16}", line["id"])


def test_an_address_that_somebody_made_up(caller: Caller) -> None:
    """A proxy's header may hold anything."""

    async def run() -> dict[str, Any]:
        async def behind_proxy(scope: Scope, receive: Receive, send: Send) -> None:
            await make()({**scope, "client": ("a\nb" + "x" * 9000, 0)}, receive, send)

        return await caller.request(behind_proxy, "GET", "/nothing")

    client = asyncio.run(run())["client"]
    assert client.startswith("a\\nbx")
    assert len(client) < 80


# clients that leave, and faults


def test_a_client_that_leaves_before_its_answer(caller: Caller) -> None:
    """499 and cancelled, in the log and the metrics."""
    runtime = FakeRuntime()
    app = create_app(Settings(), load=fake_loader(runtime))

    async def run() -> dict[str, Any]:
        async with app.router.lifespan_context(app):
            await ready(app)
            runtime.gate.clear()
            try:
                leave: Message = {"type": "http.disconnect"}
                headers = {"content_type": "application/json"}
                return await caller.request(app, "POST", "/v1/completions", body(), leave, **headers)
            finally:
                runtime.gate.set()

    line = asyncio.run(run())
    assert (line["status"], line["outcome"], line["model"], line["generated_tokens"]) == (499, "cancelled", "fake0", 0)
    assert line["first_token_seconds"] is None
    assert counted(app) == {("fake0", "completions", "cancelled"): 1}


START: Message = {"type": "http.response.start", "status": 200, "headers": []}
PART: Message = {"type": "http.response.body", "body": b"a", "more_body": True}
LAST: Message = {"type": "http.response.body", "body": b"b"}
Way = Literal["silent", "cut", "whole", "cancelled", "late", "fault", "fault after start"]


@pytest.mark.parametrize(
    ("way", "status", "outcome"),
    [
        ("silent", None, "cancelled"), ("cut", 200, "cancelled"), ("whole", 200, "stop"),
        ("cancelled", None, "cancelled"), ("late", None, "cancelled"), ("fault", 500, "error"),
        ("fault after start", 200, "error"),
    ],
)  # fmt: skip
def test_ways_to_end(caller: Caller, way: Way, status: int | None, outcome: str) -> None:
    """Only what was sent whole is a success; every way has its line."""
    metrics = Metrics(CollectorRegistry())

    async def inner(scope: Scope, _: Receive, send: Send) -> None:
        if way == "late":  # the engine was done, but nobody was there to read it
            scope["state"]["ended"] = Ended("tiny", Outcome.STOP, 1, 2, 1)
        if way == "cancelled":
            raise asyncio.CancelledError
        if way == "fault":
            raise RuntimeError("a fault")
        if way in ("cut", "whole", "fault after start"):
            await send(START)
            await send(PART)
        if way == "whole":
            await send(LAST)
        if way == "fault after start":
            raise RuntimeError("a fault")

    found: dict[str, Any] = {}

    async def run() -> None:
        found.update(await caller.request(Envelope(Faults(inner), metrics), "POST", "/v1/completions"))

    caught = {"cancelled": asyncio.CancelledError, "fault after start": RuntimeError}.get(way)
    if caught is None:
        asyncio.run(run())
    else:
        with pytest.raises(caught):
            asyncio.run(run())
        (record,) = [record for record in caller.caplog.records if record.getMessage() == "request"]
        found = vars(record)
    assert (found["status"], found["outcome"]) == (status, outcome)
    (family,) = metrics.requests.collect()
    totals = {s.labels["outcome"]: s.value for s in family.samples if s.name.endswith("_total")}
    assert totals == {outcome: 1}
    faults = [record for record in caller.caplog.records if record.exc_info]
    assert len(faults) == way.startswith("fault")


# the process


def test_a_process(tmp_path: Path) -> None:
    """Every line of standard error is JSON, from the first to the last; keys come from a file."""
    checkpoints = make_checkpoints(tmp_path / "checkpoints")
    (tmp_path / "keys").write_text(key_line("anna", "sesame"))
    settings = {"log_format": "json", "host": "0.0.0.0", "api_keys_file": tmp_path / "keys"}
    with serve(checkpoints, **settings) as process:
        asked = {"model": "tiny", "prompt": "Speak", "max_tokens": 4, "ignore_eos": True, "stream": True}
        assert process.post(asked).status_code == 401
        behind_a_proxy = {"authorization": "Bearer sesame", "x-forwarded-for": "203.0.113.9"}
        assert process.post(asked, headers=behind_a_proxy).status_code == 200
        process.signal()
        status, stderr = process.wait()
    assert status == 0
    lines = [json.loads(line) for line in stderr.splitlines()]
    assert "sesame" not in stderr
    assert "Speak" not in stderr
    events = [line["event"] for line in lines]
    assert any(event.startswith("listening on") for event in events)
    assert any(event.startswith("ready after") for event in events)
    assert not any("no keys" in event for event in events)
    posted = [line for line in lines if line["event"] == "request" and line["path"] == "/v1/completions"]
    assert [(line["status"], line["outcome"], line["key"], line["model"]) for line in posted] == [
        (401, "rejected", "", ""), (200, "length", "anna", "tiny"),
    ]  # fmt: skip
    assert posted[0].keys() == posted[1].keys() >= FIELDS
    assert [line["client"] for line in posted] == ["127.0.0.1", "203.0.113.9"]
    assert (
        len([event for event in events if re.fullmatch(r"serving \w+ on .*: weights .* slots x \d+ bytes .*", event)])
        == 2
    )
