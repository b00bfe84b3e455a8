"""Sets of pictures: emoji in several styles, CIFAR-10's binary batches, any folder.

Fetched and checked as texts are (model/fetch.py). All variants of one picture (other gender, other style) fall on one
side of the split, or a held-out picture would have been seen.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from model import emoji
from model.fetch import DataError, data_folder, fetch_url
from model.pixels import Pixels, fit, plain

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
NOT_FLIPPED = {"Flags", "Symbols"}  # mirrored, they are something else
DIRECTED = re.compile(r"\b(left|leftwards|right|rightwards|clock|thirty|quarter|waxing|waning|crescent|gibbous)\b")
SEEN = 3  # the part of a held-out picture that is equal to one of training


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Pictures with their labels; parallel arrays."""

    images: Pixels  # (N, H, W, 3)
    label: NDArray[np.int64]  # (N) into labels
    style: NDArray[np.int64]  # (N) into styles; 0 where there are none
    part: NDArray[np.int64]  # (N) 0 training, 1 validation, 2 test, 3 none of them
    names: list[str]
    aliases: list[list[str]]  # (N) what each is called, the best known first; none: it has no name
    labels: list[str]
    styles: list[str]

    def subset(self, part: int) -> ImageSet:
        """One side of the split."""
        keep = np.flatnonzero(self.part == part)
        names, aliases = [self.names[i] for i in keep], [self.aliases[i] for i in keep]
        arrays = (self.images[keep], self.label[keep], self.style[keep], self.part[keep])
        return ImageSet(*arrays, names, aliases, self.labels, self.styles)

    @property
    def flips(self) -> NDArray[np.bool_]:
        """(N) whether the mirrored picture is as good: not where its name then were another."""
        directed = [any(map(DIRECTED.search, aliases)) for aliases in self.aliases]
        return np.array([self.labels[i] not in NOT_FLIPPED for i in self.label], np.bool_) & ~np.array(
            directed, np.bool_
        )

    @property
    def sha256(self) -> str:
        """Of all that a training run reads."""
        digest = hashlib.sha256(self.images.tobytes())
        for array in (self.label, self.style, self.part, self.flips):
            digest.update(array.astype(np.int64).tobytes())
        digest.update(repr((self.labels, self.styles, self.aliases)).encode())
        return digest.hexdigest()


def load(source: str, size: int) -> ImageSet:
    """A set by name (emoji, emoji-styles, cifar10) or by path, at ``size`` pixels. DataError says what is missing."""
    path = Path(source)
    if source in emoji.SETS:
        return _emoji(emoji.SETS[source], size)
    if source == "cifar10":
        return _cifar(_fetched_cifar(), size)
    if path.is_dir():
        return _cifar(path, size) if (path / "data_batch_1.bin").exists() else _folder(path, size)
    raise DataError(f"{source!r} is neither a folder nor a known image set ({', '.join([*emoji.SETS, 'cifar10'])})")


def side(group: str) -> int:
    """The part of a group of variants, by its hash: 90 / 5 / 5."""
    share = int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big") / 2**32
    return 0 if share < 0.9 else 1 if share < 0.95 else 2


def seen(pictures: Pixels, part: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N) whether a picture (N, H, W, 3) is held out, and yet equal to one of training or to its mirror image."""
    known = {picture.tobytes() for picture in pictures[part == 0]}
    known |= {picture.tobytes() for picture in pictures[part == 0][:, :, ::-1]}
    return np.array([side > 0 and picture.tobytes() in known for picture, side in zip(pictures, part, strict=True)])


def _emoji(styles: tuple[str, ...], size: int) -> ImageSet:
    rows = list(emoji.drawings(styles, size))
    labels = sorted({row.category for row in rows})
    pictures, part = np.stack([row.picture for row in rows]), np.array([side(row.group) for row in rows])
    part[seen(pictures, part)] = SEEN  # a family of two boys looks like one of two children
    return ImageSet(
        pictures,
        np.array([labels.index(row.category) for row in rows]),
        np.array([row.style for row in rows]),
        part,
        [row.name for row in rows],
        [row.aliases for row in rows],
        labels,
        list(styles),
    )


def _fetched_cifar() -> Path:
    folder = data_folder() / "cifar-10-batches-bin"
    if not folder.exists():
        fetched = fetch_url(CIFAR_URL, CIFAR_SHA256)
        with (
            tempfile.TemporaryDirectory(dir=data_folder()) as unpacked,  # whole, or not there at all
            tarfile.open(fileobj=io.BytesIO(fetched)) as file,
        ):
            file.extractall(unpacked, filter="data")
            with contextlib.suppress(OSError):  # another process was faster
                os.replace(Path(unpacked) / folder.name, folder)
    return folder


def _cifar(folder: Path, size: int) -> ImageSet:
    """The binary version: a byte of label, then 32 x 32 of red, of green, of blue."""
    parts, labels, images = [], [], []
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        path = folder / name
        if not path.exists():
            raise DataError(f"{folder} lacks {name}")
        raw = np.frombuffer(path.read_bytes(), np.uint8)
        if not len(raw) or len(raw) % 3073:
            raise DataError(f"{path} is no CIFAR-10 batch: its size is no multiple of 3,073 bytes")
        rows = raw.reshape(-1, 3073)
        labels.append(rows[:, 0].astype(np.int64))
        images.append(rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        parts.append(np.full(len(rows), 2 if name.startswith("test") else 0))
    part = np.concatenate(parts)
    part[np.flatnonzero(part == 0)[19::20]] = 1  # every twentieth training picture validates
    names_file = folder / "batches.meta.txt"
    label = np.concatenate(labels)
    known = names_file.read_text().split() if names_file.exists() else [str(i) for i in range(int(label.max()) + 1)]
    if len(known) <= label.max():
        raise DataError(f"{names_file} has {len(known)} names, the pictures have labels up to {label.max()}")
    stacked = np.concatenate(images)
    if size != 32:
        stacked = np.stack([fit(Image.fromarray(image), size) for image in stacked])
    numbers = [str(i) for i in range(len(label))]
    return ImageSet(stacked, label, np.zeros_like(label), part, numbers, [[] for _ in numbers], known, [])


def _pictures(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file())


def _folder(folder: Path, size: int) -> ImageSet:
    """Any folder; pictures in subfolders have the subfolder's name as label."""
    paths = list(_pictures(folder))
    if not paths:
        raise DataError(f"{str(folder)!r} holds no picture ({', '.join(sorted(SUFFIXES))})")
    images = []
    for path in paths:
        try:
            with Image.open(path) as image:
                images.append(fit(image, size))
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} is no picture that can be read") from error
    given = [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in paths]
    labels = sorted({name for name in given if name})
    if labels and "" in given:
        raise DataError(
            f"{str(folder)!r} has pictures in subfolders, which are labels, and {paths[given.index('')].name} beside"
        )
    label = np.array([labels.index(name) if name else 0 for name in given])
    names = [str(path.relative_to(folder)) for path in paths]
    part = np.array([side(path.stem) for path in paths])
    aliases = [[plain(path.stem)] if plain(path.stem) else [] for path in paths]
    return ImageSet(np.stack(images), label, np.zeros_like(label), part, names, aliases, labels or ["picture"], [])
