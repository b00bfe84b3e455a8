"""Corpora: by name or of one's own; read, split."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from model.corpora import CORPORA, named
from model.fetch import DataError

TEXT_SUFFIXES = {".txt", ".md", ".rst", ".text"}


class Split(NamedTuple):
    """90 / 5 / 5 by position; str, or bytes where the corpus is not UTF-8."""

    train: str | bytes
    validation: str | bytes
    test: str | bytes


def split(corpus: str | bytes) -> Split:
    """The first 90 %, the next 5 %, the last 5 %."""
    first, second = len(corpus) * 90 // 100, len(corpus) * 95 // 100
    return Split(corpus[:first], corpus[first:second], corpus[second:])


def load(source: str) -> str | bytes:
    """A corpus by name or by path: str where its bytes are UTF-8, bytes otherwise. DataError says what is missing."""
    path = Path(source)
    if source in CORPORA:
        raw = named(source)
    elif path.is_file():
        raw = path.read_bytes()
    elif path.is_dir():
        raw = _folder(path)
    else:
        raise DataError(f"{source!r} is neither a file, a folder nor a known corpus ({', '.join(CORPORA)})")
    if not raw:
        raise DataError(f"{source!r} is empty")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _folder(path: Path) -> bytes:
    files = sorted(p for p in path.rglob("*") if p.suffix in TEXT_SUFFIXES and p.is_file())
    if not files:
        raise DataError(f"{str(path)!r} holds no text file ({', '.join(sorted(TEXT_SUFFIXES))})")
    return b"\n\n".join(p.read_bytes() for p in files)
