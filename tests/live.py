"""Servers to test against: the real process on tiny checkpoints, and the app in a thread on a fake runtime."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkpoints_for_tests
import httpx
import uvicorn
from fake_runtime import FakeRuntime
from prometheus_client.parser import text_string_to_metric_families

from model.checkpoint import Codec
from model.tokenizer import Bytes
from service.app import create_app
from service.engine import Served
from service.metrics import Metrics
from service.scheduler import Scheduler
from service.settings import Settings

AFT = Path(sys.executable).with_name("aft")
INVALID = "invalid_request_error"


def make_checkpoints(folder: Path) -> Path:
    """Two models: characters without an end, and characters that end after MAX_LEN positions."""
    checkpoints_for_tests.characters(folder / "tiny")
    checkpoints_for_tests.ending(folder / "short")
    return folder


def free_port() -> int:
    """A free port below 32768, where those begin that the system gives to who asks for any: it stays free."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def wait_until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    """Poll a condition; AssertionError when it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


class Client:
    """What tests ask of any server."""

    def __init__(self, port: int) -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self.service: Any = None  # the app's state, where it runs in this process

    def post(self, body: dict[str, Any], **options: Any) -> httpx.Response:
        """One completion."""
        return self.http.post("/v1/completions", json=body, **options)

    def stream(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The events of a stream that ends with [DONE]."""
        with self.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            assert response.status_code == 200, response.read()
            return events("".join(response.iter_text()))

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """All samples of /metrics by name and labels."""
        text = self.http.get("/metrics").text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        wanted = set(labels.items())
        return sum(value for (key, have), value in self.metrics().items() if key == name and wanted <= have)

    def free(self, model: str) -> bool:
        """Nothing runs and nothing waits."""
        return not self.metric("aft_slots_in_use", model=model) and not self.metric("aft_requests_waiting", model=model)

    def connect(self) -> socket.socket:
        """A plain connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def send(self, body: dict[str, Any], path: str = "/v1/completions") -> socket.socket:
        """A request on a connection of its own; the answer is not read."""
        sock = self.connect()
        raw = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        sock.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        return sock

    def close(self) -> None:
        """Close kept connections."""
        self.http.close()


def events(text: str) -> list[dict[str, Any]]:
    """A whole stream's payloads; heartbeats are dropped, [DONE] must be last."""
    lines = [line for line in text.split("\n") if line and line != ":"]
    assert lines[-1] == "data: [DONE]", lines[-1]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def named_events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """A whole stream's events with their names; there is no [DONE]."""
    assert text.endswith("\n\n")
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = [line for line in block.split("\n") if line != ":"]
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def text_of(chunks: list[dict[str, Any]]) -> str:
    """The text of a stream's chunks."""
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


def assert_error(
    response: httpx.Response, status: int, kind: str, code: str, param: str | None = None, *words: str
) -> None:
    """The one shape of all errors, with an id of the request."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["type"], body["error"]["code"], body["error"]["param"]) == (kind, code, param)
    assert isinstance(body["error"]["message"], str)
    assert 0 < len(body["error"]["message"]) < 500
    for word in words:
        assert word in body["error"]["message"]
    assert "Traceback" not in response.text
    assert response.headers["x-request-id"]


class Process(Client):
    """``aft serve`` as a process of its own."""

    def __init__(self, checkpoints: Path, *flags: str, ready: bool = True, **env: object) -> None:
        super().__init__(free_port())
        variables = {f"AFT_{name.upper()}": str(value) for name, value in env.items()}
        command = [str(AFT), "serve", "--port", str(self.port), "--threads", "1", "--checkpoints", str(checkpoints)]
        # a pipe that nobody reads is full after some hundred requests
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed at the end
        self.process = subprocess.Popen(
            [*command, *flags],
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
            cwd=checkpoints,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
        )
        if ready:
            try:
                wait_until(self._ready, 60)
            except BaseException:
                self.process.kill()
                raise AssertionError(self.wait()[1]) from None

    def _ready(self) -> bool:
        assert self.process.poll() is None
        with contextlib.suppress(httpx.TransportError):
            return self.http.get("/readyz").status_code == 200
        return False

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send this process a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = 30) -> tuple[int, str]:
        """Its exit status and what it wrote to standard error."""
        status = self.process.wait(timeout=seconds)
        self._log.seek(0)
        return status, self._log.read()

    def end(self) -> None:
        """End it, whatever it does."""
        self.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log.close()


@contextlib.contextmanager
def serve(checkpoints: Path, *flags: str, **env: object) -> Iterator[Process]:
    """A real server that ends with the block."""
    process = Process(checkpoints, *flags, **env)
    try:
        yield process
    finally:
        process.end()


def fake_loader(*runtimes: FakeRuntime, codec: Codec | None = None) -> Callable[[Settings, Metrics], list[Served]]:
    """Loads fakes as the models fake0, fake1, ...; of bytes where no codec is given."""

    def load(settings: Settings, _: Metrics) -> list[Served]:
        return [
            Served(
                name=f"fake{i}",
                runtime=runtime,
                codec=codec or Bytes(),
                scheduler=Scheduler(
                    runtime,
                    settings.max_queue,
                    settings.burst_seconds,
                    settings.max_choices_per_key,
                    settings.max_queue_per_key,
                ),
                created=1,
                window=8,
            )
            for i, runtime in enumerate(runtimes)
        ]

    return load


@contextlib.contextmanager
def serve_app(
    load: Callable[[Settings, Metrics], list[Served]], *, ready: bool = True, **settings: Any
) -> Iterator[Client]:
    """The app on a real socket in a thread, on whatever ``load`` gives."""
    # asyncio looks at the protocol before it turns Nagle's algorithm off
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    app = create_app(Settings(**settings), load=load)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, lifespan="on", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    client = Client(sock.getsockname()[1])
    client.service = app.state.service
    try:
        wait_until(lambda: server.started)
        if ready:
            wait_until(lambda: client.http.get("/readyz").status_code == 200)
        yield client
    finally:
        client.close()
        server.should_exit = True
        thread.join(timeout=30)
        sock.close()
    assert not thread.is_alive()
