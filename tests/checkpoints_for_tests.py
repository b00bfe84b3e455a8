"""Tiny checkpoint folders: random weights, made larger than a training starts with, so that texts vary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from model import weights
from model.checkpoint import WEIGHTS, Checkpoint, Codec, change
from model.config import ModelConfig, Raster, preset
from model.match import Match
from model.network import Network
from model.pixels import PixelCodec
from model.tokenizer import Bytes, train_characters

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak! Çà, 日本 🙂\n"
MAX_LEN = 64  # of the model that ends


def random_network(config: ModelConfig, seed: int = 0, scale: float = 8.0) -> Network:
    """Seeded weights: matrices ``scale`` times as large as at the start, positions' weights far from equal."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(config)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name.endswith("log_decay"):
                    continue
                if ".bias." in name:
                    parameter.copy_(torch.randn_like(parameter))
                elif name.endswith(".share"):
                    parameter.uniform_(-0.5, 1.5)
                elif parameter.ndim == 2:
                    parameter.mul_(scale)
    return network.eval()


def write(folder: Path, tokenizer: Codec, seed: int = 0, **changes: Any) -> Path:
    """Save a model of preset ``tiny``, with some fields changed, and return its folder."""
    network = random_network(preset("tiny", tokenizer.vocab_size, **changes), seed)
    weights.save(network, tokenizer, folder, {"corpus": "none", "steps": 0})
    return folder


def characters(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A model of characters."""
    return write(folder, train_characters(TEXT), seed, **changes)


def plain_bytes(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A model of bytes."""
    return write(folder, Bytes(), seed, **changes)


def ending(folder: Path, seed: int = 0) -> Path:
    """A model of characters without decay, which ends after ``MAX_LEN`` positions."""
    return characters(folder, seed, decay=False, max_model_len=MAX_LEN)


def pictures(folder: Path, seed: int = 0, name_length: int = 0, **changes: Any) -> Path:
    """A model of pictures of 4 x 4 pixels with two labels and one style."""
    raster = Raster(height=4, width=4, name_length=name_length)
    shape = {"raster": raster.model_dump(), "max_model_len": raster.positions}
    return write(folder, PixelCodec(raster, ["blue", "red"], ["plain"]), seed, **shape, **changes)


def of_config(folder: Path, config: ModelConfig, change: Callable[[Network], object] | None = None) -> Path:
    """A model of any shape, of bytes or pictures, whatever vocabulary the config names; ``change`` its weights."""
    codec: Codec = Bytes() if config.raster is None else PixelCodec(config.raster, ["blue", "red"], ["plain"])
    network = random_network(config.model_copy(update={"vocab_size": codec.vocab_size}))
    if change is not None:
        change(network)
    weights.save(network, codec, folder, {"corpus": "none", "steps": 0})
    return folder


MATCH = Match(window=50, shortest=1, most=5, masses=[0.3, 0.7, 1.5, 2.0])


def with_match(folder: Path, match: Match = MATCH) -> Path:
    """The checkpoint with a match model, whose masses are large."""
    change(folder, (folder / WEIGHTS).read_bytes(), match, {"calibration": {"factor": 1.0}})
    return folder


def opened(folder: Path) -> Checkpoint:
    """Read and checked."""
    return Checkpoint(folder)
