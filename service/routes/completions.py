"""``POST /v1/completions``: from a validated body to text, whole or as events."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Literal

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from model.automaton import stops
from model.sampling import SamplingParams
from model.tokenizer import Tokenizer
from service import errors, sse
from service.engine import Served
from service.exchange import Exchange
from service.request import Burst, Generation, Outcome
from service.schema.completions import CompletionRequest, Head, usage
from service.schema.parse import parse, read_body
from service.settings import Settings
from service.state import Service
from service.text import TextAssembler

router = APIRouter()


@router.post("/v1/completions", openapi_extra={"requestBody": {"required": True, "content": {
    "application/json": {"schema": CompletionRequest.model_json_schema()}}}})  # fmt: skip
async def completions(request: Request) -> Response:
    """Generate text."""
    service: Service = request.app.state.service
    raw = await read_body(request, service.settings.max_body_bytes)
    body = await asyncio.to_thread(parse, raw, CompletionRequest)
    model, tokenizer = service.text_model(body.model)
    # parsing a large body, encoding a long prompt and building an automaton of stops take more time than the loop has
    generation = await asyncio.to_thread(make_generation, body, model, tokenizer, service.settings)
    exchange = Exchange(service, "completions", [generation], request)
    answer = Completion(exchange, model, tokenizer, body)
    if body.stream:
        return exchange.stream(answer.events())
    return await exchange.whole(answer.whole())


def make_generation(body: CompletionRequest, model: Served, tokenizer: Tokenizer, settings: Settings) -> Generation:
    """What the engine is to do. ApiError for what this model or server cannot do."""
    limit = settings.max_prompt_tokens
    if len(body.prompt) > limit:  # a token is at most a character
        raise errors.invalid(f"prompt: {len(body.prompt)} characters, at most {limit} tokens are taken", "prompt")
    try:
        prompt = [tokenizer.begin, *tokenizer.encode(body.prompt)]
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
    """From the engine's bursts to what the client reads."""

    def __init__(self, exchange: Exchange, model: Served, tokenizer: Tokenizer, body: CompletionRequest) -> None:
        self._exchange, self._body, self._generation = exchange, body, exchange.generations[0]
        self._text = TextAssembler(tokenizer.token_bytes, body.stops)
        fingerprint = model.runtime.fingerprint[:12]
        self._head = Head(
            id=self._generation.id, created=int(time.time()), model=model.name, system_fingerprint=fingerprint
        )

    async def _parts(self) -> AsyncGenerator[tuple[str, Literal["stop", "length"] | None]]:
        """Text as it becomes certain, and why it ended."""
        async for _, burst in self._exchange.bursts():
            text = self._text.feed(burst.tokens)
            if burst.outcome is not None:
                text += self._text.finish(stopped=burst.outcome is Outcome.STOP)
            yield text, _reason(burst)

    def _usage(self) -> dict[str, int]:
        return usage(self._generation.num_prompt_tokens, self._generation.num_generated)

    async def events(self) -> AsyncGenerator[bytes]:
        """A stream's events."""
        options, seed = self._body.stream_options, self._generation.params.seed
        with_usage = options is not None and bool(options.include_usage)
        extra = {"usage": None} if with_usage else {}
        async for text, reason in self._parts():
            if text or reason:
                yield sse.event({**self._head.choice(text, seed, reason), **extra})
        if with_usage:
            yield sse.event({**self._head.body([]), "usage": self._usage()})
        yield sse.DONE

    async def whole(self) -> Response:
        """One answer."""
        parts = [part async for part in self._parts()]
        text, reason = "".join(text for text, _ in parts), parts[-1][1]
        content = self._head.choice(text, self._generation.params.seed, reason)
        return JSONResponse({**content, "usage": self._usage()})


def _reason(burst: Burst) -> Literal["stop", "length"] | None:
    if burst.outcome is None:
        return None
    return "stop" if burst.outcome is Outcome.STOP else "length"
