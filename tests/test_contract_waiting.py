"""What waits, and for how long: scorings beside streams, deadlines on the way, connections that say nothing."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import checkpoints_for_tests
import pytest
from fake_runtime import FakeRuntime
from live import INVALID, assert_error, fake_loader, serve, serve_app, wait_until

from model.runtime.base import Done, Job

BASE: dict[str, Any] = {"model": "fake0", "prompt": "ab", "max_tokens": 12, "seed": 7, "ignore_eos": True}
SCORING: dict[str, Any] = {"model": "fake0", "max_tokens": 0, "echo": True, "logprobs": 0}
HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n"
)


@pytest.mark.parametrize("max_queue", [0, 1, 8])
def test_a_long_scoring_beside_a_stream_without_end(max_queue: int) -> None:
    """Its prompts are computed in turn: one slot or place is enough."""
    with serve_app(fake_loader(FakeRuntime(2, seconds_per_token=0.001)), max_queue=max_queue) as client:
        endless = {**BASE, "max_tokens": 10**6, "stream": True}
        with client.http.stream("POST", "/v1/completions", json=endless):
            wait_until(lambda: client.metric("aft_slots_in_use") == 1)
            answer = client.post({**SCORING, "prompt": [f"prompt {i}" for i in range(40)]})
            assert answer.status_code == 200, answer.text
            assert [choice["text"] for choice in answer.json()["choices"]] == [f"prompt {i}" for i in range(40)]
        wait_until(lambda: client.free("fake0"))
        assert client.metric("aft_admission_rejections_total") == 0


def test_a_scoring_takes_more_places_as_they_become_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """It began beside a full server, by one place; when that is idle, several are computed side by side."""
    runtime, together = FakeRuntime(4, seconds_per_token=0.005), list[int]()
    run = runtime.run

    def counted(jobs: Sequence[Job]) -> list[Done]:
        together.append(sum(job.draw is None for job in jobs))
        return run(jobs)

    monkeypatch.setattr(runtime, "run", counted)
    with serve_app(fake_loader(runtime), max_queue=1, burst_seconds=0.01) as client:
        endless = {**BASE, "max_tokens": 10**6, "stream": True, "n": 4}
        with client.http.stream("POST", "/v1/completions", json=endless):
            wait_until(lambda: client.metric("aft_slots_in_use") == 4)
            sock = client.send({**SCORING, "prompt": ["prompt"] * 100})
            wait_until(lambda: client.metric("aft_requests_waiting") == 1)
        with sock:
            assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
    scored = [count for count in together if count]
    assert scored[0] == 1
    assert max(scored) > 1


def test_a_scoring_without_any_place_is_refused() -> None:
    """Where not even one prompt could wait."""
    with serve_app(fake_loader(FakeRuntime(1, seconds_per_token=0.001)), max_queue=0) as client:
        endless = {**BASE, "max_tokens": 10**6, "stream": True}
        with client.http.stream("POST", "/v1/completions", json=endless):
            wait_until(lambda: client.metric("aft_slots_in_use") == 1)
            refused = client.post({**SCORING, "prompt": ["a", "b"]})
            assert_error(refused, 503, "overloaded_error", "queue_full", None, "all 0 places")


def test_what_was_computed_in_part_was_not_waiting() -> None:
    """A deadline that passes while the rest waits: clients must not ask for all of it again."""
    runtime = FakeRuntime(1, seconds_per_token=0.02)
    settings = {"max_choices": 1, "deadline_seconds": 1.5, "burst_seconds": 0.01}
    with serve_app(fake_loader(runtime), **settings) as client, client.connect() as sock:
        body = json.dumps({**SCORING, "prompt": ["prompt"] * 50}).encode()
        sock.sendall(HEAD.replace(b"99", str(len(body)).encode()) + body)
        wait_until(lambda: client.metric("aft_slots_in_use") == 1)
        # the next prompt of the scoring stands behind it
        with client.http.stream("POST", "/v1/completions", json={**BASE, "max_tokens": 10**6, "stream": True}):
            answer = sock.recv(4096)
        assert answer.startswith(b"HTTP/1.1 504 ")
        assert b"x-should-retry: false" in answer
        assert b"deadline_exceeded" in answer or b"deadline_exceeded" in sock.recv(4096)


def test_choices_of_one_key_say_how_many_they_were() -> None:
    """Three where two may wait beside a stream: not all places are taken, there are too few."""
    runtime = FakeRuntime(1, seconds_per_token=0.001)
    settings = {"api_keys": ["first"], "max_queue_per_key": 2}
    with serve_app(fake_loader(runtime), **settings) as client:
        client.http.headers["authorization"] = "Bearer first"
        with client.http.stream("POST", "/v1/completions", json={**BASE, "max_tokens": 10**6, "stream": True}):
            wait_until(lambda: client.metric("aft_slots_in_use") == 1)
            refused = client.post({**BASE, "n": 3})
            assert_error(refused, 429, "rate_limit_error", "rate_limit_exceeded", None, "no room for 3 choices")


def test_a_body_that_never_ends_has_the_deadline_too() -> None:
    """Whatever comes of it: the answer is there at the deadline, not when the client is done."""
    with serve_app(fake_loader(FakeRuntime(1)), deadline_seconds=1, stalled_reader_seconds=30) as client:
        with client.connect() as sock:
            sock.sendall(HEAD)
            answer, seconds = trickled(sock, b" " * 90)
        assert answer.startswith(b"HTTP/1.1 504 ")
        assert b"deadline_exceeded" in answer
        assert 0.9 < seconds < 5
        assert client.metric("aft_requests_total", endpoint="completions", outcome="timeout") == 1


def test_a_stop_that_no_text_contains_is_refused() -> None:
    """U+FFFD stands for bytes that are no text: what one reads is not what was drawn."""
    with serve_app(fake_loader(FakeRuntime(1))) as client:
        for given in ("\ufffd", ["a", "b\ufffdc"]):
            assert_error(client.post({**BASE, "stop": given}), 400, INVALID, "invalid_value", "stop", "U+FFFD")


def trickled(sock: socket.socket, data: bytes) -> tuple[bytes, float]:
    """What a connection answers that gets a byte each tenth of a second, until it is closed, and after how long."""
    answer, began = b"", time.perf_counter()
    sock.settimeout(0.1)
    with contextlib.suppress(OSError):  # closed while one more byte was sent
        for byte in data:
            sock.sendall(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                while part := sock.recv(4096):
                    answer += part
                break
    return answer, time.perf_counter() - began


def answer_of(sock: socket.socket) -> bytes:
    """A whole answer of /livez."""
    answer = b""
    while not answer.endswith(b"ok\n"):
        part = sock.recv(4096)
        assert part, answer
        answer += part
    return answer


def test_connections_that_bring_no_request_are_closed(tmp_path: Path) -> None:
    """Nothing, or a head that never ends, whatever comes of it; one that was served is kept as long as it may be."""
    checkpoints_for_tests.characters(tmp_path / "tiny")
    with serve(tmp_path, stalled_reader_seconds=1, keep_alive_seconds=20) as process:
        live = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
        silent, trickling, kept = process.connect(), process.connect(), process.connect()
        with silent, trickling, kept:
            kept.sendall(live)
            assert answer_of(kept).startswith(b"HTTP/1.1 200 OK")
            answer, seconds = trickled(trickling, HEAD)
            assert (answer, silent.recv(1)) == (b"", b"")
            assert 0.9 < seconds < 5  # bytes came all the time
            kept.sendall(live[:9])
            time.sleep(0.2)
            kept.sendall(live[9:])
            assert answer_of(kept).startswith(b"HTTP/1.1 200 OK")
            kept.sendall(live[:9])
            assert kept.recv(1) == b""
