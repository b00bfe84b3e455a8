"""``POST /v1/completions``: from a validated body to text, whole or as events."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Literal

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from model.automaton import stops
from model.sampling import SamplingParams
from service import errors, sse
from service.engine import Engine, Served
from service.request import Burst, Generation, Outcome
from service.schema.completions import CompletionRequest, Head, usage
from service.schema.parse import parse, read_body
from service.settings import Settings
from service.state import Service
from service.text import TextAssembler

log = logging.getLogger("aft.requests")
ENDPOINT = "completions"
router = APIRouter()


@router.post("/v1/completions", openapi_extra={"requestBody": {"required": True, "content": {
    "application/json": {"schema": CompletionRequest.model_json_schema()}}}})  # fmt: skip
async def completions(request: Request) -> Response:
    """Generate text."""
    service: Service = request.app.state.service
    raw = await read_body(request, service.settings.max_body_bytes)
    body = await asyncio.to_thread(parse, raw, CompletionRequest)
    model = service.model(body.model)
    # parsing a large body, encoding a long prompt and building an automaton of stops take more time than the loop has
    generation = await asyncio.to_thread(make_generation, body, model, service.settings)
    run = Completion(service, service.ready(), model, body, generation, request)
    if body.stream:
        return run.stream()
    return await run.whole()


def make_generation(body: CompletionRequest, model: Served, settings: Settings) -> Generation:
    """What the engine is to do. ApiError for what this model or server cannot do."""
    limit = settings.max_prompt_tokens
    if len(body.prompt) > limit:  # a token is at most a character
        raise errors.invalid(f"prompt: {len(body.prompt)} characters, at most {limit} tokens are taken", "prompt")
    try:
        prompt = [model.tokenizer.begin, *model.tokenizer.encode(body.prompt)]
    except ValueError as error:  # unpaired surrogates
        raise errors.invalid(f"prompt: {error}", "prompt") from None
    if len(prompt) - 1 > limit:
        raise errors.invalid(f"prompt: {len(prompt) - 1} tokens, at most {limit} are taken", "prompt")
    longest = model.runtime.max_position
    if longest is not None and len(prompt) > longest:
        raise errors.invalid(f"prompt: {len(prompt) - 1} tokens, the model ends after {longest - 1}", "prompt")
    max_tokens = settings.max_stream_tokens if body.unlimited else body.max_tokens or 256
    if not body.unlimited and max_tokens > settings.max_tokens:
        raise errors.invalid(
            f"max_tokens: {max_tokens} is above the server's cap of {settings.max_tokens}", "max_tokens"
        )
    params = SamplingParams(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        min_p=body.min_p or 0.0,
        # 53 bits: a number that JavaScript, too, can send back
        seed=secrets.randbits(53) if body.seed is None else body.seed,
    )
    tokenizer = model.tokenizer
    automaton = stops(
        tokenizer.token_bytes,
        [stop.encode() for stop in body.stops],
        tokenizer.end,
        ignore_end=body.unlimited,
    )
    return Generation(
        id=f"cmpl-{secrets.token_hex(12)}",
        model=model.name,
        prompt=prompt,
        params=params,
        max_tokens=max_tokens,
        automaton=automaton,
        max_seconds=settings.max_stream_seconds if body.unlimited else None,
    )


class Completion:
    """One request's life from submission to its last byte; its outcome is counted once."""

    def __init__(
        self,
        service: Service,
        engine: Engine,
        model: Served,
        body: CompletionRequest,
        generation: Generation,
        request: Request,
    ) -> None:
        self._service, self._engine, self._model, self._body = service, engine, model, body
        self._request, self._request_id = request, request.state.request_id
        self.generation = generation
        self._text = TextAssembler(model.tokenizer.token_bytes, body.stops)
        fingerprint = model.runtime.fingerprint[:12]
        self._head = Head(
            id=self.generation.id, created=int(time.time()), model=model.name, system_fingerprint=fingerprint
        )
        self._outcome: Outcome | None = None
        engine.submit(generation)
        request.state.counted = True  # from here on the outcome is counted where the request ends

    async def _bursts(self) -> AsyncGenerator[tuple[str, Burst]]:
        """Text as it becomes certain. ApiError where the engine failed or the drain's deadline passed."""
        cut = asyncio.ensure_future(self._service.cut_off.wait())
        try:
            while True:
                upcoming = asyncio.ensure_future(self.generation.next())
                try:
                    await asyncio.wait((upcoming, cut), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not upcoming.done():
                        upcoming.cancel()
                if not upcoming.done():
                    raise errors.shutting_down()
                burst = upcoming.result()
                self._engine.resume()
                if burst.outcome is Outcome.ERROR:
                    raise errors.internal()
                text = self._text.feed(burst.tokens)
                if burst.outcome is not None:
                    text += self._text.finish(stopped=burst.outcome is Outcome.STOP)
                # before the yield: a client that has seen the end may leave at once
                self._outcome = burst.outcome
                yield text, burst
                if burst.outcome is not None:
                    return
        finally:
            cut.cancel()

    def _reason(self, burst: Burst) -> Literal["stop", "length"] | None:
        if burst.outcome is None:
            return None
        return "stop" if burst.outcome is Outcome.STOP else "length"

    def _usage(self) -> dict[str, int]:
        return usage(self.generation.num_prompt_tokens, self.generation.num_generated)

    def stream(self) -> Response:
        """Events as they come."""
        settings = self._service.settings
        times = settings.heartbeat_seconds, settings.stalled_reader_seconds
        return sse.EventStream(self._events(), self._finish, *times)

    async def _events(self) -> AsyncGenerator[bytes]:
        options, seed = self._body.stream_options, self.generation.params.seed
        with_usage = options is not None and bool(options.include_usage)
        extra = {"usage": None} if with_usage else {}
        try:
            async for text, burst in self._bursts():
                reason = self._reason(burst)
                if text or reason:
                    yield sse.event({**self._head.choice(text, seed, reason), **extra})
            if with_usage:
                yield sse.event({**self._head.body([]), "usage": self._usage()})
            yield sse.DONE
        except errors.ApiError as error:
            self._outcome = Outcome.ERROR
            yield sse.event(error.body())
        except Exception:  # a fault of ours is no disconnect, and the stream has an end like any other
            log.exception("%s failed", self._request_id)
            self._outcome = Outcome.ERROR
            yield sse.event(errors.internal().body())

    async def whole(self) -> Response:
        """One answer; cancelled when the client leaves."""
        watcher = asyncio.ensure_future(sse.disconnected(self._request.receive))
        answer = asyncio.ensure_future(self._collect())
        try:
            await asyncio.wait((watcher, answer), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                return Response(status_code=499)  # nobody is there to read it
            return answer.result()
        except Exception:
            self._outcome = Outcome.ERROR
            raise
        finally:
            watcher.cancel()
            answer.cancel()
            self._finish()

    async def _collect(self) -> Response:
        parts, last = [], Burst([])
        async for text, burst in self._bursts():
            parts.append(text)
            last = burst
        content = self._head.choice("".join(parts), self.generation.params.seed, self._reason(last))
        return JSONResponse({**content, "usage": self._usage()})

    def _finish(self) -> None:
        """Free the slot and count the outcome; every way out of a request passes here."""
        generation, metrics, model = self.generation, self._service.metrics, self._model.name
        outcome = self._outcome or Outcome.CANCELLED
        self._engine.cancel(generation)
        if outcome is Outcome.CANCELLED:
            started = generation.first_token is not None
            phase = "decode" if started else "queued" if generation.admitted is None else "prefill"
            metrics.disconnects.labels(model, phase).inc()
        now = time.perf_counter()
        metrics.requests.labels(model, ENDPOINT, outcome.value).inc()
        metrics.duration_seconds.labels(model, ENDPOINT).observe(now - generation.arrived)
        if generation.admitted is not None:
            metrics.queue_seconds.labels(model, ENDPOINT).observe(generation.admitted - generation.arrived)
            if generation.first_token is not None:
                waited = generation.first_token - generation.admitted
                metrics.prefill_seconds.labels(model, ENDPOINT).observe(waited)
        log.info(
            "%s %s %s prompt=%d generated=%d seconds=%.3f",
            self._request_id, model, outcome.value, generation.num_prompt_tokens, generation.num_generated,
            now - generation.arrived,
        )  # fmt: skip
