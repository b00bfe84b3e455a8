"""Drawings of emoji in up to five styles, from the packages that carry them.

Which emoji there are, their categories and their order are those of one table (emoji-datasource 16.0.0): what has a
picture in the styles google and twitter there. Other packages are searched for the same code points.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from model.fetch import check, data_folder, run_client
from model.pixels import Pixels, fit, plain


class Package(NamedTuple):
    """A tarball of the npm registry."""

    name: str
    sha256: str
    folder: str = ""  # of the pictures


# SHA-256 of what the registry gives for these versions
PACKAGES = {
    "google": Package(
        "emoji-datasource-google@16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "package/img/google/64/",
    ),
    "twitter": Package(
        "emoji-datasource-twitter@16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        "package/img/twitter/64/",
    ),
    "blob": Package(  # Google's until 2017
        "emoji-datasource-google@3.0.0",
        "3247dd55dee7954d6d1d3d84b05759e49daf71cab5cccb4566940209679af66f",
        "package/img/google/64/",
    ),
    "emojione": Package(
        "emojione@2.2.7",
        "5fe002738e6e276f49ac37783799d2feab99a6131fdedccfa56569d745449ae5",
        "package/assets/png/",
    ),
    "fluent": Package(
        "@lobehub/fluent-emoji-3d@1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "package/assets/",
    ),
    # the names that Unicode gives them ("red heart"); the table has older ones ("heavy black heart")
    "names": Package(
        "unicode-emoji-json@0.8.0",
        "1ff55192e88e1d5c6706b28ae95f0b26370a0e79f05ff86bcbed6b9e5d7ea244",
    ),
}
TABLE = "google"  # whose package's table is read
SHARED = ("google", "twitter")  # an emoji has a picture in both, or it is left out
SETS = {"emoji": SHARED, "emoji-styles": (*SHARED, "blob", "emojione", "fluent")}


class Drawing(NamedTuple):
    """One emoji in one style."""

    picture: Pixels  # (size, size, 3)
    category: str
    style: int  # into the set's styles
    group: str  # what all variants of it share
    name: str
    aliases: list[str]  # the best known first


def drawings(styles: tuple[str, ...], size: int) -> Iterator[Drawing]:
    """Style by style, in the table's order; later styles lack some emoji. DataError where a package cannot be had."""
    table = [entry for entry in _table() if entry["category"] != "Component" and _is_shared(entry)]
    called = _called()
    for number, style in enumerate(styles):
        pictures = dict(_pictures(style))
        for entry in table:
            raw = pictures.get(_bare(entry["unified"]))
            if raw is None:
                continue
            with Image.open(io.BytesIO(raw)) as image:
                picture = fit(image, size)
            aliases = [called.get(_bare(entry["unified"]), entry["name"]), entry["name"], *entry["short_names"]]
            known = list(dict.fromkeys(filter(None, map(plain, aliases))))
            group = group_of(entry["unified"])
            yield Drawing(picture, entry["category"], number, group, entry["short_name"], known)


def group_of(unified: str) -> str:
    """An emoji's code points without gender and presentation: what its variants share."""
    points = re.sub(r"-(FE0F|200D-2640|200D-2642)", "", unified)
    return re.sub(r"\b(1F468|1F469)\b", "1F9D1", points)


def _is_shared(entry: dict[str, Any]) -> bool:
    return all(entry[f"has_img_{style}"] for style in SHARED)


def _bare(points: str) -> str:
    """Code points (2764-FE0F) without what only joins or asks for colour: packages differ in where they write it."""
    return re.sub(r"-(FE0F|200D)", "", points.upper())


def _table() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(_member(_tarball(TABLE), "package/emoji.json"))
    return sorted(entries, key=lambda entry: int(entry["sort_order"]))


def _called() -> dict[str, str]:
    """The names that Unicode gives, by code points."""
    known = json.loads(_member(_tarball("names"), "package/data-by-emoji.json"))
    return {_bare("-".join(f"{ord(c):04X}" for c in emoji)): facts["name"] for emoji, facts in known.items()}


def _pictures(style: str) -> Iterator[tuple[str, bytes]]:
    """Pictures by code points, in the archive's own order: seeking in it would unpack it again."""
    with tarfile.open(_tarball(style)) as archive:
        for member in archive:
            path = Path(member.name)
            if member.name.startswith(PACKAGES[style].folder) and path.suffix in {".png", ".webp"}:
                file = archive.extractfile(member)
                if file is not None:
                    yield _bare(path.stem), file.read()


def _member(path: Path, name: str) -> bytes:
    """One file of an archive."""
    with tarfile.open(path) as archive:
        file = archive.extractfile(name)
        assert file is not None
        return file.read()


def _tarball(which: str) -> Path:
    """A package, fetched once, checked always."""
    package = PACKAGES[which]
    kept = data_folder() / f"emoji-{which}.tgz"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as name:
            run_client(["npm", "pack", "--silent", package.name], Path(name))
            fetched = next(Path(name).glob("*.tgz"))
            check(fetched.read_bytes(), package.sha256, package.name)
            os.replace(fetched, kept)
    check(kept.read_bytes(), package.sha256, str(kept))
    return kept
