"""Images <-> sequences of sub-pixels, and what they begin with: a condition and perhaps a name.

An image (H, W, 3) is read row by row, R, G, B of a pixel side by side; each value is an id of its own, 0 ... 255. The
ids above are conditions: one for each pair of a label (or any) and a style (or any). A sequence begins with one of
them, as a text begins with the begin symbol. A model that knows names reads one next, in ids above the conditions: a
blank, then an alphabet. Names stand at the end of their places, so that the first pixel follows the last letter.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.config import Raster

Pixels = NDArray[np.uint8]  # (..., H, W, 3)
NUM_VALUES = 256
WHITE = 255


ALPHABET = " 0123456789abcdefghijklmnopqrstuvwxyz"  # of names, for new models


def plain(name: str) -> str:
    """A name in small letters, digits and single spaces; accents are dropped, whatever else there is separates."""
    letters = unicodedata.normalize("NFKD", name.casefold())
    bare = "".join(c for c in letters if not unicodedata.combining(c)).replace("'", "").replace("\u2019", "")
    return re.sub(r"[^0-9a-z]+", " ", bare).strip()


class PixelCodec:
    """What a tokenizer is to text."""

    def __init__(self, raster: Raster, labels: Sequence[str], styles: Sequence[str], alphabet: str = ALPHABET) -> None:
        self.raster, self.labels, self.styles = raster, list(labels), list(styles)
        self.alphabet = alphabet if raster.name_length else ""

    @property
    def num_conditions(self) -> int:
        """Pairs of a label or any and a style or any."""
        return (len(self.labels) + 1) * (len(self.styles) + 1)

    @property
    def vocab_size(self) -> int:
        """256 values, all conditions and, for names, a blank and the alphabet."""
        letters = 1 + len(self.alphabet) if self.raster.name_length else 0
        return NUM_VALUES + self.num_conditions + letters

    def prompt(self, label: str = "", style: str = "", name: str = "") -> list[int]:
        """What an image of this begins with; "" means any. ValueError says what is not known."""
        return [self.condition(label, style), *self.spell(name)]

    def spell(self, name: str) -> list[int]:
        """A name's ids, blanks before it; "" is all blank. ValueError for one that the model cannot read."""
        length, blank = self.raster.name_length, NUM_VALUES + self.num_conditions
        if name and not length:
            raise ValueError("this model knows no names")
        letters = plain(name)
        if name and not letters:
            raise ValueError("a name has letters or digits")
        if len(letters) > length:
            raise ValueError(f"a name has at most {length} characters, this one {len(letters)}")
        if unknown := set(letters) - set(self.alphabet):
            raise ValueError(f"this model's names have no {min(unknown)!r}")
        return [blank] * (length - len(letters)) + [blank + 1 + self.alphabet.index(letter) for letter in letters]

    def condition(self, label: str = "", style: str = "") -> int:
        """The id of a condition; "" means any. ValueError lists what is known."""
        places = []
        for name, given, known in (("label", label, self.labels), ("style", style, self.styles)):
            if given and given not in known:
                raise ValueError(f"unknown {name}; known: {', '.join(known) or 'none'}")
            places.append(known.index(given) + 1 if given else 0)
        return NUM_VALUES + places[0] * (len(self.styles) + 1) + places[1]

    def guide(self, prompt: Sequence[int]) -> list[int]:
        """The same, told neither label nor name: what guidance compares a sequence with (its values may follow)."""
        before = 1 + self.raster.name_length
        style = (prompt[0] - NUM_VALUES) % (len(self.styles) + 1)
        return [NUM_VALUES + style, *self.spell(""), *prompt[before:]]

    def encode(self, image: Pixels) -> list[int]:
        """(H, W, 3) -> H W 3 ids."""
        ids: list[int] = image.reshape(-1).tolist()
        return ids

    def decode(self, ids: Sequence[int]) -> Pixels:
        """Ids in order, perhaps not all -> (H, W, 3); what is missing is white."""
        flat = np.full(self.raster.size, WHITE, np.uint8)
        flat[: len(ids)] = np.asarray(ids, np.uint8)
        return flat.reshape(self.raster.height, self.raster.width, self.raster.channels)


def to_png(image: Pixels) -> bytes:
    """An image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def to_webp(image: Pixels) -> bytes:
    """An image as lossless WebP, as small as its encoder can: a yardstick for bits per dimension."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", lossless=True, method=6, quality=100)
    return buffer.getvalue()


class ImageError(ValueError):
    """A file that is no image of the right size; the message says why."""


def open_image(data: bytes, raster: Raster) -> Image.Image:
    """A PNG, WebP or JPEG of the raster's size, decoded. ImageError for anything else.

    The size is compared before any pixel is decoded: a file that claims to be huge costs nothing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=["PNG", "WEBP", "JPEG"])
            if image.size == (raster.width, raster.height):
                image.load()
                return image
    except Exception as error:  # whatever a decoder raises at foreign bytes
        raise ImageError("this is no PNG, WebP or JPEG that can be read") from error
    raise ImageError(f"the image is {image.width}x{image.height}, the model's are {raster.width}x{raster.height}")


def heat_map(bits: NDArray[np.float64]) -> Pixels:
    """Bits of each sub-pixel (H, W, 3) -> surprise of each pixel (H, W, 3): black 0, red, yellow, white >= 24."""
    heat = bits.sum(2, keepdims=True) / 24.0 * 3.0
    channels = np.clip(heat - np.arange(3.0), 0.0, 1.0)
    pixels: Pixels = (channels * 255).round().astype(np.uint8)
    return pixels


def over_white(image: Image.Image) -> Image.Image:
    """RGB, transparent parts over white."""
    if image.mode.startswith("I;16"):  # grey of 16 bits: Pillow would cut off instead of scale
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (WHITE,) * 4), rgba).convert("RGB")


def fit(image: Image.Image, size: int) -> Pixels:
    """Over white, reduced (Lanczos) into a white square of ``size``: (size, size, 3)."""
    flat = over_white(image)
    side = max(flat.size)
    square = Image.new("RGB", (side, side), (WHITE,) * 3)
    square.paste(flat, ((side - flat.width) // 2, (side - flat.height) // 2))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


def fit_loosely(image: Pixels, size: int, stretch: NDArray[np.float64], move: NDArray[np.float64]) -> Pixels:
    """As fit, a square picture drawn again ``stretch`` (x, y) times as large, its middle moved by ``move`` pixels.

    At most as much as a quarter of the picture comes into view on each side; it is white.
    """
    side = len(image)
    margin = side // 4
    wide = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), constant_values=WHITE)
    middle, half = margin + side / 2 - move * (side / size), side / 2 / stretch
    box = (*(middle - half), *(middle + half))
    return np.asarray(Image.fromarray(wide).resize((size, size), Image.Resampling.LANCZOS, box))


def sheet(images: Sequence[Pixels], columns: int, scale: int = 1, gap: int = 1) -> Pixels:
    """Many images of one size as one, row by row, a white gap between them."""
    height, width, channels = images[0].shape
    rows = -(-len(images) // columns)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), WHITE, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas.repeat(scale, 0).repeat(scale, 1)
