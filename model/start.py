"""Training that goes on from a checkpoint: its weights, in a network that may have more than it."""

from __future__ import annotations

from pathlib import Path

from model import weights
from model.checkpoint import Checkpoint, CheckpointError, Codec
from model.config import ModelConfig
from model.network import Network
from model.pixels import NUM_VALUES, PixelCodec

VALUES = "embed.value.weight"


def begin_with(network: Network, codec: Codec, folder: Path) -> None:
    """Give a network a checkpoint's weights. ValueError where it is none, of another shape, or of another vocabulary.

    A network with token shifts may begin with one that has none: at a share of 1 they pass everything on. So may one
    that looks back, or at mirror images: at 0 its tables add nothing. One for pictures may know more styles: each
    begins as any style. It may read names where the other reads none: its letters begin near the condition that says
    nothing.
    """
    try:
        source = Checkpoint(folder)
        known = weights.load(source)
    except CheckpointError as error:
        raise ValueError(f"start: {error}") from error
    if _meaning(known, network) != _meaning(network, network):
        raise ValueError(f"start: {folder} holds a model of another shape than the recipe's")
    rows = _rows(source.codec, codec)
    if rows is None:
        raise ValueError(f"start: {folder} holds a model whose ids mean something else than the recipe's")
    given = known.state_dict()
    if rows != list(range(codec.vocab_size)):
        given = {name: tensor[rows] if _is_by_id(name) else tensor for name, tensor in given.items()}
    if isinstance(codec, PixelCodec) and isinstance(source.codec, PixelCodec) and not source.codec.alphabet:
        letters = slice(NUM_VALUES + codec.num_conditions, None)
        given[VALUES][letters] += network.state_dict()[VALUES][letters]  # to tell them apart
    network.load_state_dict({**weights.neutral(network), **given})


def _meaning(network: Network, other: Network) -> ModelConfig:
    """As weights.meaning; another number of ids is no other shape, nor are places of names that only the other has."""
    fixed: dict[str, object] = {"vocab_size": 0}
    if (raster := network.config.raster) and other.config.raster and not raster.name_length:
        raster = raster.model_copy(update={"name_length": other.config.raster.name_length})
        fixed |= {"raster": raster, "max_model_len": raster.positions}
    return weights.meaning(network, other).model_copy(update=fixed)


def _rows(known: Codec, codec: Codec) -> list[int] | None:
    """Where the known model's tables have what each id means; None: they have not."""
    if not (isinstance(known, PixelCodec) and isinstance(codec, PixelCodec)):
        same = type(known) is type(codec) and _token_bytes(known) == _token_bytes(codec)
        return list(range(codec.vocab_size)) if same else None
    if known.labels != codec.labels or set(known.styles) - set(codec.styles):
        return None
    if known.alphabet not in ("", codec.alphabet):
        return None
    pairs = [(label, style) for label in ["", *codec.labels] for style in ["", *codec.styles]]
    conditions = [known.condition(label, style if style in known.styles else "") for label, style in pairs]
    letters = [*range(NUM_VALUES + known.num_conditions, known.vocab_size)]
    new = codec.vocab_size - NUM_VALUES - codec.num_conditions - len(letters)
    return [*range(NUM_VALUES), *conditions, *letters, *[known.condition()] * new]


def _token_bytes(codec: Codec) -> object:
    return None if isinstance(codec, PixelCodec) else codec.token_bytes


def _is_by_id(name: str) -> bool:
    """Whether a tensor of a network for pictures has a row for each id."""
    return name in {VALUES, "head.weight"} or name.startswith("lookback.")
