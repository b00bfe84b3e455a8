"""The contract of ``POST /v1/completions`` and its neighbours, as a client sees it: real servers, real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fake_runtime import FakeRuntime, expected
from live import (
    INVALID,
    Client,
    Process,
    assert_error,
    events,
    fake_loader,
    free_port,
    make_checkpoints,
    serve,
    serve_app,
    text_of,
    wait_until,
)

from model.automaton import Automaton, stops
from service.engine import Served
from service.metrics import Metrics
from service.settings import Settings

ROOT = Path(__file__).parents[1]
BASE: dict[str, Any] = {"model": "tiny", "prompt": "Speak", "max_tokens": 12, "seed": 7}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two tiny models."""
    return make_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def server(checkpoints: Path) -> Iterator[Process]:
    """One real process for all tests that do not end it."""
    with serve(checkpoints, max_body_bytes=200_000, max_tokens=1000, max_prompt_tokens=2000) as process:
        yield process


@pytest.fixture
def fake() -> Iterator[tuple[Client, FakeRuntime]]:
    """The app on a slow fake with two slots and one place in the queue."""
    runtime = FakeRuntime(2, seconds_per_token=0.001)
    with serve_app(fake_loader(runtime), max_queue=1, burst_seconds=0.01) as client:
        yield client, runtime


def test_a_whole_answer(server: Process) -> None:
    """OpenAI's shape, with the seed in each choice."""
    response = server.post(BASE)
    body = response.json()
    assert response.status_code == 200
    assert set(body) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
    assert body["id"].startswith("cmpl-")
    assert (body["object"], body["model"]) == ("text_completion", "tiny")
    assert abs(body["created"] - time.time()) < 60
    assert len(body["system_fingerprint"]) == 12
    assert int(body["system_fingerprint"], 16) >= 0
    (choice,) = body["choices"]
    assert set(choice) == {"index", "text", "logprobs", "finish_reason", "seed"}
    assert (choice["index"], choice["logprobs"], choice["seed"]) == (0, None, 7)
    assert choice["finish_reason"] in ("stop", "length")
    assert body["usage"]["prompt_tokens"] == 5
    assert 0 < body["usage"]["completion_tokens"] <= 12
    assert body["usage"]["total_tokens"] == 5 + body["usage"]["completion_tokens"]


@pytest.mark.parametrize("model", ["tiny", "short"])
@pytest.mark.parametrize("seed", [0, 1, -5, 2**63 - 1])
def test_whole_and_streamed_are_equal(server: Process, model: str, seed: int) -> None:
    """Text, reason, seed and usage; and twice the same."""
    body = {**BASE, "model": model, "seed": seed, "max_tokens": 90, "prompt": "日本 and "}
    whole = server.post(body).json()
    assert server.post(body).json()["choices"] == whole["choices"]
    chunks = server.stream({**body, "stream_options": {"include_usage": True}})
    assert text_of(chunks) == whole["choices"][0]["text"]
    assert chunks[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert chunks[-1]["usage"] == whole["usage"]
    assert {choice["seed"] for chunk in chunks for choice in chunk["choices"]} == {seed}
    assert {chunk["system_fingerprint"] for chunk in chunks} == {whole["system_fingerprint"]}


def test_the_shape_of_a_stream(server: Process) -> None:
    """Headers; one id; a reason in the last chunk alone; usage only where asked, then null in all but the last."""
    with server.http.stream("POST", "/v1/completions", json={**BASE, "stream": True}) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache, no-transform"
        assert response.headers["x-accel-buffering"] == "no"
        assert len(response.headers.get_list("x-request-id")) == 1
        plain = events("".join(response.iter_text()))
    asked = server.stream({**BASE, "stream_options": {"include_usage": True}})
    assert len({chunk["id"] for chunk in plain}) == 1
    assert all("usage" not in chunk for chunk in plain)
    assert [chunk["usage"] for chunk in asked[:-1]] == [None] * (len(asked) - 1)
    assert asked[-1]["choices"] == []
    reasons = [choice["finish_reason"] for chunk in plain for choice in chunk["choices"]]
    assert all(reason is None for reason in reasons[:-1])
    assert reasons[-1] in ("stop", "length")
    assert {chunk["object"] for chunk in plain} == {"text_completion"}
    assert server.stream({**BASE, "stream_options": {"include_usage": False}})[-1]["choices"]


def test_32_streams_at_once_equal_themselves_alone(server: Process) -> None:
    """The same seed, the same text, whatever else runs."""
    bodies = [{**BASE, "prompt": "Speak, speak! "[: i % 14], "seed": i, "max_tokens": 24 + i} for i in range(32)]
    alone = [server.post(body).json()["choices"][0]["text"] for body in bodies]

    async def all_at_once() -> list[str]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:

            async def one(body: dict[str, Any]) -> str:
                response = await client.post("/v1/completions", json={**body, "stream": True})
                return text_of(events(response.text))

            return await asyncio.gather(*map(one, bodies))

    assert asyncio.run(all_at_once()) == alone
    assert len(set(alone)) > 25


def test_a_model_that_ends(server: Process) -> None:
    """Its last position ends a text with length; a longer prompt is refused."""
    whole = server.post({**BASE, "model": "short", "prompt": "Speak" * 12, "max_tokens": 500, "temperature": 0}).json()
    assert whole["choices"][0]["finish_reason"] in ("length", "stop")
    assert whole["usage"]["completion_tokens"] <= 64 - 61 + 1
    response = server.post({**BASE, "model": "short", "prompt": "S" * 64})
    assert_error(response, 400, INVALID, "invalid_value", "prompt", "63", "64")


def test_the_official_client(server: Process) -> None:
    """Whole, streamed, with usage; models; its exceptions."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        whole = client.completions.create(**BASE)
        assert whole.usage is not None
        plain = list(client.completions.create(**BASE, stream=True))
        assert "".join(chunk.choices[0].text for chunk in plain) == whole.choices[0].text
        counted = list(client.completions.create(**BASE, stream=True, stream_options={"include_usage": True}))
        assert counted[-1].usage == whole.usage
        assert counted[-1].choices == []
        assert [model.id for model in client.models.list()] == ["short", "tiny"]
        assert client.models.retrieve("tiny").object == "model"
        with pytest.raises(openai.NotFoundError) as missing:
            client.models.retrieve("huge")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as bad:
            client.completions.create(**{**BASE, "temperature": 3})
        assert bad.value.param == "temperature"
        assert bad.value.request_id


def test_models(server: Process) -> None:
    """The list and each one, with facts of ours."""
    listed = server.http.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["short", "tiny"]
    for model in listed["data"]:
        assert server.http.get(f"/v1/models/{model['id']}").json() == model
        assert (model["object"], model["kind"], model["owned_by"]) == ("model", "text", "aft-serve")
        assert model["state_bytes"] > 0
    assert [model["max_model_len"] for model in listed["data"]] == [64, None]
    response = server.http.get("/v1/models/huge")
    assert_error(response, 404, INVALID, "model_not_found", "model", "huge", "short, tiny")


@pytest.mark.parametrize(
    ("changes", "param", "word"),
    [
        ({"temperature": 2.5}, "temperature", "2"),
        ({"temperature": "1"}, "temperature", "temperature"),
        ({"max_tokens": True}, "max_tokens", "max_tokens"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens: 0 is for scoring"),
        ({"max_tokens": -1}, "max_tokens", "0"),
        ({"max_tokens": 1001}, "max_tokens", "1000"),
        ({"prompt": "S" * 2001}, "prompt", "2000"),
        ({"prompt": None}, "prompt", "prompt"),
        ({"prompt": "a\ud800"}, "prompt", ""),
        ({"stop": [""]}, "stop", "stop"),
        ({"suffix": "x"}, "suffix", "None"),
        ({"n": 129}, "n", "128"),
        ({"best_of": 21}, "best_of", "20"),
        ({"logprobs": 6}, "logprobs", "5"),
        ({"guided_regex": "x"}, "guided_regex", "unknown field"),
        ({"stream_options": {}}, "stream_options", "stream: true"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options", "x"),
    ],
)
def test_refused_fields(server: Process, changes: dict[str, Any], param: str | None, word: str) -> None:
    """400 with the field, whether it streams or not."""
    for stream in ({}, {"stream": True}):
        if "stream_options" in changes and stream and "stream" not in changes:
            continue
        raw = json.dumps({**BASE, **stream, **changes})
        response = server.http.post("/v1/completions", content=raw, headers={"content-type": "application/json"})
        assert_error(response, 400, INVALID, "invalid_value", param, word)


@pytest.mark.parametrize("name", ["huge", "", "a" * 1000, "é", "../tiny"])
def test_unknown_models(server: Process, name: str) -> None:
    """404, clipped."""
    assert_error(server.post({**BASE, "model": name}), 404, INVALID, "model_not_found", "model", "short, tiny")


def test_malformed_bodies(server: Process) -> None:
    """No JSON, no number, twice the same, another media type, an encoding."""
    headers = {"content-type": "application/json"}

    def post(content: bytes, **more: str) -> httpx.Response:
        return server.http.post("/v1/completions", content=content, headers={**headers, **more})

    for content in (b"", b"{", b'{"temperature": NaN}', b"[" * 50_000, b"\xff", b"[]"):
        assert_error(post(content), 400, INVALID, "invalid_value", None)
    assert_error(post(b'{"seed":1,"seed":2}'), 400, INVALID, "invalid_value", "seed", "twice")
    good = json.dumps(BASE).encode()
    assert_error(post(good, **{"content-type": "text/plain"}), 400, INVALID, "invalid_value", None, "application/json")
    assert_error(post(good, **{"content-encoding": "gzip"}), 415, INVALID, "invalid_value", None)
    assert post(good, **{"content-type": "application/json; charset=utf-8"}).status_code == 200


def test_names_that_are_no_text(server: Process) -> None:
    """A field or model of unpaired surrogates is refused, and the refusal can be sent."""
    headers = {"content-type": "application/json"}
    for raw in (rb'{"\ud800":1}', rb'{"model":"\ud800","prompt":""}', rb'{"\ud800":1,"\ud800":2}'):
        response = server.http.post("/v1/completions", content=raw, headers=headers)
        assert response.status_code in (400, 404)
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_large_bodies(server: Process) -> None:
    """413 at once by the header, and in the middle of a body without one; the connection closes."""
    response = server.post({**BASE, "prompt": "x" * 200_001})
    assert_error(response, 413, INVALID, "request_too_large", None, "200000")
    assert response.headers["connection"] == "close"
    with server.connect() as sock:
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 999999999\r\n\r\n"
        )
        assert b" 413 " in sock.recv(1000)
    with server.connect() as sock:
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(4):
            sock.sendall(b"f000\r\n" + b" " * 0xF000 + b"\r\n")
        assert b" 413 " in sock.recv(1000)


def test_a_large_body_is_read_on_so_that_the_answer_arrives(server: Process) -> None:
    """A client that sends all of its 8 MB before it reads still gets the 413, not a reset."""
    for _ in range(5):
        with server.connect() as sock:
            sock.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 8000000\r\n\r\n"
            )
            for _ in range(8):
                sock.sendall(b" " * 1_000_000)
            assert b" 413 " in sock.recv(1000)


def test_unknown_routes_and_methods(server: Process) -> None:
    """404, also for a trailing slash; 405 with Allow."""
    for path in ("/v1", "/v1/completions/", "/v1/models/", "/readyz/", "/metrics/", "/v2/completions", "/docs/"):
        assert_error(server.http.get(path), 404, INVALID, "not_found")
    wrong = [("GET", "/v1/completions", "POST"), ("POST", "/v1/models", "GET"), ("PUT", "/readyz", "GET")]
    for method, path, allow in wrong:
        response = server.http.request(method, path)
        assert_error(response, 405, INVALID, "method_not_allowed")
        assert allow in response.headers["allow"]


def test_probes_answer_head(server: Process) -> None:
    """As GET, without a body."""
    for path in ("/livez", "/readyz", "/metrics"):
        get, head = server.http.get(path), server.http.head(path)
        assert (get.status_code, head.status_code, head.content) == (200, 200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
    assert server.http.get("/livez").text == "ok\n"


def test_every_answer_has_an_id_of_its_own(server: Process) -> None:
    """Ours, not the client's."""
    answers = [
        server.http.request(method, path, headers={"x-request-id": "mine"})
        for method, path in [
            ("GET", "/livez"), ("GET", "/readyz"), ("GET", "/metrics"), ("GET", "/v1/models"), ("GET", "/v1/models/x"),
            ("GET", "/nowhere"), ("PUT", "/v1/models"), ("POST", "/v1/completions"), ("GET", "/openapi.json"),
        ]
    ]  # fmt: skip
    answers += [server.post(BASE), server.post({**BASE, "stream": True}), server.post({**BASE, "model": "x"})]
    ids = [answer.headers.get_list("x-request-id") for answer in answers]
    assert all(len(found) == 1 for found in ids)
    assert len({found[0] for found in ids}) == len(answers)
    assert "mine" not in [found[0] for found in ids]


def test_outcomes_add_up() -> None:
    """One outcome for every request but probes: their sum is what was sent."""
    runtime = FakeRuntime(2)
    runtime.fail_prompt = ord("!")
    with serve_app(fake_loader(runtime)) as client:
        body = {"model": "fake0", "prompt": "a", "seed": 0, "max_tokens": 99}
        for _ in range(3):
            client.post(body)
            client.stream({**body, "stop": "fox"})
        assert_error(client.post({**body, "prompt": "!"}), 500, "server_error", "internal_error")
        assert '"internal_error"' in client.post({**body, "prompt": "!", "stream": True}).text
        client.post({**body, "model": "x"})
        client.post({**body, "seed": "x"})
        client.http.get("/nowhere")
        client.http.get("/v1/completions")
        counts = {
            (dict(labels)["endpoint"], dict(labels)["outcome"]): value
            for (name, labels), value in client.metrics().items()
            if name == "aft_requests_total"
        }
        assert counts == {
            ("completions", "length"): 3,
            ("completions", "stop"): 3,
            ("completions", "error"): 2,
            ("completions", "rejected"): 2,
            ("other", "rejected"): 2,
        }
        assert client.metric("aft_request_duration_seconds_count") == 8
        to_the_fox = expected("a", 0, 99).index("fox") + 3
        assert client.metric("aft_generation_tokens_total") == 3 * 99 + 3 * to_the_fox


def test_a_fault_of_the_service_is_a_500_of_the_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that nobody foresaw: no stack trace, an id, an outcome."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a secret path")

    monkeypatch.setattr("service.routes.completions.make_generations", broken)
    with serve_app(fake_loader(FakeRuntime(1))) as client:
        response = client.post({"model": "fake0", "prompt": "a"})
        assert_error(response, 500, "server_error", "internal_error")
        assert "secret" not in response.text
        assert client.metric("aft_requests_total", outcome="error") == 1


def test_a_full_queue(fake: tuple[Client, FakeRuntime]) -> None:
    """503 with both headers, whole and streamed; the connection is kept."""
    client, runtime = fake
    runtime.gate.clear()
    body = {"model": "fake0", "prompt": "a", "seed": 0, "max_tokens": 5}
    socks = [client.send(body)]
    assert runtime.blocked.wait(10)
    socks += [client.send(body) for _ in range(2)]
    wait_until(lambda: client.service.engine.num_active == 3)
    for stream in (False, True):
        response = client.post({**body, "stream": stream})
        assert_error(response, 503, "overloaded_error", "queue_full")
        assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("5", "5000")
        assert "connection" not in response.headers
    assert client.metric("aft_admission_rejections_total", reason="queue_full") == 2
    assert client.metric("aft_requests_total", outcome="rejected") == 2
    runtime.gate.set()
    for sock in socks:
        with sock:
            assert b"200 OK" in sock.recv(4000)


def test_no_request_stops_the_loop(fake: tuple[Client, FakeRuntime], monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest stops that are taken take a moment: others are answered meanwhile."""
    client, _ = fake
    answered: list[int] = []

    def slowly(*arguments: Any, **options: Any) -> Automaton:
        answered.append(httpx.get(f"{client.url}/livez", timeout=5).status_code)
        return stops(*arguments, **options)

    monkeypatch.setattr("service.completion.stops", slowly)
    longest = ["".join(chr(97 + (i * j * j + j) % 26) for j in range(64)) for i in range(16)]
    answer = client.post({"model": "fake0", "prompt": "a", "seed": 0, "max_tokens": 5, "stop": longest})
    assert answer.json()["choices"][0]["text"] == expected("a", 0, 5)
    assert answered == [200]


def test_an_unlimited_stream_ends_after_the_servers_time() -> None:
    """AFT_MAX_STREAM_SECONDS: with an ordinary end, as at a limit of tokens."""
    with serve_app(fake_loader(FakeRuntime(1, seconds_per_token=0.001)), max_stream_seconds=1) as client:
        began = time.monotonic()
        chunks = client.stream({"model": "fake0", "prompt": "a", "max_tokens": None})
        assert 1 <= time.monotonic() - began < 20
    assert [choice["finish_reason"] for choice in chunks[-1]["choices"]] == ["length"]
    assert len(text_of(chunks)) > 10


def test_an_engine_that_hangs_takes_nothing_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """503 of its own code, /readyz says why; as soon as a step ends, all is as before."""
    monkeypatch.setattr("service.engine.STALL_SECONDS", 0.05)
    runtime = FakeRuntime(1)
    with serve_app(fake_loader(runtime)) as client:
        runtime.gate.clear()
        with client.send({"model": "fake0", "prompt": "a", "max_tokens": 2}):
            wait_until(lambda: client.http.get("/readyz").status_code == 503)
            assert client.http.get("/readyz").text == "the engine does not step\n"
            response = client.post({"model": "fake0", "prompt": "a", "max_tokens": 2})
            assert_error(response, 503, "unavailable_error", "engine_stalled", None, "does not step")
            assert response.headers["retry-after"] == "5"
            assert client.http.get("/livez").status_code == 200
            runtime.gate.set()
            wait_until(lambda: client.http.get("/readyz").status_code == 200)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_vanishes_frees_its_slot(fake: tuple[Client, FakeRuntime], stream: bool) -> None:
    """Within a burst, and counted once, as a disconnect in decode."""
    client, _ = fake
    sock = client.send({"model": "fake0", "prompt": "a", "max_tokens": 1_000_000, "stream": stream})
    wait_until(lambda: client.metric("aft_generation_tokens_total") > 10)
    sock.close()
    wait_until(lambda: client.free("fake0"))
    assert client.metric("aft_client_disconnects_total", phase="decode") == 1
    assert client.metric("aft_client_disconnects_total") == 1
    assert client.metric("aft_requests_total", outcome="cancelled") == 1
    assert client.metric("aft_requests_total") == 1
    generated = client.metric("aft_generation_tokens_total")
    time.sleep(0.1)
    assert client.metric("aft_generation_tokens_total") == generated


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_vanishes_in_prefill_or_queue(fake: tuple[Client, FakeRuntime], stream: bool) -> None:
    """The phase says where it was."""
    client, runtime = fake
    runtime.gate.clear()
    body = {"model": "fake0", "prompt": "a" * 5000, "max_tokens": 5, "stream": stream}
    socks = [client.send(body)]
    assert runtime.blocked.wait(10)
    socks += [client.send(body)]
    wait_until(lambda: client.service.engine.num_active == 2)
    for sock in socks:
        sock.close()
    wait_until(lambda: client.metric("aft_requests_total", outcome="cancelled") == 2)
    runtime.gate.set()
    wait_until(lambda: client.free("fake0"))
    assert client.metric("aft_client_disconnects_total", phase="prefill") == 1
    assert client.metric("aft_client_disconnects_total", phase="queued") == 1
    assert client.metric("aft_generation_tokens_total") == 0


def test_a_real_client_that_vanishes(server: Process) -> None:
    """The same with the real process and an endless stream."""
    before = server.metric("aft_client_disconnects_total", model="tiny", phase="decode")
    with server.send({**BASE, "max_tokens": None, "stream": True}) as sock:
        received = b""
        while received.count(b"data:") < 3:
            received += sock.recv(4096)
        assert server.metric("aft_slots_in_use", model="tiny") == 1
    wait_until(lambda: server.free("tiny"), 10)
    assert server.metric("aft_client_disconnects_total", model="tiny", phase="decode") == before + 1


def test_a_reader_that_stalls_is_cut_off() -> None:
    """Its generation pauses, others go on; then it is cancelled, counted, and its slot is free."""
    runtime = FakeRuntime(2)
    with serve_app(fake_loader(runtime), stalled_reader_seconds=0.7, burst_seconds=0.005) as client:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # before it connects: the window stays small
        sock.connect(("127.0.0.1", client.port))
        # log-probabilities make events long: the buffers are full sooner
        ask = {"model": "fake0", "prompt": "a", "max_tokens": None, "stream": True, "logprobs": 0}
        body = json.dumps(ask).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        with sock:
            sock.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            scheduler = client.service.engine.served["fake0"].scheduler
            wait_until(lambda: any(generation.paused for generation in scheduler.running))
            other = client.post({"model": "fake0", "prompt": "b", "seed": 0, "max_tokens": 50})
            assert other.json()["choices"][0]["text"] == expected("b", 0, 50)
            wait_until(lambda: client.free("fake0"), 60)  # the kernel's own buffers fill up first: megabytes
        assert client.metric("aft_client_disconnects_total") == 1
        assert client.metric("aft_requests_total", outcome="cancelled") == 1


def test_heartbeats() -> None:
    """A stream that is silent gets a colon and one newline; the official client reads on."""
    runtime = FakeRuntime(1)
    with serve_app(fake_loader(runtime), heartbeat_seconds=0.05) as client:
        runtime.gate.clear()
        body = {"model": "fake0", "prompt": "a", "seed": 0, "max_tokens": 30}
        with client.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            parts, raw = response.iter_text(), ""
            while raw.count(":\n") < 3:
                raw += next(parts)
            runtime.gate.set()
            raw += "".join(parts)
        assert raw.startswith(":\n:\n:\n")
        assert ":\n\n" not in raw
        assert text_of(events(raw)) == expected("a", 0, 30)
        runtime.blocked.clear()
        runtime.gate.clear()
        threading.Timer(0.4, runtime.gate.set).start()
        with openai.OpenAI(base_url=f"{client.url}/v1", api_key="none", max_retries=0) as official:
            chunks = list(official.completions.create(**body, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == expected("a", 0, 30)


def test_loading() -> None:
    """The port is open while models load: alive, not ready, and says so."""
    gate = threading.Event()

    def load(settings: Settings, metrics: Metrics) -> list[Served]:
        assert gate.wait(20)
        return fake_loader(FakeRuntime(1))(settings, metrics)

    with serve_app(load, ready=False) as client:
        try:
            assert client.http.get("/livez").status_code == 200
            response = client.http.get("/readyz")
            assert (response.status_code, response.text) == (503, "the models are being loaded\n")
            for answer in (client.post({"model": "fake0", "prompt": ""}), client.http.get("/v1/models")):
                assert_error(answer, 503, "unavailable_error", "model_loading")
                assert answer.headers["connection"] == "close"
                assert 1 <= int(answer.headers["retry-after"]) <= 60
        finally:
            gate.set()
        wait_until(lambda: client.http.get("/readyz").status_code == 200)
        assert client.post({"model": "fake0", "prompt": "", "max_tokens": 3}).status_code == 200


def read_on(sock: socket.socket, received: bytes) -> str:
    """The rest of an answer, until the server closes."""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            received += part
    return received.decode(errors="replace")


def start_stream(process: Process, **changes: Any) -> tuple[socket.socket, bytes]:
    """An endless stream that has begun."""
    sock = process.send({**BASE, "max_tokens": None, "stream": True, **changes})
    received = b""
    while received.count(b"data:") < 2:
        received += sock.recv(4096)
    return sock, received


def test_drain(checkpoints: Path) -> None:
    """SIGTERM: not ready, new work refused, the running stream finishes, exit 0."""
    with serve(checkpoints, max_stream_tokens=20_000) as process:
        # megabytes, more than the kernel buffers: it still runs while nobody reads
        sock, received = start_stream(process, logprobs=5)
        process.signal()
        wait_until(lambda: process.http.get("/readyz").status_code == 503)
        assert process.http.get("/readyz").text == "shutting down\n"
        assert process.http.get("/livez").status_code == 200
        for body in (BASE, {**BASE, "stream": True}):
            response = process.post(body)
            assert_error(response, 503, "unavailable_error", "shutting_down")
            assert response.headers["connection"] == "close"
            assert 1 <= int(response.headers["retry-after"]) <= 60
        text = read_on(sock, received)
        sock.close()
        process.close()
        assert "data: [DONE]" in text
        assert '"finish_reason":"length"' in text
        status, stderr = process.wait()
        assert status == 0
        assert "Traceback" not in stderr


def test_drain_when_idle(checkpoints: Path) -> None:
    """Nothing runs: it ends at once, also by SIGINT, and kept connections do not hold it."""
    with serve(checkpoints) as process:
        began = time.monotonic()
        process.signal(signal.SIGINT)
        status, stderr = process.wait()
        assert status == 0
        assert time.monotonic() - began < 15
        assert "Traceback" not in stderr


def test_the_drains_deadline(checkpoints: Path) -> None:
    """What still streams gets an error event as its last; what waits for a whole answer gets a 503; exit 0."""
    with serve(checkpoints, drain_seconds=0.5, max_tokens=10**6) as process:
        sock, received = start_stream(process)
        began = time.monotonic()
        process.signal()
        text = read_on(sock, received)
        sock.close()
        last = [line for line in text.split("\n") if line.startswith("data: ")][-1]
        error = json.loads(last.removeprefix("data: "))["error"]
        assert (error["type"], error["code"], error["param"]) == ("unavailable_error", "shutting_down", None)
        assert "[DONE]" not in text
        process.close()
        status, stderr = process.wait()
        assert status == 0
        assert 0.4 < time.monotonic() - began < 10
        assert "Traceback" not in stderr


def test_a_whole_answer_at_the_drains_deadline() -> None:
    """503 that sends a retry elsewhere; one outcome, not two."""
    runtime = FakeRuntime(1, seconds_per_token=0.001)
    with serve_app(fake_loader(runtime), burst_seconds=0.01) as client:
        answers: list[httpx.Response] = []
        body = {"model": "fake0", "prompt": "a", "max_tokens": 10**6}
        thread = threading.Thread(target=lambda: answers.append(client.post(body)))
        thread.start()
        wait_until(lambda: client.metric("aft_slots_in_use") == 1)
        client.service.draining = True
        client.service.engine._loop.call_soon_threadsafe(client.service.cut_off.set)
        thread.join(timeout=10)
        (answer,) = answers
        assert_error(answer, 503, "unavailable_error", "shutting_down")
        assert answer.headers["connection"] == "close"
        wait_until(lambda: client.free("fake0"))
        assert client.metric("aft_requests_total") == 1
        assert client.metric("aft_client_disconnects_total") == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(checkpoints: Path, second: int) -> None:
    """Exit 0 within moments, though a stream runs and the drain has time left."""
    with serve(checkpoints) as process:
        sock, _ = start_stream(process)
        process.signal()
        wait_until(lambda: process.http.get("/readyz").status_code == 503)
        began = time.monotonic()
        process.signal(second)
        status, stderr = process.wait(20)
        sock.close()
        assert status == 0
        assert time.monotonic() - began < 15
        assert "Traceback" not in stderr


SLOW_LOAD = """
import sys, time
from service import app, server
from service.settings import Settings
app.create_app.__kwdefaults__["load"] = lambda *_: time.sleep(60)
sys.exit(server.serve(Settings(port=int(sys.argv[1]))))
"""


@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_while_models_are_loaded(signals: int) -> None:
    """Nobody waits for them: exit 0, after one signal or two."""
    client = Client(free_port())
    process = subprocess.Popen([sys.executable, "-c", SLOW_LOAD, str(client.port)], stderr=subprocess.PIPE, text=True)

    def opened() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return client.http.get("/readyz").text == "the models are being loaded\n"
        return False

    try:
        wait_until(opened)
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=20)
    finally:
        process.kill()
        client.close()
    assert process.returncode == 0
    assert "Traceback" not in stderr


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
def test_a_signal_while_the_kernel_loads(delay: float) -> None:
    """Exit 0 and not a word beside the log, wherever in the kernel the loading thread is."""
    process = Process(ROOT / "checkpoints", ready=False)
    try:
        wait_until(lambda: catches(process.process.pid))
        time.sleep(delay)
        process.signal()
        status, stderr = process.wait()
    finally:
        process.end()
    assert status == 0, stderr
    assert [line for line in stderr.splitlines() if not line[:4].isdigit()] == []


def catches(pid: int) -> bool:
    """Whether a process handles SIGTERM: process 1 of a container is deaf to it before."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (caught,) = [line.split()[1] for line in lines if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def connections(port: int, peer: int) -> int:
    """Of a server's port with one of its clients, as the kernel has them, in whatever state."""
    wanted = [f":{port:04X}", f":{peer:04X}"]
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum([address[-5:] for address in line.split()[1:3]] == wanted for line in lines)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel is not Linux")
@pytest.mark.parametrize("stream", [True, False])
def test_a_reader_that_is_gone_leaves_no_connection(checkpoints: Path, stream: bool) -> None:
    """Though what it was sent waits in the kernel, and a whole answer is no longer anybody's request."""
    body = {**BASE, "max_tokens": None, "stream": True} if stream else {**BASE, "prompt": "a" * 900_000, "echo": True}
    with serve(checkpoints, stalled_reader_seconds=1) as process, process.send(body) as sock:
        peer = sock.getsockname()[1]
        wait_until(lambda: process.metric("aft_requests_total", endpoint="completions") == 1, 60)
        assert process.metric("aft_client_disconnects_total") == stream
        wait_until(lambda: not connections(process.port, peer))


@pytest.mark.parametrize(
    "raw",
    [
        b"nothing\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost localhost\r\n\r\n",
        b"\x16\x03\x01\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    ],
)
def test_what_is_no_http(server: Process, raw: bytes) -> None:
    """A 400 of the one shape, with an id, and the end of the connection; it is counted."""
    counted = "aft_requests_total", {"endpoint": "other", "outcome": "rejected", "model": ""}
    before = server.metric(counted[0], **counted[1])
    with server.connect() as sock:
        sock.sendall(raw)
        answer = b""
        while part := sock.recv(4096):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"x-request-id: " in head
    error = json.loads(body)["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert (error["type"], error["code"]) == (INVALID, "invalid_http")
    assert server.metric(counted[0], **counted[1]) == before + 1


def test_refused_requests_are_their_models(fake: tuple[Client, FakeRuntime]) -> None:
    """In the metrics, once the model is known; not under a name that a client made up."""
    client, _ = fake
    assert client.post({"model": "fake0", "prompt": "a", "max_tokens": 10**9}).status_code == 400
    assert client.http.post("/v1/tokenize", json={"model": "fake0", "prompt": "a"}).status_code == 200
    assert client.post({"model": "made-up", "prompt": "a"}).status_code == 404
    assert client.metric("aft_requests_total", model="fake0", endpoint="completions", outcome="rejected") == 1
    assert client.metric("aft_requests_total", model="fake0", endpoint="tokenize", outcome="stop") == 1
    assert client.metric("aft_requests_total", model="") == 1
    assert client.metric("aft_requests_total", model="made-up") == 0


def test_what_the_metrics_count(fake: tuple[Client, FakeRuntime]) -> None:
    """One completion: each histogram has its observations, each gauge what the runtime says of itself."""
    client, runtime = fake
    assert client.post({"model": "fake0", "prompt": "abc", "max_tokens": 5}).status_code == 200
    of = {"model": "fake0"}
    for name in ("request_queue", "request_prefill", "request_duration"):
        assert client.metric(f"aft_{name}_seconds_count", endpoint="completions", **of) == 1, name
    assert client.metric("aft_time_to_first_token_seconds_count", **of) == 1
    assert client.metric("aft_inter_token_latency_seconds_count", **of) == 4
    assert client.metric("aft_token_latency_by_position_seconds_count", **of) == 4
    assert client.metric("aft_prompt_tokens_total", **of) == 4  # with the begin symbol
    assert client.metric("aft_generation_tokens_total", **of) == 5
    assert client.metric("aft_memory_bytes", kind="workspace", **of) == runtime.workspace_bytes
    assert client.metric("aft_memory_bytes", kind="weights", **of) == runtime.weight_bytes
    assert client.metric("aft_build_info", runtime="fake", isa="none", fingerprint="fake01234567", **of) == 1
    assert client.metric("aft_startup_seconds", phase="ready") > 0
    assert client.metric("python_gc_collections_total") > 0
