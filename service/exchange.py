"""One HTTP request and its generations: admitted together, read together, ended together, counted once."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Coroutine

from fastapi import Request
from starlette.responses import Response

from service import errors, sse
from service.request import Burst, Channel, Ended, Generation, Outcome, take
from service.state import Service

log = logging.getLogger("aft.requests")


class Exchange:
    """From submission to the last byte of the answer."""

    def __init__(
        self,
        service: Service,
        endpoint: str,
        generations: list[Generation],
        request: Request,
        at_once: int | None = None,
    ) -> None:
        """Submit the generations, all of one model; ``at_once``: up to so many, as there is room, the rest follows.

        ApiError where there is no place for them, or for the first of those that follow one another.
        """
        self._service, self._endpoint, self._request = service, endpoint, request
        self._engine = service.ready()
        self.request_id: str = request.state.request_id
        self.generations = generations
        self.outcome: Outcome | None = None  # None until the answer is complete: a client that leaves cancels
        self._channel: Channel = asyncio.Queue()
        deadline = service.settings.deadline_seconds
        for generation in generations:
            generation.channel = self._channel
            generation.key = getattr(request.state, "key", "")
            generation.arrived = request.state.began  # what its body took to come and to be read is part of its time
            generation.deadline = generation.arrived + deadline if deadline else None
        self._submitted = time.perf_counter()
        if deadline and self._submitted > request.state.began + deadline:
            # the body came slowly: nobody waited for a slot
            self.outcome = Outcome.TIMEOUT
            self.finish()
            raise errors.deadline_exceeded(deadline)
        self._later, self._at_once = deque[Generation](), at_once or 0
        if at_once is None:
            self._engine.submit(*generations)
            return
        # one place is enough to begin with
        self._later += generations
        if not self._begin(at_once):
            self._engine.submit(generations[0])
            self._later.popleft()

    async def bursts(self) -> AsyncGenerator[tuple[Generation, Burst]]:
        """What the engine gives, until all generations have ended.

        ApiError where the engine failed, or the request's or the drain's deadline passed.
        """
        watching = asyncio.ensure_future(self._watch_cut_off())
        left, cut_short = len(self.generations), False
        try:
            while left:
                taken = await take(self._channel)
                if taken is None:
                    raise errors.shutting_down()
                generation, burst = taken
                self._engine.resume(generation)
                if burst.outcome is not None:
                    self._check(generation, burst.outcome)
                    left -= 1
                    cut_short |= burst.outcome is Outcome.LENGTH
                    if self._later:
                        self._engine.submit(self._later.popleft(), force=True)
                        self._begin(self._at_once - (left - len(self._later)))
                if not left:  # before the yield: a client that has seen the end may leave at once
                    self.outcome = Outcome.LENGTH if cut_short else Outcome.STOP
                yield generation, burst
        finally:
            watching.cancel()

    def _begin(self, most: int) -> int:
        """Submit up to so many of those who follow, as many as find a place."""
        more = list(itertools.islice(self._later, most))
        count = self._engine.offer(*more) if more else 0
        for _ in range(count):
            self._later.popleft()
        return count

    async def _watch_cut_off(self) -> None:
        await self._service.cut_off.wait()
        self._channel.put_nowait(None)

    def _check(self, generation: Generation, outcome: Outcome) -> None:
        if outcome is Outcome.ERROR:
            raise errors.internal()
        if outcome is Outcome.TIMEOUT:
            seconds = self._service.settings.deadline_seconds
            if all(other.admitted is None for other in self.generations):
                raise errors.queue_timeout(seconds, self._engine.retry_after(generation.model))
            raise errors.deadline_exceeded(seconds)

    def stream(self, events: AsyncGenerator[bytes], error_event: str | None = None) -> Response:
        """The events as they come; a failure is an event too, and then the stream ends."""
        settings = self._service.settings
        times = settings.heartbeat_seconds, settings.stalled_reader_seconds
        return sse.EventStream(self._guarded(events, error_event), self.finish, *times)

    async def _guarded(self, events: AsyncGenerator[bytes], error_event: str | None) -> AsyncGenerator[bytes]:
        try:
            async for event in events:
                yield event
        except errors.ApiError as error:
            self.outcome = _failure(error)
            yield sse.event(error.body(), error_event)
        except Exception:  # a fault of ours is no disconnect, and the stream has an end like any other
            log.exception("%s failed", self.request_id)
            self.outcome = Outcome.ERROR
            yield sse.event(errors.internal().body(), error_event)
        finally:
            await events.aclose()

    async def whole(self, answer: Coroutine[None, None, Response]) -> Response:
        """One answer; cancelled when the client leaves."""
        watcher = asyncio.ensure_future(sse.disconnected(self._request.receive))
        made = asyncio.ensure_future(answer)
        try:
            await asyncio.wait((watcher, made), return_when=asyncio.FIRST_COMPLETED)
            if not made.done():
                return Response(status_code=499)  # nobody is there to read it
            return made.result()
        except Exception as error:
            self.outcome = _failure(error)
            raise
        finally:
            watcher.cancel()
            made.cancel()
            self.finish()

    def finish(self) -> None:
        """Free the slots and count the outcome; every way out of a request passes here."""
        for generation in self.generations:
            self._engine.cancel(generation)
        first, outcome = self.generations[0], self.outcome or Outcome.CANCELLED
        metrics, model, endpoint = self._service.metrics, first.model, self._endpoint
        admitted = min((g.admitted for g in self.generations if g.admitted is not None), default=None)
        begun = min((g.first_token for g in self.generations if g.first_token is not None), default=None)
        if outcome is Outcome.CANCELLED:
            phase = "decode" if begun is not None else "queued" if admitted is None else "prefill"
            metrics.disconnects.labels(model, phase).inc()
        now = time.perf_counter()
        metrics.duration_seconds.labels(model, endpoint).observe(now - first.arrived)
        ended = Ended(
            model,
            outcome,
            sum(g.num_prompt_tokens for g in self.generations if not g.params.sample),  # each prompt once
            sum(g.num_generated for g in self.generations),
            len(self.generations),
        )
        # who left or was too late before a slot was free has waited, too
        waited = (now if admitted is None else admitted) - self._submitted
        metrics.queue_seconds.labels(model, endpoint).observe(waited)
        if admitted is not None:
            ended.queue_seconds = waited
            if begun is not None:
                ended.first_token_seconds = begun - first.arrived
                metrics.prefill_seconds.labels(model, endpoint).observe(begun - admitted)
        self._request.state.ended = ended  # counted and logged where the request ends


def _failure(error: Exception) -> Outcome:
    late = isinstance(error, errors.ApiError) and error.code in errors.TIMEOUT_CODES
    return Outcome.TIMEOUT if late else Outcome.ERROR
