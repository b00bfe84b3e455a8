"""From a checkpoint's file to arrays that the kernel packs: no torch, bf16 as its bits."""

from __future__ import annotations

import math

import numpy as np
import safetensors
from numpy.typing import NDArray

from model import checkpoint
from model.checkpoint import Checkpoint, CheckpointError
from model.config import ModelConfig

Array = NDArray[np.generic]
TYPES = {"BF16": np.uint16, "F32": np.float32}


def read(source: Checkpoint) -> dict[str, Array]:
    """Every tensor by name; bf16 as uint16. CheckpointError for a file that is none, or another type."""
    try:
        stored = safetensors.deserialize(source.weights())
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{source.name}: {checkpoint.WEIGHTS} is no safetensors file: {error}") from error
    arrays: dict[str, Array] = {}
    for name, facts in stored:
        if facts["dtype"] not in TYPES:
            raise CheckpointError(f"{source.name}: {checkpoint.WEIGHTS}: {name} is {facts['dtype']}, not BF16 or F32")
        arrays[name] = np.frombuffer(facts["data"], TYPES[facts["dtype"]]).reshape(facts["shape"])
    return arrays


def check(arrays: dict[str, Array], source: Checkpoint) -> None:
    """CheckpointError for the first tensor that is missing, unknown or of another shape than the config asks for."""
    expected = _shapes(source.config.model)
    for name in sorted(expected.keys() | arrays.keys()):
        wanted, found = expected.get(name, "nothing"), arrays[name].shape if name in arrays else "nothing"
        if wanted != found:
            where = f"{source.name}: {checkpoint.WEIGHTS}: {name}"
            raise CheckpointError(f"{where} has shape {found}, the config asks for {wanted}")


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    dim, hidden, vocab = config.dim, config.dim * config.mlp_ratio, config.vocab_size
    shapes: dict[str, tuple[int, ...]] = {"norm.weight": (dim,), "norm.bias": (dim,)}
    if config.raster is None:
        shapes["embed.weight"] = (vocab, dim)
    else:
        rows = {"value": vocab, "channel": config.raster.channels, "row": config.raster.height}
        rows["column"] = config.raster.width
        shapes |= {f"embed.{name}.weight": (count, dim) for name, count in rows.items()}
    if not config.tied_head:
        shapes["head.weight"] = (vocab, dim)
    shapes |= {f"lookback.tables.{number}.weight": (vocab, dim) for number in range(len(config.lookback))}
    if config.mirror:
        shapes["lookback.mirror.weight"] = (vocab, dim)
    block: dict[str, tuple[int, ...]] = {
        "aft.k.weight": (config.num_heads * config.keys_per_head, dim),
        "mlp.up.weight": (hidden, dim), "mlp.up.bias": (hidden,),
        "mlp.down.weight": (dim, hidden), "mlp.down.bias": (dim,),
        **{f"aft.{name}.weight": (dim, dim) for name in "qvo"},
        **{f"norm_{part}.{name}": (dim,) for part in ("aft", "mlp") for name in ("weight", "bias")},
        **{f"aft.bias.{name}": shape for name, shape in _bias_shapes(config).items()},
        **{f"shift_{part}.share": (dim,) for part in ("aft", "mlp") if config.token_shift},
    }  # fmt: skip
    for layer in range(config.num_layers):
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def _bias_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    heads, positions = config.num_heads, config.max_model_len or 0
    shapes: dict[str, tuple[int, ...]] = {"log_decay": (heads,)} if config.decay else {}
    if config.bias == "absolute" and config.bias_rank:
        shapes |= {"u": (positions, config.bias_rank), "v": (positions, config.bias_rank)}
    elif config.bias == "absolute":
        shapes["w"] = (positions, config.window)
    elif config.bias == "raster" and config.raster is not None:
        shapes["w"] = (heads, config.window // config.raster.row, 2 * config.window_columns + 1)
    elif config.bias != "none":
        shapes["w"] = (heads, config.window)
    if config.bias == "conv":
        shapes |= {"gamma": (heads, 1), "beta": (heads, 1)}
    return shapes


def bands(arrays: dict[str, Array], config: ModelConfig) -> dict[str, Array]:
    """Each layer's window as b by offset, (places, heads, s) float32, beside the other tensors.

    A place is what the weights depend on: nothing (1), the place in a raster's row, or the position itself. Sums are
    exact or in a fixed order, so that every machine has the same weights. The equations are those of model/bias.py.
    """
    made = {name: array for name, array in arrays.items() if ".bias." not in name or name.endswith("log_decay")}
    for layer in range(config.num_layers):
        prefix = f"blocks.{layer}.aft.bias."
        own = {name.removeprefix(prefix): _float(array) for name, array in arrays.items() if name.startswith(prefix)}
        if config.window:
            made[prefix + "band"] = np.ascontiguousarray(_band(own, config), np.float32)
    return made


def _float(array: Array) -> NDArray[np.float32]:
    """Float32, where bf16 is kept as its bits."""
    return (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array.astype(np.float32)


def _band(own: dict[str, NDArray[np.float32]], config: ModelConfig) -> NDArray[np.float64]:
    if config.bias == "absolute" and config.bias_rank:
        return _factorised(own["u"], own["v"], config.window)[:, None]
    w = own["w"].astype(np.float64)
    if config.bias == "absolute":
        return w[:, None]
    if config.bias == "relative":
        return w[None]
    if config.bias == "conv":
        return np.array([_reparameterised(*rows) for rows in zip(w, own["gamma"], own["beta"], strict=True)])[None]
    return _raster(w, config)


def _reparameterised(
    w: NDArray[np.float64], gamma: NDArray[np.float32], beta: NDArray[np.float32]
) -> NDArray[np.float64]:
    centred = w - math.fsum(w) / len(w)
    spread = math.sqrt(max(math.fsum(centred * centred) / len(w), 1e-24))
    result: NDArray[np.float64] = float(gamma[0]) * centred / spread + float(beta[0])
    return result


def _factorised(u: NDArray[np.float32], v: NDArray[np.float32], window: int) -> NDArray[np.float64]:
    """u_t . v_(t - offset): (T, s). Added up in order of the rank: a matrix product has no order of its own."""
    positions = np.arange(len(u))[:, None] - np.arange(window)
    columns = v.astype(np.float64)[positions.clip(min=0)]
    band = np.zeros(positions.shape)
    for rank in range(u.shape[1]):
        band += u[:, rank, None].astype(np.float64) * columns[..., rank]
    return band


def _raster(w: NDArray[np.float64], config: ModelConfig) -> NDArray[np.float64]:
    """w[head, rows up, columns aside] by the place in a row and the offset: (row, heads, s)."""
    assert config.raster is not None
    row, reach = config.raster.row, config.window_columns
    place = np.arange(row)[:, None]
    behind = place - np.arange(config.window)
    up, aside = -(behind // row), place - behind % row
    inside = (abs(aside) <= reach) & (up < config.window // row)
    index = np.where(inside, up * (2 * reach + 1) + aside + reach, w[0].size)
    flat = np.concatenate([w.reshape(len(w), -1), np.zeros((len(w), 1))], 1)
    return flat[:, index].transpose(1, 0, 2)
