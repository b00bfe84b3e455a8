"""What tests of ``/v1/images/*`` ask, and how they read the answers."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import checkpoints_for_tests
import httpx
import numpy as np
from live import Client
from PIL import Image

from model.pixels import Pixels

BASE: dict[str, Any] = {"model": "pics", "prompt": "red", "seed": 7}
FORM = {"model": "pics", "prompt": "red", "seed": "7"}
GENERATIONS, EDITS, SCORE = (f"/v1/images/{name}" for name in ("generations", "edits", "score"))
HEAD = {"size": "4x4", "quality": "auto", "background": "opaque", "output_format": "png"}
PICTURE: Pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)


def make_checkpoints(folder: Path) -> Path:
    """A model of pictures, one that reads names, and one of text."""
    checkpoints_for_tests.pictures(folder / "pics")
    checkpoints_for_tests.pictures(folder / "named", name_length=6)
    checkpoints_for_tests.characters(folder / "tiny")
    return folder


def generate(client: Client, **changes: Any) -> httpx.Response:
    """One request for images."""
    return client.http.post(GENERATIONS, json={**BASE, **changes})


def edit(client: Client, image: bytes, *, path: str = EDITS, file: str = "image", **changes: Any) -> httpx.Response:
    """One form with an image, and perhaps a mask; a field that is None is left out."""
    files = {file: image, **({"mask": changes.pop("mask")} if "mask" in changes else {})}
    form = {**(FORM if path == EDITS else {"model": "pics", "prompt": "red"}), **changes}
    return client.http.post(path, data={k: v for k, v in form.items() if v is not None}, files=files)


def score(client: Client, image: bytes, **changes: Any) -> httpx.Response:
    """One form to the scores."""
    return edit(client, image, path=SCORE, **changes)


def pixels(encoded: str) -> Pixels:
    """A PNG of RGB as it came."""
    with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def images(response: httpx.Response) -> list[Pixels]:
    """All images of an answer."""
    assert response.status_code == 200, response.text
    return [pixels(image["b64_json"]) for image in response.json()["data"]]


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def kept(count: int, picture: Pixels = PICTURE) -> bytes:
    """A picture whose first pixels are kept: from there on its alpha is 0."""
    alpha = np.where(np.arange(picture.shape[0] * picture.shape[1]) < count, 255, 0).astype(np.uint8)
    return encoded(Image.fromarray(np.dstack([picture, alpha.reshape(picture.shape[:2])])))


def prefix(image: Pixels, count: int) -> Pixels:
    """The first pixels of an image, the rest white."""
    flat = np.full((image.shape[0] * image.shape[1], 3), 255, np.uint8)
    flat[:count] = image.reshape(-1, 3)[:count]
    return flat.reshape(image.shape)
