"""What a running service is: its engine once loaded, and whether it drains."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from starlette.requests import Request

from model.pixels import PixelCodec
from model.tokenizer import Tokenizer
from service import errors
from service.engine import Engine, Served
from service.metrics import Metrics
from service.settings import Settings


@dataclass(slots=True)
class Service:
    """Shared by all routes; made by ``create_app``."""

    settings: Settings
    metrics: Metrics
    started: float = field(default_factory=time.perf_counter)
    engine: Engine | None = None
    draining: bool = False
    cut_off: asyncio.Event = field(default_factory=asyncio.Event)  # the drain's deadline has passed

    def ready(self) -> Engine:
        """The engine, or the error that says why there is none for a new request."""
        if self.draining:
            raise errors.shutting_down()
        if self.engine is None:
            raise errors.model_loading()
        if not self.engine.stepping:
            raise errors.not_stepping()
        return self.engine

    def model(self, request: Request, name: str) -> Served:
        """A served model, or 404. From here on the request is counted as this model's, however it ends."""
        engine = self.ready()
        if name not in engine.served:
            raise errors.model_not_found(name, sorted(engine.served))
        request.state.model = name
        return engine.served[name]

    def text_model(self, request: Request, name: str) -> tuple[Served, Tokenizer]:
        """A served model of text; 404 for an unknown one, 400 for one of images."""
        model = self.model(request, name)
        if isinstance(model.codec, PixelCodec):
            raise errors.invalid(f"model: {errors.clip(name)!r} is an image model; see /v1/images/generations", "model")
        return model, model.codec

    def image_model(self, request: Request, name: str) -> tuple[Served, PixelCodec]:
        """A served model of images; 404 for an unknown one, 400 for one of text."""
        model = self.model(request, name)
        if not isinstance(model.codec, PixelCodec):
            raise errors.invalid(f"model: {errors.clip(name)!r} is a text model; see /v1/completions", "model")
        return model, model.codec
