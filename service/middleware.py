"""Pure ASGI middleware: what every answer has, an id, one outcome in the metrics and one line in the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import errors, logs
from service.metrics import Metrics
from service.request import Ended, Outcome

log = logging.getLogger("aft.requests")
PROBES = ("/readyz", "/livez", "/metrics")
# the endpoints' names in metrics
POSTED = {
    "/v1/completions": "completions",
    "/v1/images/generations": "images_generations",
    "/v1/images/edits": "images_edits",
    "/v1/images/score": "images_score",
    "/v1/tokenize": "tokenize",
    "/tokenize": "tokenize",
    "/v1/detokenize": "detokenize",
    "/detokenize": "detokenize",
}
DISCARD_BYTES = 64 << 20
DISCARD_SECONDS = 2.0


class Envelope:
    """Gives each request an id of ours, and counts and logs how it ended. The outermost of all."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; the id goes into the state and the answer's headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id = secrets.token_hex(8)
        state["began"] = began
        status: int | None = None
        complete = failed = False

        async def tagged(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [pair for pair in message.get("headers", []) if pair[0].lower() != b"x-request-id"]
                message = {**message, "headers": [*headers, (b"x-request-id", request_id.encode())]}
            elif (status == 413 or state.get("unread")) and not message.get("more_body"):
                # a client that is still sending would see a reset instead of the answer
                await send({**message, "more_body": True})
                await _discard(receive)
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)
            complete |= message["type"] == "http.response.body" and not message.get("more_body")

        try:
            await self._app(scope, receive, tagged)
        except Exception:
            failed = True
            raise
        finally:  # also where the server cancels what is left at its end
            outcome = Outcome.ERROR if failed else _outcome(status, complete, state.get("ended"))
            self._record(scope, status, outcome, time.perf_counter() - began)

    def _record(self, scope: Scope, status: int | None, outcome: Outcome, seconds: float) -> None:
        ended: Ended | None = scope["state"].get("ended")
        model = ended.model if ended else scope["state"].get("model", "")
        probe = scope["path"] in PROBES and scope["method"] in ("GET", "HEAD")
        if not probe:
            self._metrics.requests.labels(model, _endpoint(scope), outcome.value).inc()
        if not probe or status is None or status >= 400:
            logs.request(scope, client_address(scope), status, outcome, seconds)


class Faults:
    """Answers a fault of ours, whatever it is; the process goes on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; an exception is logged, and is a 500 where no answer has begun."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            log.exception("request failed", extra={"id": scope["state"]["request_id"]})
            if begun:
                raise
            await errors.internal().response()(scope, receive, send)


def client_address(scope: Scope) -> str:
    """Where a request comes from; a proxy may have written it."""
    client = scope.get("client")
    return logs.printable(client[0], 64) if client else ""


def _outcome(status: int | None, complete: bool, ended: Ended | None) -> Outcome:
    if status in (None, 499):  # nobody was there to answer
        return Outcome.CANCELLED
    if ended:
        return ended.outcome
    if not complete:
        return Outcome.CANCELLED
    if status == 504:  # the deadline passed before the body was there
        return Outcome.TIMEOUT
    return Outcome.STOP if status < 400 else Outcome.ERROR if status == 500 else Outcome.REJECTED


def _endpoint(scope: Scope) -> str:
    path, method = scope["path"], scope["method"]
    if method == "POST" and path in POSTED:
        return POSTED[path]
    return "models" if f"{path}/".startswith("/v1/models/") and method == "GET" else "other"


async def _discard(receive: Receive) -> None:
    """Read on for a while and forget it."""
    left = DISCARD_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return
