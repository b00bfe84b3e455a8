"""``POST /v1/completions``."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.completion import Completion, at_once, echoes, make_generations
from service.exchange import Exchange
from service.openapi import json_body
from service.schema.completions import CompletionRequest
from service.schema.parse import parse, read_body
from service.state import Service

router = APIRouter()
SMALL_BYTES = 4096  # a body that is read in less time than a thread takes to begin


EXAMPLE = {"model": "shakespeare", "prompt": "KING HENRY. ", "max_tokens": 200, "temperature": 0.8, "seed": 1}


@router.post("/v1/completions", openapi_extra=json_body(CompletionRequest, **EXAMPLE))
async def completions(request: Request) -> Response:
    """Generate text, or score it."""
    service: Service = request.app.state.service
    settings = service.settings
    raw = await read_body(request, settings.max_body_bytes, settings)
    # a large body, a long prompt or an automaton of stops takes more time than the loop has; a thread takes some, too
    small = len(raw) <= SMALL_BYTES
    body = parse(raw, CompletionRequest) if small else await asyncio.to_thread(parse, raw, CompletionRequest)
    model, tokenizer = service.text_model(request, body.model)
    service.ready().check_room(model.name)
    key = getattr(request.state, "key", "")
    inline = small and not body.stop
    asked = body, model, tokenizer, settings, key
    generations = make_generations(*asked) if inline else await asyncio.to_thread(make_generations, *asked)
    told = body, generations, tokenizer
    texts = echoes(*told) if inline else await asyncio.to_thread(echoes, *told)
    in_turn = at_once(model, settings, key) if body.max_tokens == 0 else None
    exchange = Exchange(service, "completions", generations, request, in_turn)
    answer = Completion(exchange, model, tokenizer, body, texts)
    if body.stream:
        return exchange.stream(answer.events())
    return await exchange.whole(answer.whole())
