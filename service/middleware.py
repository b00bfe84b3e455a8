"""Pure ASGI middleware: a request id on every answer, and one outcome for every request that no route counts."""

from __future__ import annotations

import logging
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics
from service.request import Outcome

log = logging.getLogger("aft.requests")


class RequestId:
    """Gives each request an id of ours; counts refusals."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; the id goes into the state and the answer's headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(scope["path"], message["status"])
                headers = [pair for pair in message.get("headers", []) if pair[0].lower() != b"x-request-id"]
                message = {**message, "headers": [*headers, (b"x-request-id", request_id.encode())]}
            await send(message)

        await self._app(scope, receive, tagged)

    def _count(self, path: str, status: int) -> None:
        """Refusals; what was admitted counts itself where it ends."""
        if status in (400, 401, 404, 405, 413, 415, 429, 503) and path not in ("/readyz", "/livez", "/metrics"):
            endpoint = "completions" if path == "/v1/completions" else "other"
            self._metrics.requests.labels("", endpoint, Outcome.REJECTED.value).inc()
