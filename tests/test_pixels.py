"""Images, their sequences and their conditions."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.config import Raster
from model.pixels import (
    ALPHABET,
    NUM_VALUES,
    ImageError,
    PixelCodec,
    fit,
    heat_map,
    open_image,
    over_white,
    plain,
    sheet,
    to_png,
)

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


NAMED = PixelCodec(Raster(height=1, width=1, name_length=6), ["cat"], [], "abc ")


def test_a_name_is_spelled_before_the_pixels() -> None:
    """Blanks, then letters, in ids above the conditions; no name is all blank."""
    assert NAMED.vocab_size == 256 + 2 + 1 + 4
    assert NAMED.spell("") == [258] * 6
    assert NAMED.spell("Cab a") == [258, 261, 259, 260, 262, 259]
    assert NAMED.prompt("cat", name="b") == [257, *[258] * 5, 260]
    assert CODEC.prompt("cat") == [CODEC.condition("cat")]
    assert CODEC.alphabet == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [("aaaaaaa", "at most 6 characters, this one 7"), ("abd", "have no 'd'"), ("!?", "letters or digits")],
)
def test_names_that_cannot_be_read(name: str, words: str) -> None:
    """Too long, foreign, empty of letters; a model without names reads none."""
    with pytest.raises(ValueError, match=words):
        NAMED.spell(name)
    with pytest.raises(ValueError, match="this model knows no names"):
        CODEC.prompt(name=name)


@given(st.text())
def test_plain_names(name: str) -> None:
    """Small letters and digits, single spaces, the same again when they are plain."""
    assert plain(plain(name)) == plain(name)
    assert set(plain(name)) <= set(ALPHABET)
    assert "  " not in plain(name)
    assert plain("Côte d\u2019Ivoire: “Flag”") == "cote divoire flag"


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


def in_format(form: str, mode: str = "RGB", size: tuple[int, int] = (4, 3)) -> bytes:
    """An image file of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, size, "white").save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("form", "mode"), [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "L"), ("PNG", "P"), ("WEBP", "RGBA"), ("JPEG", "CMYK")]
)
def test_files_are_opened(form: str, mode: str) -> None:
    """Three formats, any mode, decoded: over white they have the raster's shape."""
    image = open_image(in_format(form, mode), CODEC.raster)
    assert np.asarray(over_white(image)).shape == (3, 4, 3)


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_not_opened(form: str) -> None:
    """Each decoder more is a risk more."""
    with pytest.raises(ImageError, match="PNG, WebP or JPEG"):
        open_image(in_format(form), CODEC.raster)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_damaged_files_are_not_opened(form: str) -> None:
    """Cut off anywhere before the last pixel's data, or nothing at all."""
    whole = in_format(form)
    for size in (0, 1, 10, len(whole) // 2):
        with pytest.raises(ImageError):
            open_image(whole[:size], CODEC.raster)


@given(st.binary(max_size=60), st.sampled_from(["PNG", "WEBP", "JPEG"]), st.integers(0, 60))
def test_foreign_bytes_are_an_image_error_at_most(junk: bytes, form: str, at: int) -> None:
    """Whatever stands in a file, it is an image of the right size or an ImageError."""
    whole = in_format(form)
    try:
        image = open_image(whole[:at] + junk + whole[at + len(junk) :], CODEC.raster)
    except ImageError:
        return
    assert image.size == (4, 3)


@pytest.mark.parametrize("size", [(3, 4), (4, 4), (1, 1), (3000, 3000)])
def test_the_size_must_be_the_rasters(size: tuple[int, int]) -> None:
    """The message has both; height and width are not exchanged."""
    with pytest.raises(ImageError, match=f"is {size[0]}x{size[1]}, the model's are 4x3"):
        open_image(in_format("PNG", size=size), CODEC.raster)


def test_grey_of_16_bits_is_scaled() -> None:
    """The upper byte is the colour."""
    grey = Image.fromarray(np.array([[0, 0x00FF, 0x8080, 0xFFFF]], np.uint16))
    assert np.asarray(over_white(grey))[0].tolist() == [[value] * 3 for value in (0, 0, 128, 255)]


def test_heat_maps() -> None:
    """Black, red, yellow, white at 0, 8, 16 and 24 bits a pixel, which are the sum of its three; no overflow."""
    bits = np.array([[[0, 0, 0], [4, 0, 0], [0, 8, 0], [4, 8, 4], [8, 8, 8], [90, 90, 90]]], np.float64)
    wanted = [[0, 0, 0], [128, 0, 0], [255, 0, 0], [255, 255, 0], [255, 255, 255], [255, 255, 255]]
    assert heat_map(bits)[0].tolist() == wanted
    assert heat_map(bits).dtype == np.uint8
