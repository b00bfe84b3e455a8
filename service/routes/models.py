"""``GET /v1/models`` and one of them: what is served, in OpenAI's shape with a few facts of ours."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from model.pixels import PixelCodec
from service.engine import Served
from service.state import Service

router = APIRouter()


class Card(BaseModel):
    """One model. ``max_model_len`` is null where a sequence has no end; an image model has what it draws, too."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "aft-serve"
    kind: Literal["text", "image"]
    vocab_size: int
    window: int
    state_bytes: int
    max_model_len: int | None


class ImageCard(Card):
    """One image model."""

    labels: list[str]
    styles: list[str]
    name_length: int  # the longest name that it reads; 0: it knows no names
    size: str


class Cards(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ImageCard | Card]


def describe(model: Served) -> ImageCard | Card:
    """One entry."""
    card = Card(
        id=model.name,
        created=model.created,
        kind=model.kind,
        vocab_size=model.runtime.vocab_size,
        window=model.window,
        state_bytes=model.runtime.state_bytes,
        max_model_len=model.runtime.max_position,
    )
    if not isinstance(model.codec, PixelCodec):
        return card
    raster, labels, styles = model.codec.raster, model.codec.labels, model.codec.styles
    size = f"{raster.width}x{raster.height}"
    return ImageCard(**dict(card), labels=labels, styles=styles, name_length=raster.name_length, size=size)


@router.get("/v1/models")
async def models(request: Request) -> Cards:
    """All models."""
    service: Service = request.app.state.service
    return Cards(data=[describe(model) for model in service.ready().served.values()])


@router.get("/v1/models/{name}")
async def one_model(request: Request, name: str) -> ImageCard | Card:
    """One model, or 404."""
    service: Service = request.app.state.service
    return describe(service.model(request, name))
