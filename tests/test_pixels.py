"""Images, their sequences and their conditions."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.config import Raster
from model.pixels import NUM_VALUES, PixelCodec, fit, over_white, sheet, to_png

CODEC = PixelCodec(Raster(height=3, width=4), ["cat", "dog"], ["ink"])


def test_reading_order_is_row_pixel_channel() -> None:
    """The first ids are R, G, B of the first pixel, then of its right neighbour."""
    image = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    assert CODEC.encode(image) == list(range(36))


@given(st.binary(min_size=36, max_size=36))
def test_round_trip(raw: bytes) -> None:
    """decode(encode(image)) is the image."""
    image = np.frombuffer(raw, np.uint8).reshape(3, 4, 3)
    assert (CODEC.decode(CODEC.encode(image)) == image).all()


@given(st.integers(0, 36))
def test_a_part_is_a_prefix_and_white(size: int) -> None:
    """What is not there yet is white; what is there does not change."""
    flat = CODEC.decode([7] * size).reshape(-1)
    assert (flat[:size] == 7).all()
    assert (flat[size:] == 255).all()


def test_conditions_are_ids_of_their_own() -> None:
    """Each pair of a label or any and a style or any has one id, above all values."""
    ids = [CODEC.condition(label, style) for label in ("", "cat", "dog") for style in ("", "ink")]
    assert ids == list(range(NUM_VALUES, CODEC.vocab_size))


def test_unknown_labels_name_the_known() -> None:
    """A label or style that the model does not know."""
    with pytest.raises(ValueError, match="unknown label; known: cat, dog"):
        CODEC.condition("cow")
    with pytest.raises(ValueError, match="unknown style; known: ink"):
        CODEC.condition("cat", "oil")


def test_png_keeps_every_value() -> None:
    """PNG is lossless."""
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    with Image.open(io.BytesIO(to_png(image))) as read:
        assert (np.asarray(read) == image).all()


def test_transparent_parts_are_white() -> None:
    """Alpha 0 is white, alpha 255 the colour, half of it half way."""
    image = Image.new("RGBA", (3, 1))
    image.putdata([(0, 0, 0, 0), (10, 20, 30, 255), (0, 0, 0, 128)])
    assert np.asarray(over_white(image)).tolist() == [[[255] * 3, [10, 20, 30], [127] * 3]]


def test_fit_keeps_proportions() -> None:
    """A wide picture stands in the middle of a white square."""
    square = fit(Image.new("RGB", (8, 4), (0, 0, 0)), 8)
    assert (square[2:6] == 0).all()
    assert (square[:2] == 255).all()
    assert (square[6:] == 255).all()
    assert fit(Image.new("RGB", (64, 64)), 16).shape == (16, 16, 3)


def test_sheet_places_row_by_row() -> None:
    """Three images in two columns, with a gap, doubled."""
    images = [np.full((2, 2, 3), value, np.uint8) for value in (10, 20, 30)]
    canvas = sheet(images, columns=2, scale=2)
    assert canvas.shape == (14, 14, 3)
    assert [canvas[y, x, 0] for y, x in ((2, 2), (2, 8), (8, 2), (8, 8))] == [10, 20, 30, 255]
