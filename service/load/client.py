"""`aft bench serve`: a client that loads a service over HTTP and notes every event of every request.

A closed loop has N workers; each sends its next request when its last one is complete, so a slow server gets less to
do. An open loop sends at times drawn beforehand (Poisson), whatever is complete; there a request's times count from
when it was due, so that neither a slow server nor a slow client hides a wait.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

import aiohttp

from service.load.record import FailedError, LoadError, Plan, Point, Reader, Record, Run

BACKOFF_SECONDS = 0.1  # a worker's wait after a failure: a server that refuses at once is not to be flooded
WARM_UP = 1_000_000  # numbers of requests from here on are warm-up
WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "it",
    "that",
    "was",
    "for",
    "on",
    "with",
    "as",
    "they",
    "at",
    "this",
    "from",
)
SPREAD = 4096  # characters over which the prompts of a point begin


def arrivals(rate: float, seed: int, *, seconds: float, requests: int | None) -> Iterable[float]:
    """Times of a Poisson process of ``rate`` a second: all before ``seconds``, or the first ``requests``."""
    draw, now = random.Random(seed), 0.0
    for number in itertools.count():
        now += draw.expovariate(rate)
        if (now >= seconds) if requests is None else (number >= requests):
            return
        yield now


def prompts(length: int, seed: str) -> str:
    """A text of words, longer than a prompt by SPREAD: prompts that begin at different places share no prefix."""
    draw, parts, size = random.Random(seed), list[str](), 0
    while size < length + SPREAD:
        parts.append(draw.choice(WORDS) + " ")
        size += len(parts[-1])
    return "".join(parts)


class Client:
    """A service at a URL, and a pool of connections to it. To be used as an asynchronous context."""

    def __init__(self, url: str, key: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise LoadError(f"{url} is no URL: it begins with http:// or https://")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._ignore_eos = False
        self._began = 0.0

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=0),  # as many connections as there are requests
            timeout=aiohttp.ClientTimeout(total=None),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def _get(self, path: str) -> tuple[int, str]:
        try:
            async with self._session.get(self.url + path, timeout=aiohttp.ClientTimeout(total=30)) as response:
                return response.status, await response.text()
        except TimeoutError:
            raise LoadError(f"{self.url}{path} does not answer within 30 s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            number = error.errno if isinstance(error, OSError) else None
            raise LoadError(f"no service answers at {self.url}: {os.strerror(number) if number else error}") from None

    async def prepare(self, model: str | None) -> str:
        """The model to measure: the one that is named, or the first of text. LoadError where there is none."""
        status, text = await self._get("/v1/models")
        if status == 401:
            raise LoadError(f"{self.url} wants a key, or another one: --key")
        try:
            if status != 200:
                raise ValueError
            models = [(str(entry["id"]), entry.get("kind", "text")) for entry in json.loads(text)["data"]]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise LoadError(f"{self.url}/v1/models is no list of models (status {status})") from None
        names = [name for name, kind in models if kind == "text"]
        if not names or (model or names[0]) not in names:
            raise LoadError(f"{self.url} serves no text model {model or ''}: it has {', '.join(names) or 'none'}")
        self._ignore_eos = _knows_ignore_eos(*await self._get("/openapi.json"))
        return model or names[0]

    async def metrics(self) -> str | None:
        """The service's metrics in Prometheus' text format; None where it has none, or no longer answers."""
        try:
            status, text = await self._get("/metrics")
        except LoadError:
            return None
        return text if status == 200 else None

    async def measure(self, point: Point, plan: Plan, seed: str, cpu: Callable[[], float | None] = lambda: None) -> Run:
        """Warm up, then load and wait for every answer.

        ``seed`` makes this point's prompts differ from others'; ``cpu`` tells the server's CPU seconds so far.
        """
        self._plan, self._point, self._text = plan, point, prompts(point.prompt_chars, seed)
        count = plan.warm_up if plan.warm_up is not None else point.concurrency or 4
        self._began = time.perf_counter()
        warm_up = [self._record(WARM_UP + i, self._now()) for i in range(count)]
        await asyncio.gather(*map(self._send, warm_up))
        before, cpu_before = await self.metrics(), cpu()
        used, self._began = time.process_time(), time.perf_counter()
        records = await (self._closed(point.concurrency or 1) if point.rate is None else self._open(point.rate))
        wall, used = self._now(), time.process_time() - used
        window = plan.seconds if plan.requests is None else max(record.ended for record in records)
        cpu_after = cpu()
        return Run(
            point,
            records,
            num_warm_up_failed=sum(not record.ok for record in warm_up),
            window_seconds=window,
            wall_seconds=wall,
            client_cpu_seconds=used,
            before=before,
            after=await self.metrics(),
            server_cpu_seconds=cpu_after - cpu_before if cpu_after is not None and cpu_before is not None else None,
        )

    def _now(self) -> float:
        return time.perf_counter() - self._began

    def _record(self, number: int, now: float, due: float | None = None) -> Record:
        return Record(number, self._plan.seed + number, now if due is None else due, now)

    async def _closed(self, workers: int) -> list[Record]:
        plan, records = self._plan, list[Record]()

        async def work() -> None:
            while True:
                now = self._now()
                if now >= plan.seconds if plan.requests is None else len(records) >= plan.requests:
                    return
                records.append(record := self._record(len(records), now))
                await self._send(record)
                if not record.ok:
                    await asyncio.sleep(BACKOFF_SECONDS)

        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(work())
        return records

    async def _open(self, rate: float) -> list[Record]:
        plan, records = self._plan, list[Record]()
        async with asyncio.TaskGroup() as group:
            for due in arrivals(rate, plan.seed, seconds=plan.seconds, requests=plan.requests):
                await asyncio.sleep(max(0.0, due - self._now()))
                records.append(self._record(len(records), self._now(), due))
                group.create_task(self._send(records[-1]))
        return records

    def _body(self, record: Record) -> bytes:
        start = record.number * 61 % SPREAD
        body: dict[str, Any] = {
            "model": self._plan.model, "prompt": self._text[start : start + self._point.prompt_chars],
            "max_tokens": self._plan.max_tokens, "seed": record.seed,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        if self._ignore_eos:  # every answer as long as it was asked for
            body["ignore_eos"] = True
        return json.dumps(body).encode()

    async def _send(self, record: Record) -> None:
        """Send one request, and read its answer to the end; every failure goes into the record."""
        try:
            async with asyncio.timeout(self._plan.timeout_seconds):
                await self._stream(record)
            return
        except FailedError as failure:
            record.outcome, record.detail = failure.outcome, failure.detail
        except TimeoutError:
            record.outcome, record.detail = "timeout", f"{self._plan.timeout_seconds:g} s"
        except aiohttp.ClientConnectorError as error:
            record.outcome, record.detail = "connect", str(error)
        except aiohttp.ClientResponseError as error:  # no HTTP
            record.outcome, record.detail = "malformed", str(error)[:200]
        except (aiohttp.ClientError, OSError) as error:
            record.outcome, record.detail = "disconnect", str(error)
        record.ended = self._now()

    async def _stream(self, record: Record) -> None:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        url = f"{self.url}/v1/completions"
        async with self._session.post(url, data=self._body(record), headers=headers) as response:
            if response.status != 200:
                raise FailedError(
                    f"http_{response.status}", (await response.content.read(4096)).decode(errors="replace")
                )
            if response.content_type != "text/event-stream":
                raise FailedError("malformed", f"no stream of events: {response.content_type}")
            reader = Reader(record)
            async for part in response.content.iter_any():
                reader.feed(part, self._now())
            if not reader.done:
                raise FailedError("no_done", "the stream ended without [DONE]")


def _knows_ignore_eos(status: int, text: str) -> bool:
    """Whether an OpenAPI document has the field ``ignore_eos`` of a completion's body."""
    try:
        document = json.loads(text)
        content = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]
        schema = content["application/json"]["schema"]
        if "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return status == 200 and "ignore_eos" in schema["properties"]
    except (ValueError, LookupError, TypeError):
        return False
