"""What can be asked of ``/v1/images/*``, and what the answers look like (OpenAI's image API)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from service.schema.base import Int64, Strict

MAX_NAME = 256  # characters as they are written; a model's own limit counts those that are left of them


class ImageRequest(Strict):
    """Fields of generations and of edits. Those that an image model of this size has no use for must be at their
    defaults."""

    model: str
    prompt: str  # a label; "" for any
    style: str | None = None
    # what is drawn, in words, where the model knows names; "" for any
    name: Annotated[str, Field(max_length=MAX_NAME)] | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: str | None = None
    seed: Int64 | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    # how strongly what is asked for counts, against a second stream that is not told: twice the work
    guidance: Annotated[float, Field(ge=0, le=20)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    quality: Literal["auto"] | None = None
    background: Literal["auto"] | None = None
    moderation: Literal["auto"] | None = None
    output_compression: Annotated[int, Field(ge=100, le=100)] | None = None  # no Literal: a form has strings
    user: str | None = None

    @model_validator(mode="after")
    def check(self) -> Self:
        """Fields that need each other."""
        if self.stream and (self.n or 1) != 1:
            raise ValueError("n: it must be 1 in a stream")
        if self.partial_images and not self.stream:
            raise ValueError("partial_images: it needs stream: true")
        return self


class ScoreRequest(Strict):
    """Fields of a score, beside the image."""

    model: str
    prompt: str = ""
    style: str | None = None
    name: Annotated[str, Field(max_length=MAX_NAME)] | None = None
    per_pixel: bool | None = None
    heatmap: bool | None = None


def head(created: int, size: str, *, event: bool = False) -> dict[str, Any]:
    """What every answer and event says of an image."""
    when = "created_at" if event else "created"
    return {when: created, "size": size, "quality": "auto", "background": "opaque", "output_format": "png"}


def usage(said: int, given: int, drawn: int) -> dict[str, Any]:
    """OpenAI's usage object of images: the condition and the places of a name are text, the others are sub-pixels."""
    return {
        "input_tokens": said + given,
        "output_tokens": drawn,
        "total_tokens": said + given + drawn,
        "input_tokens_details": {"text_tokens": said, "image_tokens": given},
    }
