"""``GET /v1/models`` and one of them: what is served, in OpenAI's shape with a few facts of ours."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from model.pixels import PixelCodec
from service.engine import Served
from service.state import Service

router = APIRouter()


def describe(model: Served) -> dict[str, Any]:
    """One entry."""
    facts: dict[str, Any] = {}
    if isinstance(model.codec, PixelCodec):
        raster = model.codec.raster
        facts = {"labels": model.codec.labels, "styles": model.codec.styles, "size": f"{raster.width}x{raster.height}"}
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "aft-serve",
        "kind": model.kind,
        "vocab_size": model.runtime.vocab_size,
        "state_bytes": model.runtime.state_bytes,
        "max_model_len": model.runtime.max_position,
        **facts,
    }


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """All models."""
    service: Service = request.app.state.service
    return {"object": "list", "data": [describe(model) for model in service.ready().served.values()]}


@router.get("/v1/models/{name}")
async def one_model(request: Request, name: str) -> dict[str, Any]:
    """One model, or 404."""
    service: Service = request.app.state.service
    return describe(service.model(name))
