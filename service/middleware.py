"""Pure ASGI middleware: what every answer has, an id and one outcome in the metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import errors
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
}
DISCARD_BYTES = 64 << 20
DISCARD_SECONDS = 2.0


class Envelope:
    """Gives each request an id of ours, answers a fault of ours, counts what no route has counted."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; the id goes into the state and the answer's headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = request_id = secrets.token_hex(8)
        status = 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [pair for pair in message.get("headers", []) if pair[0].lower() != b"x-request-id"]
                message = {**message, "headers": [*headers, (b"x-request-id", request_id.encode())]}
            elif status == 413 and not message.get("more_body"):
                # a client that is still sending would see a reset instead of the answer
                await send({**message, "more_body": True})
                await _discard(receive)
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        except Exception:  # a fault of ours, whatever it is; the process goes on
            log.exception("%s %s failed", request_id, scope["path"])
            if status:
                self._count(scope, 500, state.get("ended"))
                raise
            await errors.internal().response()(scope, receive, tagged)
        if scope["path"] not in PROBES:
            self._count(scope, status, state.get("ended"))

    def _count(self, scope: Scope, status: int, ended: Ended | None) -> None:
        refused = Outcome.STOP if status < 400 else Outcome.ERROR if status == 500 else Outcome.REJECTED
        model, outcome = (ended.model, ended.outcome) if ended else ("", refused)
        self._metrics.requests.labels(model, _endpoint(scope), outcome.value).inc()


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
