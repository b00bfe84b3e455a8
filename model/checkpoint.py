"""A checkpoint is a folder: config.json, model.safetensors, tokenizer.model, README.md. Strict, hashed, never pickle.

``config.json`` names the format, the model's shape, the tokenizer, how it was trained, and the sha256 of every other
file that matters. A folder that is damaged, foreign or inconsistent is refused with the name of what is wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.config import ModelConfig
from model.match import MAX_TOKEN, Match
from model.pixels import PixelCodec
from model.tokenizer import Characters, Tokenizer, load_tokenizer

FORMAT = 1
WEIGHTS, TOKENIZER, CONFIG = "model.safetensors", "tokenizer.model", "config.json"


Codec = Tokenizer | PixelCodec


class CheckpointError(Exception):
    """A folder that is no checkpoint of this format; the message names the file and what is wrong with it."""


class CheckpointConfig(BaseModel):
    """config.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1]
    kind: Literal["text", "image"]
    model: ModelConfig
    tokenizer: Literal["characters", "bytes", "pixels"]
    labels: list[str] = []  # of an image model
    styles: list[str] = []
    alphabet: str = ""  # of names, where the image model knows them
    match: Match | None = None  # beside the network of a text model
    files: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]  # name -> sha256
    training: dict[str, Any] = {}  # facts for people: corpus, length, steps, scores


def _read_config(folder: Path) -> CheckpointConfig:
    path = folder / CONFIG
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder.name}: no readable {CONFIG}: this folder is no checkpoint") from error
    try:
        return CheckpointConfig.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole file"
        raise CheckpointError(f"{folder.name}: {CONFIG}: {place}: {first['msg']}") from error


def _check_files(folder: Path, config: CheckpointConfig) -> None:
    needed = {WEIGHTS} | ({TOKENIZER} if config.tokenizer == "characters" else set())
    if set(config.files) != needed:
        raise CheckpointError(f"{folder.name}: {CONFIG} must hash {sorted(needed)}, it hashes {sorted(config.files)}")
    for name, expected in config.files.items():
        try:
            actual = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as error:
            raise CheckpointError(f"{folder.name}: {name} cannot be read") from error
        if actual != expected:
            raise CheckpointError(f"{folder.name}: {name} is damaged or foreign: its sha256 differs from {CONFIG}'s")


class Checkpoint:
    """A folder that has been read and checked: name, config, tokenizer; the weights stay in their file."""

    def __init__(self, folder: Path) -> None:
        """Read and check everything. CheckpointError names what is wrong."""
        self.name = folder.absolute().name
        self.folder, self.config = folder, _read_config(folder)
        _check_files(folder, self.config)
        self.codec = self._codec()
        if self.codec.vocab_size != self.config.model.vocab_size:
            given, expected = self.codec.vocab_size, self.config.model.vocab_size
            raise CheckpointError(f"{self.name}: the tokenizer has {given} ids, the model {expected}")
        self.match = self.config.match
        if self.match is not None and (isinstance(self.codec, PixelCodec) or self.codec.vocab_size > MAX_TOKEN + 1):
            raise CheckpointError(f"{self.name}: {CONFIG}: a match model needs text, of at most {MAX_TOKEN + 1} ids")

    def _codec(self) -> Codec:
        config = self.config
        pixels = config.tokenizer == "pixels"
        if not pixels == (config.kind == "image") == (config.model.raster is not None):
            raise CheckpointError(f"{self.name}: {CONFIG}: kind, tokenizer and raster contradict each other")
        if config.model.raster is not None:
            return PixelCodec(config.model.raster, config.labels, config.styles, config.alphabet)
        try:
            return load_tokenizer(config.tokenizer, self.folder / TOKENIZER)
        except ValueError as error:
            raise CheckpointError(f"{self.name}: {error}") from error

    def weights(self) -> bytes:
        """The weights' file. CheckpointError where another has taken its place since the config was read."""
        raw = (self.folder / WEIGHTS).read_bytes()
        if hashlib.sha256(raw).hexdigest() != self.config.files[WEIGHTS]:
            raise CheckpointError(f"{self.name}: {WEIGHTS} has changed since {CONFIG} was read")
        return raw

    @property
    def tokenizer(self) -> Tokenizer:
        """A text model's tokenizer. CheckpointError for an image model."""
        if isinstance(self.codec, PixelCodec):
            raise CheckpointError(f"{self.name} is an image model: it has no text")
        return self.codec

    @property
    def pixels(self) -> PixelCodec:
        """An image model's codec. CheckpointError for a text model."""
        if not isinstance(self.codec, PixelCodec):
            raise CheckpointError(f"{self.name} is a text model: it has no images")
        return self.codec

    def corpus(self, given: str | None = None) -> str:
        """The corpus or image set that was named, or else the one it was trained on. ValueError where nobody says."""
        found = given or self._recipe.get("corpus")
        if not found:
            raise ValueError("the checkpoint does not say what it was trained on: name it with --corpus")
        return str(found)

    @property
    def length(self) -> int:
        """Positions of the windows that it was trained on."""
        return int(self._recipe.get("length", 512))

    @property
    def _recipe(self) -> dict[str, Any]:
        recipe = self.config.training.get("recipe")
        return recipe if isinstance(recipe, dict) else {}

    @property
    def fingerprint(self) -> str:
        """sha256 over weights, tokenizer (or labels and styles), match model and shape: equal means the same model."""
        return self.fingerprint_with(match=True)

    def fingerprint_with(self, *, match: bool) -> str:
        """The fingerprint of the whole model, or of the network without its match model."""
        model = self.config.model
        # a field that came later and is not used leaves the fingerprint as it was: states stay valid
        unused: dict[str, Any] = {}
        if not model.token_shift:
            unused["token_shift"] = True
        if not model.lookback:
            unused["lookback"] = True
        if not model.mirror:
            unused["mirror"] = True
        if model.raster is not None and not model.raster.name_length:
            unused["raster"] = {"name_length"}
        digest = hashlib.sha256(model.model_dump_json(exclude=unused).encode())
        for name in sorted(self.config.files):
            digest.update(self.config.files[name].encode())
        if isinstance(self.codec, PixelCodec):
            digest.update(json.dumps(codec_facts(self.codec)).encode())
        if match and self.match is not None:
            digest.update(self.match.model_dump_json().encode())
        return digest.hexdigest()


def save(weights: bytes, model: ModelConfig, codec: Codec, folder: Path, training: dict[str, Any]) -> None:
    """Write a checkpoint folder, never half of one; the old one stays where that fails. Other files are kept.

    A process that is killed between the last two steps leaves the old one beside it, as .NAME.XXXX.old.
    """
    files = {WEIGHTS: weights, **({TOKENIZER: codec.model} if isinstance(codec, Characters) else {})}
    config = {
        "format": FORMAT,
        "kind": "image" if isinstance(codec, PixelCodec) else "text",
        "model": model.model_dump(),
        **codec_facts(codec),
        "files": {name: hashlib.sha256(raw).hexdigest() for name, raw in files.items()},
        "training": training,
    }
    _write(folder, config, files)


def change(folder: Path, weights: bytes, match: Match | None, facts: dict[str, Any]) -> None:
    """Give a checkpoint other weights and a match model, never half of that; ``facts`` join those of its training."""
    config = json.loads((folder / CONFIG).read_bytes())
    config["files"][WEIGHTS] = hashlib.sha256(weights).hexdigest()
    config["match"] = match.model_dump() if match is not None else None
    config.setdefault("training", {}).update(facts)
    _write(folder, config, {WEIGHTS: weights})


def _write(folder: Path, config: dict[str, Any], files: dict[str, bytes]) -> None:
    folder = folder.resolve()  # a link stays one
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        if folder.is_dir():
            shutil.copytree(folder, temporary, dirs_exist_ok=True)
        for name, raw in files.items():
            (temporary / name).write_bytes(raw)
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        temporary.chmod(0o755)
        _swap(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def codec_facts(codec: Codec) -> dict[str, Any]:
    """What config.json says of a codec."""
    if isinstance(codec, PixelCodec):
        return {"tokenizer": "pixels", "labels": codec.labels, "styles": codec.styles, "alphabet": codec.alphabet}
    return {"tokenizer": "characters" if isinstance(codec, Characters) else "bytes"}


def _swap(new: Path, folder: Path) -> None:
    if folder.exists():
        old = new.with_name(new.name + ".old")
        os.replace(folder, old)
        try:
            os.replace(new, folder)
        except OSError:
            os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(new, folder)


def find(folder: Path) -> list[Path]:
    """Every checkpoint under a folder, by name."""
    return sorted(path.parent for path in folder.glob(f"*/{CONFIG}") if not path.parent.name.startswith("."))
