"""``/v1/images/generations``, ``edits``, ``score``: drawn row by row, completed below, weighed in bits."""

from __future__ import annotations

import asyncio
import base64
import math
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from model.generate import values_only
from model.pixels import ImageError, PixelCodec, Pixels, heat_map, open_image, over_white, to_png
from model.sampling import SamplingParams
from service import errors, sse
from service.engine import Served
from service.exchange import Exchange
from service.openapi import json_body
from service.request import Generation, Outcome
from service.schema.form import Form, read_form
from service.schema.images import ImageRequest, ScoreRequest, head, usage
from service.schema.parse import parse, parse_strings, read_body
from service.state import Service

router = APIRouter(prefix="/v1/images")
IMAGE = "PNG, WebP or JPEG of the model's size"
MASK = "alpha 0 = to be drawn; default: the image's own alpha"


def _form(fields: dict[str, Any], **files: str) -> dict[str, Any]:
    """What /openapi.json says of a form."""
    binary = {name: {"type": "string", "format": "binary", "description": text} for name, text in files.items()}
    schema = {**fields, "properties": {**fields["properties"], **binary}, "required": [*fields["required"], "image"]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


@router.post("/generations", openapi_extra=json_body(ImageRequest, model="emoji", prompt="Food & Drink", seed=1))
async def generations(request: Request) -> Response:
    """Draw images."""
    service: Service = request.app.state.service
    settings = service.settings
    raw = await read_body(request, settings.max_body_bytes, settings)
    body = await asyncio.to_thread(parse, raw, ImageRequest)
    model, codec = service.image_model(request, body.model)
    return await _draw(service, request, model, codec, body, [], "images_generations")


@router.post("/edits", openapi_extra=_form(ImageRequest.model_json_schema(), image=IMAGE, mask=MASK))
async def edits(request: Request) -> Response:
    """Draw the rest of an image: what the mask leaves out must be all that comes after some pixel."""
    service: Service = request.app.state.service
    settings = service.settings
    form = await read_form(request, settings.max_upload_bytes, settings)
    body = parse_strings(form.fields, ImageRequest)
    model, codec = service.image_model(request, body.model)
    known = await asyncio.to_thread(_known_values, form, codec)
    return await _draw(service, request, model, codec, body, known, "images_edits")


@router.post("/score", openapi_extra=_form(ScoreRequest.model_json_schema(), image=IMAGE))
async def score(request: Request) -> Response:
    """Bits per dimension that the model needs for an image; for each sub-pixel and as a heat map where asked for."""
    service: Service = request.app.state.service
    settings = service.settings
    form = await read_form(request, settings.max_upload_bytes, settings)
    body = parse_strings(form.fields, ScoreRequest)
    model, codec = service.image_model(request, body.model)
    values = codec.encode(np.asarray(over_white(await asyncio.to_thread(_upload, form, "image", codec, {"image"}))))
    prompt = _prompt(codec, body)
    generation = Generation(
        id=f"score-{secrets.token_hex(12)}",
        model=model.name,
        prompt=[*prompt, *values[:-1]],
        params=SamplingParams(),
        max_tokens=0,
        automaton=values_only(codec),
        targets=[*prompt[1:], *values],
    )
    exchange = Exchange(service, "images_score", [generation], request)
    return await exchange.whole(_score(exchange, body, codec))


async def _score(exchange: Exchange, body: ScoreRequest, codec: PixelCodec) -> Response:
    logprobs: list[float] = []
    async for _, burst in exchange.bursts():
        logprobs += burst.target_logprobs
    exchange.outcome = Outcome.STOP  # the image's end is no cut
    raster = codec.raster
    drawn = np.asarray(logprobs[raster.name_length :])  # a name is read, not weighed
    bits = (-drawn / math.log(2)).reshape(raster.height, raster.width, raster.channels)
    answer: dict[str, Any] = {"bits_per_dim": float(bits.mean())}
    if body.per_pixel:
        answer["bits"] = bits.round(6).tolist()
    if body.heatmap:
        answer["heatmap_b64"] = _b64(heat_map(bits))
    return JSONResponse(answer)


def _prompt(codec: PixelCodec, body: ImageRequest | ScoreRequest) -> list[int]:
    for param, known, given in (("prompt", codec.labels, body.prompt), ("style", codec.styles, body.style or "")):
        if given and given not in known:
            raise errors.invalid(f"{param}: {errors.clip(given)!r} is unknown; known: {', '.join(known)}", param)
    try:
        return codec.prompt(body.prompt, body.style or "", body.name or "")
    except ValueError as error:
        raise errors.invalid(f"name: {error}", "name") from None


def _guide(model: Served, codec: PixelCodec, body: ImageRequest, prompt: list[int]) -> list[int] | None:
    """What is read beside a guided drawing; None where it would be the same. ApiError without a slot for it."""
    less = codec.guide(prompt)
    if body.guidance in (None, 1) or less == prompt:
        return None
    if model.runtime.num_slots < 2:
        raise errors.invalid("guidance: a guided drawing takes two slots, and this server has one", "guidance")
    return less


def _upload(form: Form, name: str, codec: PixelCodec, taken: set[str]) -> Any:
    """A file of the form, which has at most those ``taken``, as an image of the model's size; or an ApiError."""
    if unknown := set(form.files) - taken:
        raise errors.invalid(f"unknown file {errors.clip(min(unknown))!r}", errors.clip(min(unknown)))
    if name not in form.files:
        raise errors.invalid(f"{name}: a file is needed", name)
    try:
        return open_image(form.files[name], codec.raster)
    except ImageError as error:
        raise errors.invalid(f"{name}: {error}", name) from None


def _known_values(form: Form, codec: PixelCodec) -> list[int]:
    """The values before the first pixel that is to be drawn. ApiError where the mask is no end of the raster."""
    files = {"image", "mask"}
    image = _upload(form, "image", codec, files)
    param = "mask" if "mask" in form.files else "image"
    mask = _upload(form, "mask", codec, files) if param == "mask" else image
    missing = np.asarray(mask.convert("RGBA"))[..., 3].reshape(-1) == 0
    if not missing.any():
        raise errors.invalid(f"{param}: no pixel has alpha 0, so there is nothing to draw", param)
    first = int(missing.argmax())
    if not missing[first:].all():
        kept = first + int((~missing[first:]).argmax())
        at = [divmod(place, codec.raster.width) for place in (first, kept)]
        raise errors.invalid(
            f"{param}: an image is drawn in reading order, so all pixels from the first to be drawn (row {at[0][0]}, "
            f"column {at[0][1]}) to the end must have alpha 0; row {at[1][0]}, column {at[1][1]} has not",
            param,
        )
    return codec.encode(np.asarray(over_white(image)))[: first * codec.raster.channels]


async def _draw(
    service: Service,
    request: Request,
    model: Served,
    codec: PixelCodec,
    body: ImageRequest,
    known: list[int],
    endpoint: str,
) -> Response:
    size = f"{codec.raster.width}x{codec.raster.height}"
    if body.size not in (None, "auto", size):
        raise errors.invalid(f"size: this model draws {size} (or auto), not {errors.clip(body.size or '')}", "size")
    prompt, automaton = [*_prompt(codec, body), *known], values_only(codec)
    guide = _guide(model, codec, body, prompt)
    most = model.scheduler.room(getattr(request.state, "key", ""), 1 if guide is None else 2)
    if (body.n or 1) > most:
        raise errors.invalid(f"n: {body.n} images, at most {most} can be drawn and wait here", "n")
    seed = secrets.randbits(53) if body.seed is None else body.seed
    drawn = [
        Generation(
            id=f"img-{secrets.token_hex(12)}",
            model=model.name,
            prompt=prompt,
            params=SamplingParams(
                temperature=1.0 if body.temperature is None else body.temperature,
                top_p=1.0 if body.top_p is None else body.top_p,
                top_k=body.top_k or 0,
                seed=seed,
                sample=sample,
            ),
            max_tokens=codec.raster.size - len(known),
            automaton=automaton,
            guide=guide,
            guidance=1.0 if body.guidance is None else body.guidance,
        )
        for sample in range(body.n or 1)
    ]
    exchange = Exchange(service, endpoint, drawn, request)
    drawing = Drawing(service, exchange, codec, known, size)
    if body.stream:
        kind = "image_edit" if endpoint == "images_edits" else "image_generation"
        return exchange.stream(drawing.events(kind, body.partial_images or 0), "error")
    return await exchange.whole(drawing.whole())


class Drawing:
    """From the engine's bursts to PNGs."""

    def __init__(self, service: Service, exchange: Exchange, codec: PixelCodec, known: list[int], size: str) -> None:
        self._metrics, self._exchange, self._codec, self._known, self._size = (
            service.metrics, exchange, codec, known, size,
        )  # fmt: skip
        self._created = int(time.time())
        self._values = {id(generation): list(known) for generation in exchange.generations}

    async def _progress(self) -> AsyncGenerator[list[int]]:
        """The values of an image that has grown."""
        model = self._exchange.generations[0].model
        async for generation, burst in self._exchange.bursts():
            values = self._values[id(generation)]
            before = len(values)
            values += burst.tokens
            channels = self._codec.raster.channels
            self._metrics.image_pixels.labels(model).inc(len(values) // channels - before // channels)
            if burst.outcome is not None:
                self._metrics.image_seconds.labels(model).observe(time.perf_counter() - generation.arrived)
            if self._exchange.outcome is not None:
                self._exchange.outcome = Outcome.STOP  # an image's end is no cut
            yield values

    def _usage(self) -> dict[str, Any]:
        drawn = sum(generation.num_generated for generation in self._exchange.generations)
        return usage(1 + self._codec.raster.name_length, len(self._known), drawn)

    async def events(self, kind: str, partial_images: int) -> AsyncGenerator[bytes]:
        """So many prefixes of whole rows, then the image."""
        raster = self._codec.raster
        rows = [raster.height * (i + 1) // (partial_images + 1) for i in range(partial_images)]
        index, values = 0, self._known
        facts = head(self._created, self._size, event=True)
        async for values in self._progress():
            while index < partial_images and len(values) >= rows[index] * raster.row:
                # what is known already is part of the first partial image
                shown = self._codec.decode(values[: max(rows[index] * raster.row, len(self._known))])
                name = f"{kind}.partial_image"
                yield sse.event({"type": name, "b64_json": _b64(shown), **facts, "partial_image_index": index}, name)
                index += 1
        name = f"{kind}.completed"
        image = _b64(self._codec.decode(values))
        seed = self._exchange.generations[0].params.seed
        yield sse.event({"type": name, "b64_json": image, **facts, "seed": seed, "usage": self._usage()}, name)

    async def whole(self) -> Response:
        """All images, in order of their samples."""
        async for _ in self._progress():
            pass
        images = [self._codec.decode(self._values[id(generation)]) for generation in self._exchange.generations]
        seed = self._exchange.generations[0].params.seed
        data = [{"b64_json": _b64(image)} for image in images]
        return JSONResponse({**head(self._created, self._size), "data": data, "seed": seed, "usage": self._usage()})


def _b64(image: Pixels) -> str:
    return base64.b64encode(to_png(image)).decode()
