"""Text <-> ids: ``/v1/tokenize`` and ``/v1/detokenize``; at the root the same in vLLM's shapes, which lm-eval calls."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from model.tokenizer import Tokenizer
from service import errors
from service.engine import Served
from service.openapi import json_body
from service.schema.parse import Schema, parse, read_body
from service.schema.tokenizer import (
    DetokenizeRequest,
    Prompt,
    RootDetokenizeRequest,
    RootTokenizeRequest,
    RootTokens,
    TokenizeRequest,
    TokenizerInfo,
    Tokens,
)
from service.state import Service
from service.text import encode

router = APIRouter()
# Names of the two symbols, which write nothing. lm-eval learns an id by tokenizing the name.
BEGIN, END = "<|begin|>", "<|end|>"


def _docs(body: type[BaseModel], answer: type[BaseModel], **example: Any) -> dict[str, Any]:
    """What /openapi.json says of a route."""
    example = {"model": "shakespeare", **example}
    return {"responses": {200: {"model": answer}}, "openapi_extra": json_body(body, **example)}


@router.post("/v1/tokenize", **_docs(TokenizeRequest, Tokens, prompt="To be"))
async def tokenize(request: Request) -> Response:
    """The ids of a text, without the begin symbol that every sequence starts from."""
    body = await _body(request, TokenizeRequest)
    _, tokenizer = _text_model(request, body.model)
    # a long text takes more time than the loop has, to encode and to render
    return await asyncio.to_thread(_encode, tokenizer, body.prompt, _limit(request))


@router.post("/v1/detokenize", **_docs(DetokenizeRequest, Prompt, tokens=[1]))
async def detokenize(request: Request) -> Response:
    """The text of ids. Bytes that are no valid UTF-8 become U+FFFD; the begin and the end symbol write nothing."""
    body = await _body(request, DetokenizeRequest)
    _, tokenizer = _text_model(request, body.model)
    return await asyncio.to_thread(_decode, tokenizer, body.tokens, _limit(request))


@router.post("/tokenize", **_docs(RootTokenizeRequest, RootTokens, prompt="To be"))
async def root_tokenize(request: Request) -> Response:
    """As /v1/tokenize, in vLLM's shape; ``model`` may be left out where one text model is served.

    No symbol is ever added. A prompt that is only a symbol's name, as /tokenizer_info has it, is that symbol's id.
    """
    body = await _body(request, RootTokenizeRequest)
    model, tokenizer = _text_model(request, body.model)
    facts = {"max_model_len": model.runtime.max_position}
    symbols = {BEGIN: tokenizer.begin, END: tokenizer.end}
    if body.prompt in symbols:
        return JSONResponse({"tokens": [symbols[body.prompt]], "count": 1, **facts})
    return await asyncio.to_thread(_encode, tokenizer, body.prompt, _limit(request), **facts)


@router.post("/detokenize", **_docs(RootDetokenizeRequest, Prompt, tokens=[1]))
async def root_detokenize(request: Request) -> Response:
    """As /v1/detokenize, in vLLM's shape; ``model`` may be left out where one text model is served."""
    body = await _body(request, RootDetokenizeRequest)
    _, tokenizer = _text_model(request, body.model)
    return await asyncio.to_thread(_decode, tokenizer, body.tokens, _limit(request))


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request, model: str | None = None) -> TokenizerInfo:
    """The symbols' names and ids, and the vocabulary's size; ``?model=`` where several text models are served."""
    served, tokenizer = _text_model(request, model)
    return TokenizerInfo(
        model=served.name,
        bos_token=BEGIN,
        bos_token_id=tokenizer.begin,
        eos_token=END,
        eos_token_id=tokenizer.end,
        vocab_size=tokenizer.vocab_size,
        max_model_len=served.runtime.max_position,
    )


async def _body(request: Request, schema: type[Schema]) -> Schema:
    service: Service = request.app.state.service
    settings = service.settings
    raw = await read_body(request, settings.max_body_bytes, settings)
    return await asyncio.to_thread(parse, raw, schema)


def _limit(request: Request) -> int:
    service: Service = request.app.state.service
    return service.settings.max_prompt_tokens


def _text_model(request: Request, name: str | None) -> tuple[Served, Tokenizer]:
    """The named text model, or the only one. ApiError where there is none of that name, or not exactly one."""
    service: Service = request.app.state.service
    if name is None:
        names = sorted(model.name for model in service.ready().served.values() if model.kind == "text")
        if len(names) != 1:
            known = f"one of {', '.join(names)}" if names else "but no text model is served"
            raise errors.invalid(f"model: a name is needed here, {known}", "model")
        name = names[0]
    return service.text_model(request, name)


def _encode(tokenizer: Tokenizer, prompt: str, limit: int, **facts: object) -> Response:
    tokens = encode(tokenizer, prompt, limit)
    return JSONResponse({"tokens": tokens, "count": len(tokens), **facts})


def _decode(tokenizer: Tokenizer, tokens: list[int], limit: int) -> Response:
    if len(tokens) > limit:
        raise errors.invalid(f"tokens: {len(tokens)} ids, at most {limit} are taken", "tokens")
    size = tokenizer.vocab_size
    for i, token in enumerate(tokens):
        if not 0 <= token < size:
            given = errors.clip(str(token), 32)
            raise errors.invalid(f"tokens: id {given} at index {i} is outside the vocabulary of {size}", "tokens")
    return JSONResponse({"prompt": tokenizer.decode(tokens)})
