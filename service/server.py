"""The process: signals, drain, exit status. uvicorn's own handling would close the port first and exit with 143.

First SIGTERM or SIGINT: new work is refused, running streams finish; at the deadline they end with an error event.
Second: the end, at once. Both exit with 0; a failed load exits with 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from service import errors, logs
from service.app import LOADING, create_app
from service.errors import SettingError
from service.hosts import is_loopback
from service.request import Outcome
from service.settings import Settings
from service.state import Service

log = logging.getLogger("aft")
POLL_SECONDS = 0.05
LAST_WORDS_SECONDS = 2.0  # for the final events after the deadline
SEND_BUFFER_BYTES = 128 << 10  # the kernel's own grows to megabytes, and tells of room when a third of it is free


class Protocol(H11Protocol):
    """uvicorn's, whose answer to what is no HTTP is text, and which waits for ever for the first or half a head."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A head has so long to come as a reader may stall; what comes after it has bounds of its own."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, or of a body."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._late is None:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        service: Service = self.config.app.state.service  # type: ignore[union-attr]
        self._late = self.loop.call_later(service.settings.stalled_reader_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def send_400_response(self, msg: str) -> None:
        """The one shape of all errors; counted and logged like any request."""
        body, request_id = bytes(errors.not_http().response().body), secrets.token_hex(8)
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("x-request-id", request_id),
            ("connection", "close"),
        ]
        app = self.config.app
        assert isinstance(app, FastAPI)
        service: Service = app.state.service
        service.metrics.requests.labels("", "other", Outcome.REJECTED.value).inc()
        scope = {"state": {"request_id": request_id}, "method": "", "path": "", "headers": []}
        logs.request(scope, self.client[0] if self.client else "", 400, Outcome.REJECTED, 0.0)
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn with our signals."""

    def __init__(self, settings: Settings) -> None:
        self.app = create_app(settings, on_failure=self._load_failed)
        config = uvicorn.Config(
            self.app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=settings.keep_alive_seconds,
            timeout_graceful_shutdown=1,
            lifespan="on",
            http=Protocol,
        )
        super().__init__(config)
        self.exit_status = 0
        self._drain: asyncio.Task[None] | None = None

    @property
    def service(self) -> Service:
        """The application's state."""
        service: Service = self.app.state.service
        return service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port, and say which."""
        await super().startup(sockets)
        for server in getattr(self, "servers", []):
            for listening in server.sockets:
                self._configure(listening)
                host, port = listening.getsockname()[:2]
                log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)

    def _configure(self, listening: socket.socket) -> None:
        """What accepted connections inherit: how much waits for a slow reader, and how long for one that is gone.

        A whole answer, or the end of a stream that was cut off, waits in buffers for ever otherwise.
        """
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            milliseconds = min(2**31 - 1, round(self.service.settings.stalled_reader_seconds * 1000))
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, milliseconds))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Own the signals while serving."""
        loop = asyncio.get_running_loop()
        caught = (signal.SIGTERM, signal.SIGINT)
        for number in caught:
            loop.add_signal_handler(number, self._signalled)
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)

    def _signalled(self) -> None:
        if self._drain is None:
            log.info("draining: new work is refused; a second signal ends at once")
            self.service.draining = True
            self._drain = asyncio.get_running_loop().create_task(self._finish())
        else:
            self.service.cut_off.set()  # every stream gets its last event now
            self.should_exit = True

    async def _finish(self) -> None:
        """Wait for the running streams, then let uvicorn end."""
        loop, service = asyncio.get_running_loop(), self.service
        deadline = loop.time() + service.settings.drain_seconds
        while self._busy() and loop.time() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        service.cut_off.set()
        deadline = loop.time() + LAST_WORDS_SECONDS
        while self._busy() and loop.time() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        self.should_exit = True

    def _busy(self) -> bool:
        # uvicorn's tasks are the requests that it is still answering
        engine = self.service.engine
        return bool(self.server_state.tasks) or (engine is not None and engine.num_active > 0)

    def _load_failed(self, _: Exception) -> None:
        self.exit_status = 1
        self.should_exit = True


def warn_if_open(settings: Settings) -> None:
    """Say so where anybody may use the service."""
    if not (is_loopback(settings.host) or settings.api_keys or settings.api_keys_file):
        log.warning(
            "AFT_HOST is %s and there are no keys: everybody who reaches this port may use the service; "
            "AFT_API_KEYS or AFT_API_KEYS_FILE asks for keys",
            settings.host,
        )


def serve(settings: Settings) -> int:
    """Serve until a signal; returns the process's exit status."""
    logs.configure(settings.log_level, settings.log_format)
    try:
        server = Server(settings)
    except SettingError as error:
        log.error("%s", error)
        return 1
    warn_if_open(settings)
    asyncio.run(server.serve())
    status = server.exit_status if server.started else 1
    if any(thread.name == LOADING for thread in threading.enumerate()):
        # the interpreter cannot be taken down below a thread that is in the kernel or makes its threads
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
