"""Fetching data: packages through their own clients, public files by URL; each is checked against a hash."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path


class DataError(Exception):
    """A corpus cannot be had: no network, no such file, or bytes that are not the expected ones."""


def data_folder() -> Path:
    """Where fetched data is kept."""
    return Path(os.environ.get("AFT_DATA") or Path.home() / ".cache" / "aft")


def check(raw: bytes, sha256: str | None, name: str) -> None:
    """DataError where the bytes are not the expected ones; None: a package's version decides, nothing is expected."""
    actual = hashlib.sha256(raw).hexdigest()
    if sha256 is not None and actual != sha256:
        raise DataError(f"{name}: sha256 is {actual}, expected {sha256}: the file is damaged or another version")


def run_client(command: list[str], folder: Path) -> None:
    """Run a package manager's client in a folder. DataError with its last words where it fails."""
    if shutil.which(command[0]) is None:
        raise DataError(f"{command[0]!r} is not installed: it fetches this corpus")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise DataError(f"{' '.join(command[:4])} failed (is there a network?): {words[0]}")


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
