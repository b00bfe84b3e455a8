"""What `aft bench serve` plans and notes: loads, requests, and the events of their answers.

All times are seconds after the point began. Events that one read brings have one time.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field


class LoadError(Exception):
    """Nothing can be measured: the message says why, in one line."""


class FailedError(Exception):
    """One request failed: the kind of failure, and what was seen."""

    def __init__(self, outcome: str, detail: str = "") -> None:
        super().__init__(outcome, detail)
        self.outcome, self.detail = outcome, detail[:200]


@dataclass(frozen=True, slots=True)
class Point:
    """One load: so many requests at once, or so many arrivals a second."""

    prompt_chars: int
    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        return f"{self.concurrency} at once" if self.rate is None else f"{self.rate:g} a second"


@dataclass(frozen=True, slots=True)
class Plan:
    """What every point has in common."""

    model: str
    max_tokens: int = 256
    seconds: float = 10.0  # how long requests are sent
    requests: int | None = None  # so many of them instead
    warm_up: int | None = None  # requests before, not counted; None: as many as run at once, 4 in an open loop
    seed: int = 0
    timeout_seconds: float = 300.0  # of one request


@dataclass(slots=True)
class Record:
    """One request: what was asked and what came."""

    number: int
    seed: int
    due: float  # when it was to be sent; in a closed loop when it was sent
    began: float
    ended: float = 0.0  # [DONE] or the failure
    outcome: str = "ok"  # or http_STATUS, connect, disconnect, timeout, error_event, malformed, no_done
    detail: str = ""
    events: list[tuple[float, int]] = field(default_factory=list)  # those with text: when, characters
    prompt_tokens: int | None = None
    tokens: int | None = None  # by usage; None: the server sent none

    @property
    def ok(self) -> bool:
        """Whether it was answered to its end."""
        return self.outcome == "ok"

    @property
    def num_characters(self) -> int:
        """Characters of text that came."""
        return sum(characters for _, characters in self.events)

    @property
    def num_tokens(self) -> int:
        """Tokens by usage, or characters where the server counts none."""
        return self.num_characters if self.tokens is None else self.tokens

    @property
    def first_seconds(self) -> float | None:
        """From when it was due to the first text; None: there was no text."""
        return self.events[0][0] - self.due if self.events else None

    def gaps(self) -> list[tuple[float, int]]:
        """Seconds between two events with text, and the characters of the later one."""
        return [(now - before, m) for (before, _), (now, m) in itertools.pairwise(self.events)]


class Reader:
    """Server-sent events -> a record. FailedError where they are no completion's events."""

    def __init__(self, record: Record) -> None:
        self.done = False
        self._record, self._rest, self._data = record, b"", list[bytes]()

    def feed(self, part: bytes, now: float) -> None:
        """Take bytes as they come, in any pieces."""
        lines = (self._rest + part).split(b"\n")
        self._rest = lines.pop()
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:])
            elif not line:
                if self._data:
                    self._event(b"\n".join(self._data), now)
                    self._data.clear()
            elif line.partition(b":")[0] not in (b"", b"event", b"id", b"retry"):
                raise FailedError("malformed", f"no field of an event: {line[:100]!r}")

    def _event(self, data: bytes, now: float) -> None:
        if self.done:
            raise FailedError("malformed", "an event after [DONE]")
        if data.strip() == b"[DONE]":
            self.done, self._record.ended = True, now
            return
        try:
            payload = json.loads(data)
            if "error" in payload:
                raise FailedError("error_event", json.dumps(payload["error"]))
            text = "".join(choice["text"] for choice in payload["choices"])
            if usage := payload.get("usage"):
                self._record.tokens, self._record.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise FailedError("malformed", f"no completion: {data[:100]!r}") from None
        if text:
            self._record.events.append((now, len(text)))


@dataclass(slots=True)
class Run:
    """What one point gave."""

    point: Point
    records: list[Record]
    num_warm_up_failed: int
    window_seconds: float  # rates count what came before this time
    wall_seconds: float  # until the last answer
    client_cpu_seconds: float
    before: str | None = None  # the server's metrics
    after: str | None = None
    server_cpu_seconds: float | None = None  # of a process that was named
