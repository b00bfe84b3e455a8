"""`aft serve` as a process of its own, with both shipped models; its metrics, its memory, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from endurance.wire import Answer, Leave, ask, get

ROOT = Path(__file__).parent.parent.parent
TEXT, IMAGES = "shakespeare", "emoji"
LABEL = re.compile(r'(\w+)="([^"]*)"')
POLL_SECONDS = 0.02
START_SECONDS = 60.0


class Server:
    """An asynchronous context: ready where it begins, ended where it ends."""

    def __init__(self, **settings: object) -> None:
        """``settings`` are the service's own, as AFT_* has them; the port is a free one."""
        self.port = free_port()
        settings = {"log_level": "warning", "runtime": "native", **settings}
        # of this process's environment no setting, and no tracer of coverage: it would be measured along
        self._env = {name: value for name, value in os.environ.items() if not name.startswith(("AFT_", "COV"))}
        self._env |= {f"AFT_{name.upper()}": str(value) for name, value in settings.items()}

    async def __aenter__(self) -> Self:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - a pipe that nobody reads would stop the server
        aft = str(Path(sys.executable).with_name("aft"))
        command = [aft, "serve", "--port", str(self.port), "--checkpoints", str(ROOT / "checkpoints")]
        self._process = subprocess.Popen(command, env=self._env, stdout=self._log, stderr=self._log)
        try:
            await until(self._ready, START_SECONDS)
        except BaseException:
            self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._log.close()

    async def _ready(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"the server does not start:\n{self.log()}")
        return (await get(self.port, "/readyz")).status == 200

    def log(self) -> str:
        """What it has written: warnings and errors."""
        self._log.seek(0)
        return self._log.read()

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    async def exit_status(self, seconds: float) -> int | None:
        """Once it has ended; None where it still runs after so long."""
        try:
            await until(self._ended, seconds)
        except TimeoutError:
            return None
        return self._process.returncode

    async def _ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def anonymous_bytes(self) -> int:
        """Its anonymous resident memory."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("no RssAnon in /proc: this needs Linux")

    @property
    def cpu_seconds(self) -> float:
        """Processor time that it has used."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def metrics(self) -> dict[str, float]:
        """All samples of /metrics, by name and labels as they are written there."""
        text = (await get(self.port, "/metrics")).body.decode()
        pairs = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in pairs}

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        return total(await self.metrics(), name, **labels)

    async def idle_seconds(self, most: float = 30.0) -> float:
        """Wait until nothing holds a slot and nothing waits for one; the seconds. TimeoutError after ``most``."""

        async def idle() -> bool:
            metrics = await self.metrics()
            return not total(metrics, "aft_slots_in_use") + total(metrics, "aft_requests_waiting")

        return await until(idle, most)

    async def ask(self, body: dict[str, Any], leave: Leave | None = None) -> Answer:
        """A completion of the text model."""
        return await ask(self.port, {"model": TEXT, **body}, leave=leave)


def free_port() -> int:
    """A free port below 32768, where those begin that the system gives to who asks for any: it stays free."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def total(metrics: dict[str, float], name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    return sum(
        value
        for sample, value in metrics.items()
        if sample.partition("{")[0] == name and labels.items() <= dict(LABEL.findall(sample)).items()
    )


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> float:
    """Poll a condition; how long it took. TimeoutError where it does not come true."""
    began = time.monotonic()
    while not await condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not within {seconds:g} s: {condition.__qualname__}")
        await asyncio.sleep(POLL_SECONDS)
    return time.monotonic() - began
