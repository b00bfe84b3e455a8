"""Forms and files sent to ``/v1/images/edits`` and ``score``: what is read, what is refused, and at what cost."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from live import INVALID, Process, assert_error, serve
from pictures_for_tests import (
    BASE,
    EDITS,
    FORM,
    PICTURE,
    SCORE,
    edit,
    encoded,
    images,
    kept,
    make_checkpoints,
    score,
)
from PIL import Image

from model.pixels import to_png


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One real process for all tests."""
    with serve(make_checkpoints(tmp_path_factory.mktemp("checkpoints"))) as process:
        yield process


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, data: bytes, extra: bytes = b"") -> bytes:
    """A PNG of RGBA by hand, whatever it claims."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")


TRUNCATED = kept(3)[:60]
BOMBS = {
    "no image": b"hello",
    "empty": b"",
    "truncated": TRUNCATED,
    "a GIF": encoded(Image.new("RGB", (4, 4)), "GIF"),
    "a header that claims too much": raw_png(20_000, 20_000, b"\0" * 68),
    "a claim within Pillow's limit": raw_png(10_000, 10_000, b"\0" * 68),
    "really 7000x7000": raw_png(7000, 7000, b"\0" * (7000 * 28_001)),
    "a text chunk": raw_png(4, 4, b"\0" * 68, chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 200_000_000, 9))),
    "many text chunks": raw_png(4, 4, b"\0" * 68, chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 999_999)) * 800),
    "a profile": raw_png(4, 4, b"\0" * 68, chunk(b"iCCP", b"k\0\0" + zlib.compress(b"x" * 200_000_000, 9))),
    "5x4": encoded(Image.new("RGBA", (5, 4))),
    "4x3": encoded(Image.new("RGB", (4, 3)), "JPEG"),
    "1x1": encoded(Image.new("L", (1, 1))),
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_files_that_are_refused(server: Process, name: str) -> None:
    """400 at once, without the memory that the file asks for; and the server goes on."""
    before = server.metric("process_resident_memory_bytes")
    began = time.monotonic()
    for response, param in (
        (edit(server, BOMBS[name]), "image"),
        (edit(server, kept(3), mask=BOMBS[name]), "mask"),
        (score(server, BOMBS[name]), "image"),
    ):
        assert_error(response, 400, INVALID, "invalid_value", param, param)
    assert time.monotonic() - began < 5
    assert server.metric("process_resident_memory_bytes") - before < 120 << 20
    assert score(server, to_png(PICTURE)).status_code == 200


def test_an_image_of_another_size_is_named(server: Process) -> None:
    """Both sizes are in the message."""
    for name, size in (("5x4", "5x4"), ("really 7000x7000", "7000x7000")):
        assert_error(edit(server, BOMBS[name]), 400, INVALID, "invalid_value", "image", size, "4x4")


def test_a_picture_with_more_data_than_its_size(server: Process) -> None:
    """What follows the last pixel is not read."""
    response = edit(server, raw_png(4, 4, b"\0" * 100_000_000))
    assert response.status_code == 200


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_png(server: Process, mode: str) -> None:
    """Read as the colours that it shows, also grey of 16 bits."""
    picture = Image.fromarray(np.full((4, 4), 0x8080, np.uint16)) if mode == "I;16" else Image.new(mode, (4, 4))
    (image,) = images(edit(server, encoded(picture), mask=kept(8)))
    value = {"I;16": 128, "LA": 255, "RGBA": 255}.get(mode, 0)
    assert (image[:2] == value).all()


def test_files_of_the_form(server: Process) -> None:
    """A missing one, an unknown one, one given twice, text where a file should be."""
    post, good = server.http.post, kept(3)
    for path in (EDITS, SCORE):
        fields = {"model": "pics", "prompt": ""}
        parts = {name: (None, value) for name, value in fields.items()}
        assert_error(post(path, files=parts), 400, INVALID, "invalid_value", "image", "file")
        response = post(path, data=fields, files={"image": good, "picture": good})
        assert_error(response, 400, INVALID, "invalid_value", "picture", "unknown file")
        for names in (("image", "image"), ("image", "image[]"), ("image[]", "image[]")):
            response = post(path, data=fields, files=[(name, good) for name in names])
            assert_error(response, 400, INVALID, "invalid_value", "image", "twice")
        response = post(path, data={**fields, "model": ["pics", "pics"]}, files={"image": good})
        assert_error(response, 400, INVALID, "invalid_value", "model", "twice")
        response = post(path, data={**fields, "image": "x"}, files={"mask": good})
        assert_error(response, 400, INVALID, "invalid_value", "image", "a file is wanted")
        response = post(path, data=fields, files={f"f{i}": b"" for i in range(5)})
        assert_error(response, 400, INVALID, "invalid_value", None, "files")
        response = post(path, data={**fields, **{f"f{i}": "" for i in range(65)}}, files={"image": good})
        assert_error(response, 400, INVALID, "invalid_value", None, "fields")
        response = post(path, data={**fields, "x" * 1000: ""}, files={"image": good})
        assert_error(response, 400, INVALID, "invalid_value", "x" * 64 + "…", "unknown field")


def test_uploads_have_a_limit(server: Process) -> None:
    """413 by the header and in the middle of a body; a form just below is read."""
    for path in (EDITS, SCORE):
        response = edit(server, b"\0" * (1 << 20), path=path)
        assert_error(response, 413, INVALID, "request_too_large", None, "1048576")
        assert response.headers["connection"] == "close"
        response = edit(server, b"\0" * 1_000_000, path=path)
        assert_error(response, 400, INVALID, "invalid_value", "image")

        def parts() -> Iterator[bytes]:
            yield from [b"\0" * 100_000] * 11

        headers = {"content-type": "multipart/form-data; boundary=b"}
        response = server.http.post(path, content=parts(), headers=headers)
        assert_error(response, 413, INVALID, "request_too_large", None, "1048576")


FIELD = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\npics\r\n'
SLOW = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\na-' + b"a" * 900_000 + b"\r\n--b--\r\n"


@pytest.mark.parametrize(
    ("content", "media", "word"),
    [
        (b"", "boundary=b", "boundary"),
        (b"hello", "boundary=b", "form"),
        (FIELD, "boundary=b", "last boundary"),
        (FIELD[:30], "boundary=b", "last boundary"),
        (FIELD + b"--b--\r\n", "bound=b", "boundary"),
        (FIELD + b"--b--\r\n", "boundary=", "form"),
        (FIELD + b"--b--\r\n", "boundary=" + "x" * 5000, "form"),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", "boundary=b", "name"),
        (b"--b\r\n\r\nx\r\n--b--\r\n", "boundary=b", "name"),
        (b"--b\r\n" + b"X: y\r\n" * 100_000 + b"\r\nx\r\n--b--\r\n", "boundary=b", "form"),
        (b"--b\r\n" + b"X" * 100_000 + b": y\r\n\r\nx\r\n--b--\r\n", "boundary=b", "form"),
        (SLOW, "boundary=b; charset=punycode", "utf-8"),
        (SLOW, "boundary=b; charset=utf-16", "utf-8"),
        (b'--b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n--b--\r\n', "boundary=b", "ÿ"),
        (b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\ncaf\xe9\r\n--b--\r\n', "boundary=b", "UTF-8"),
    ],
)
def test_malformed_forms(server: Process, content: bytes, media: str, word: str) -> None:
    """400 in the one shape, in a moment."""
    began = time.monotonic()
    for path in (EDITS, SCORE):
        headers = {"content-type": f"multipart/form-data; {media}"}
        response = server.http.post(path, content=content, headers=headers)
        param = {"ÿ": "model"}.get(word)
        assert_error(response, 400, INVALID, "invalid_value", param, *([] if param else [word]))
    assert time.monotonic() - began < 5
    assert server.http.get("/readyz").status_code == 200


def test_other_media_types(server: Process) -> None:
    """JSON, a plain form, nothing, an encoding: each is refused; a charset that is UTF-8 is not."""
    for path in (EDITS, SCORE):
        for response in (
            server.http.post(path, json=BASE),
            server.http.post(path, data=FORM),
            server.http.post(path, content=b"x"),
        ):
            assert_error(response, 400, INVALID, "invalid_value", None, "multipart/form-data")
        packed = {"content-encoding": "gzip"}
        response = server.http.post(path, data=FORM, files={"image": kept(3)}, headers=packed)
        assert_error(response, 415, INVALID, "invalid_value")
        request = httpx.Request(
            "POST", server.url + path, data={"model": "pics", "prompt": ""}, files={"image": kept(3)}
        )
        request.headers["content-type"] += "; charset=UTF-8"
        request.read()
        assert server.http.send(request).status_code == 200
