"""The table of errors, and the one shape that all of them have."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from starlette.responses import Response

RETRY_AFTER_SECONDS = 5  # before there is a measured rate
TIMEOUT_CODES = ("queue_timeout", "deadline_exceeded")


class SettingError(ValueError):
    """A setting that cannot be served with; the message names it, and never repeats a key."""


class ApiError(Exception):
    """An answer that is not a success: ``{"error": {"message", "type", "param", "code"}}``."""

    def __init__(
        self,
        status: int,
        error_type: str,
        code: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.code, self.message, self.param = status, error_type, code, message, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, object]:
        """The error as JSON has it."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The error as an answer. ASCII JSON: whatever a field was called, the answer can be encoded."""
        return Response(json.dumps(self.body()), self.status, self.headers, "application/json")


def invalid(message: str, param: str | None = None) -> ApiError:
    """400: the request cannot mean anything."""
    return ApiError(400, "invalid_request_error", "invalid_value", message, param)


def one_host() -> ApiError:
    """400: the Host header is missing or given twice."""
    return invalid("a request has one Host header")


def invalid_api_key(*, given: bool) -> ApiError:
    """401: no key, or one that nobody has. The key is not repeated."""
    what = "the API key is wrong" if given else "an API key is needed"
    message = f"{what}; it is sent as Authorization: Bearer KEY"
    return ApiError(401, "invalid_request_error", "invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})


def forbidden_host(name: str) -> ApiError:
    """403: without keys, other names than our own are refused."""
    message = f"the Host header names {clip(name)!r}; without keys only loopback and AFT_ALLOWED_HOSTS are served"
    return ApiError(403, "invalid_request_error", "forbidden_host", message)


def forbidden_origin(origin: str) -> ApiError:
    """403: without keys, a page of another origin may make its reader's browser post here."""
    message = f"a page of {clip(origin)!r} may not post here; without keys only origins in AFT_CORS_ORIGINS may"
    return ApiError(403, "invalid_request_error", "forbidden_origin", message)


def forbidden_preflight(reason: str) -> ApiError:
    """400: what a browser asks before it posts may not be done."""
    return ApiError(
        400, "invalid_request_error", "forbidden_origin", f"{clip(reason)}; AFT_CORS_ORIGINS has the origins"
    )


def not_http() -> ApiError:
    """400: what came is no HTTP request."""
    return ApiError(400, "invalid_request_error", "invalid_http", "this is no HTTP/1.1 request that can be read")


def rate_limited(seconds: float) -> ApiError:
    """429: too many requests of one key or address. Clients that are told more than a minute do not wait at all."""
    return _too_many(f"too many requests; the next is taken in about {math.ceil(seconds)} s", seconds)


def key_queue_full(limit: int, seconds: int, count: int = 1) -> ApiError:
    """429: one key's places in the queue are taken, or too few for so many choices; another key may have some."""
    message = f"all {limit} places in the queue that one key may hold are taken"
    if count > 1:
        message = f"the queue, where one key may hold {limit} places, has no room for {count} choices of this key now"
    return _too_many(message, seconds)


def _too_many(message: str, seconds: float) -> ApiError:
    whole = min(max(math.ceil(seconds), 1), 60)
    headers = {"Retry-After": str(whole), "retry-after-ms": str(whole * 1000)}
    return ApiError(429, "rate_limit_error", "rate_limit_exceeded", message, headers=headers)


def model_not_found(name: str, known: list[str]) -> ApiError:
    """404: no such model here."""
    message = f"model {clip(name)!r} is not served here; served: {', '.join(known) or 'none'}"
    return ApiError(404, "invalid_request_error", "model_not_found", message, "model")


def not_found() -> ApiError:
    """404: no such route."""
    return ApiError(404, "invalid_request_error", "not_found", "no such route; /openapi.json lists them")


def method_not_allowed(headers: Mapping[str, str]) -> ApiError:
    """405: the route has other methods."""
    message = f"this route takes {headers.get('allow', 'another method')}"
    return ApiError(405, "invalid_request_error", "method_not_allowed", message, headers=headers)


def body_timeout(seconds: float) -> ApiError:
    """408: the client stopped sending its body."""
    message = f"nothing more of the body came for {seconds:g} s"
    return ApiError(408, "invalid_request_error", "request_timeout", message, headers={"Connection": "close"})


def client_left() -> ApiError:
    """499: the client left before its body was complete. Nobody reads this; it is how the request is counted."""
    return ApiError(499, "invalid_request_error", "client_left", "the client left before the body was complete")


def too_large(limit: int) -> ApiError:
    """413: the body is over the limit."""
    message = f"the body is larger than {limit} bytes"
    return ApiError(413, "invalid_request_error", "request_too_large", message, headers={"Connection": "close"})


def _unavailable(error_type: str, code: str, message: str, seconds: int, *, close: bool) -> ApiError:
    headers = {"Retry-After": str(seconds), "retry-after-ms": str(seconds * 1000)}
    if close:  # a kept connection would bring the retry back to a process that is about to end
        headers["Connection"] = "close"
    return ApiError(503, error_type, code, message, headers=headers)


def queue_full(limit: int, seconds: int, count: int = 1) -> ApiError:
    """503: no slot and no place to wait, or too few of them for so many choices."""
    message = f"all {limit} places in the queue are taken"
    if count > 1:
        message = f"the queue, of {limit} places, has no room for {count} choices now"
    return _unavailable("overloaded_error", "queue_full", message, seconds, close=False)


def shutting_down() -> ApiError:
    """503: the process drains."""
    message = "the server is shutting down"
    return _unavailable("unavailable_error", "shutting_down", message, RETRY_AFTER_SECONDS, close=True)


def model_loading() -> ApiError:
    """503: the models are not there yet."""
    message = "the models are being loaded"
    return _unavailable("unavailable_error", "model_loading", message, RETRY_AFTER_SECONDS, close=True)


def not_stepping() -> ApiError:
    """503: the engine hangs."""
    message = "the engine does not step"
    return _unavailable("unavailable_error", "engine_stalled", message, RETRY_AFTER_SECONDS, close=True)


def queue_timeout(deadline: float, seconds: int) -> ApiError:
    """503: the deadline passed before there was a slot."""
    message = f"no slot became free within the deadline of {deadline:g} s"
    return _unavailable("overloaded_error", "queue_timeout", message, seconds, close=False)


def deadline_exceeded(deadline: float, *, close: bool = False) -> ApiError:
    """504: the deadline passed while the request ran. It would pass again, so clients must not retry.

    ``close`` where not all of its body was read.
    """
    message = f"the request was not complete within the deadline of {deadline:g} s"
    headers = {"x-should-retry": "false", **({"Connection": "close"} if close else {})}
    return ApiError(504, "timeout_error", "deadline_exceeded", message, headers=headers)


def internal() -> ApiError:
    """500: a fault of ours; the engine goes on serving others."""
    message = "the engine failed at this request; others go on"
    return ApiError(500, "server_error", "internal_error", message)


def clip(text: str, limit: int = 64) -> str:
    """Input that an error repeats, bounded and encodable."""
    safe = text.encode("utf-8", "replace").decode()
    return safe if len(safe) <= limit else safe[:limit] + "…"
