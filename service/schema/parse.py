"""Bodies: from bytes to a schema, strictly, or a 400 that names the field."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from service.errors import ApiError, body_timeout, client_left, clip, deadline_exceeded, invalid, too_large
from service.settings import Settings

Schema = TypeVar("Schema", bound=BaseModel)
MAX_FIELDS = 2048  # of an object: no schema has more, and each unknown one costs the validation a kilobyte


async def read_body(request: Request, limit: int, settings: Settings, media_type: str = "application/json") -> bytes:
    """The body, checked before it is parsed.

    ApiError for another media type, an encoding, more than ``limit`` bytes, a client that sends nothing for
    ``stalled_reader_seconds``, or is not done by the request's deadline.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != media_type:
        raise invalid(f"content-type must be {media_type}, it is {clip(media)!r}")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "invalid_request_error", "invalid_value", "the body must have no content-encoding")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and (len(length) > 18 or int(length) > limit):
        raise too_large(limit)
    body, parts = bytearray(), request.stream()
    stalled, deadline = settings.stalled_reader_seconds, settings.deadline_seconds
    ends = request.state.began + deadline if deadline else math.inf
    try:
        while True:
            async with asyncio.timeout(min(stalled, ends - time.perf_counter())):
                part = await anext(parts, None)
            if part is None:
                return bytes(body)
            body += part
            if len(body) > limit:
                raise too_large(limit)
    except ClientDisconnect:
        raise client_left() from None
    except TimeoutError:
        if time.perf_counter() >= ends:
            request.state.unread = True
            raise deadline_exceeded(deadline, close=True) from None
        raise body_timeout(stalled) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_FIELDS:
        raise invalid(f"an object has {len(pairs)} fields, at most {MAX_FIELDS} are taken")
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise invalid(f"field {clip(name)!r} is given twice", clip(name))
            seen.add(name)
    return fields


def _no_constant(name: str) -> Any:
    raise invalid(f"{name} is no JSON number")


def parse(body: bytes, schema: type[Schema]) -> Schema:
    """A body as the schema has it. ApiError says which field and why, and never repeats the value."""
    try:
        fields = json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise invalid("the body is nested too deeply") from None
    except ValueError as error:  # also bytes that are not UTF-8, and integers of thousands of digits
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8, or a number is too long"
        raise invalid(f"the body is no JSON: {reason}") from None
    return _validated(lambda: schema.model_validate(fields))


def parse_strings(fields: dict[str, str], schema: type[Schema]) -> Schema:
    """The fields of a form, each a string, as the schema has them. ApiError as ``parse``."""
    return _validated(lambda: schema.model_validate_strings(fields))


def _validated(validate: Callable[[], Schema]) -> Schema:
    try:
        return validate()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        # pydantic's words for a member of a union end in the member's name: the field is enough
        reason = "unknown field" if first["type"] == "extra_forbidden" else clip(first["msg"], 200)
        reason = reason.removeprefix("Value error, ")
        # a rule of several fields begins with the name of one
        named = str(first["loc"][0]) if first["loc"] else reason.partition(":")[0]
        field = clip(named) if first["loc"] or named.isidentifier() else None
        raise invalid(f"{clip(place)}: {reason}" if place else reason, field) from None
