"""``/livez``, ``/readyz``, ``/metrics``: what an operator's machinery asks."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import PlainTextResponse, Response

from service.state import Service

router = APIRouter()


@router.api_route("/livez", methods=["GET", "HEAD"], include_in_schema=False)
async def livez() -> Response:
    """The event loop beats."""
    return PlainTextResponse("ok\n")


@router.api_route("/readyz", methods=["GET", "HEAD"], include_in_schema=False)
async def readyz(request: Request) -> Response:
    """Whether new requests are taken; if not, why."""
    service: Service = request.app.state.service
    if service.draining:
        reason = "shutting down"
    elif service.engine is None:
        reason = "the models are being loaded"
    elif not service.engine.stepping:
        reason = "the engine does not step"
    else:
        return PlainTextResponse("ok\n")
    return PlainTextResponse(f"{reason}\n", 503)


@router.api_route("/metrics", methods=["GET", "HEAD"], include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    service: Service = request.app.state.service
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)
