"""Multipart forms: text fields and small files, in memory, or a 400 that names the field."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.errors import clip, invalid
from service.schema.parse import read_body
from service.settings import Settings

MAX_FIELDS = 64
MAX_FILES = 4
FILES = ("image", "mask")  # never text


@dataclass(slots=True)
class Form:
    """What was sent, by name; a name is sent once."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


class _Parser(MultiPartParser):
    """Knows whether the form was complete, and its text UTF-8."""

    complete = False

    def on_part_end(self) -> None:
        """After a part: its text is UTF-8, or Starlette would take it for Latin-1."""
        if self._current_part.file is None:
            try:
                bytes(self._current_part.data).decode()
            except UnicodeDecodeError:
                raise MultiPartException("a field is not UTF-8") from None
        super().on_part_end()

    def on_end(self) -> None:
        """After the last boundary."""
        self.complete = True


async def read_form(request: Request, limit: int, settings: Settings) -> Form:
    """A form of at most ``limit`` bytes. ApiError as ``read_body``, and for what is no form."""
    body = await read_body(request, limit, settings, "multipart/form-data")
    _, options = parse_options_header(request.headers["content-type"])
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
        # the parser would take any codec of Python's, and some need a minute for a megabyte
        raise invalid("the charset of a form must be utf-8")

    async def whole() -> AsyncGenerator[bytes]:
        yield body

    # what is larger than the limit was refused above, so no file is ever spooled to a disk
    parser = _Parser(
        Headers(raw=request.headers.raw), whole(), max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=limit
    )
    parser.spool_max_size = limit
    try:
        sent = await parser.parse()
    except (MultiPartException, ValueError, KeyError) as error:
        raise invalid(f"the body is no multipart form: {clip(str(error), 100)}") from None
    if not parser.complete:
        raise invalid("the body is no multipart form: it has no last boundary")
    form = Form()
    for name, value in sent.multi_items():
        known = "image" if name == "image[]" else name  # as some clients write a list's only member
        if known in form.fields or known in form.files:
            raise invalid(f"field {clip(known)!r} is given twice", clip(known))
        if isinstance(value, UploadFile):
            form.files[known] = await value.read()
        elif known in FILES:
            raise invalid(f"{known}: a file is wanted, with a filename, and text was sent", known)
        else:
            form.fields[known] = value
    await sent.close()
    return form
