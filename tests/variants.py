"""Every causal variant of the equation, with biases that are far from their start, and the equation in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model import reference
from model.bias import Bias, make_bias
from model.config import ModelConfig

MAX_LEN = 41  # odd, and the window of AFT-full
WINDOW = 5

# name -> the fields beside vocab_size, dim and num_layers
VARIANTS: dict[str, dict[str, Any]] = {
    "simple": {"bias": "none", "window": 0, "num_heads": 2, "max_model_len": 100_000},
    "simple-decay": {"bias": "none", "window": 0, "num_heads": 2, "decay": True},
    "local-free": {"bias": "absolute", "window": WINDOW, "max_model_len": MAX_LEN},
    "local-factorised": {"bias": "absolute", "window": WINDOW, "bias_rank": 3, "max_model_len": MAX_LEN},
    "relative": {"bias": "relative", "window": WINDOW, "num_heads": 2, "max_model_len": 100_000},
    "relative-decay": {"bias": "relative", "window": WINDOW, "num_heads": 2, "decay": True},
    "relative-shift": {"bias": "relative", "window": WINDOW, "num_heads": 2, "decay": True, "token_shift": True},
    "relative-lookback": {
        "bias": "relative",
        "window": WINDOW,
        "num_heads": 2,
        "decay": True,
        "lookback": (2, 7),
        "token_shift": True,
    },
    "relative-one": {"bias": "relative", "window": 1, "num_heads": 2, "decay": True},
    "conv": {"bias": "conv", "window": WINDOW, "num_heads": 2, "max_model_len": 100_000},
    "conv-decay": {"bias": "conv", "window": WINDOW, "num_heads": 2, "decay": True},
    "full-free": {"bias": "absolute", "window": MAX_LEN, "max_model_len": MAX_LEN},
    "full-factorised": {"bias": "absolute", "window": MAX_LEN, "bias_rank": 3, "max_model_len": MAX_LEN},
}
RASTER = {"height": 7, "width": 2, "channels": 3}
for name, decay in (("raster", False), ("raster-decay", True)):
    VARIANTS[name] = {
        "bias": "raster", "window": 12, "window_columns": 2, "num_heads": 2, "raster": RASTER, "max_model_len": 42,
        "decay": decay,
    }  # fmt: skip
VARIANTS["raster-lookback"] = {**VARIANTS["raster-decay"], "lookback": (3, 6)}
VARIANTS["raster-mirror"] = {**VARIANTS["raster-lookback"], "mirror": True}
MIRRORED = {"height": 3, "width": 5, "channels": 3}  # a column in the middle, two to either side
VARIANTS["mirror"] = {
    "bias": "relative", "window": WINDOW, "num_heads": 2, "decay": True, "mirror": True, "raster": MIRRORED,
    "max_model_len": 45,
}  # fmt: skip
WINDOWED = [name for name, fields in VARIANTS.items() if fields["window"]]
DECAYING = [name for name, fields in VARIANTS.items() if fields.get("decay")]


def make_config(name: str, **changes: Any) -> ModelConfig:
    """A small configuration of a variant."""
    fields = {"vocab_size": 11, "dim": 6, "num_layers": 2, "min_half_life": 2.0, "max_half_life": 16.0}
    return ModelConfig.model_validate({**fields, **VARIANTS[name], **changes})


def random_bias(config: ModelConfig, seed: int = 0, spread: float = 1.0) -> Bias:
    """A bias whose parameters are drawn, so that every weight counts; decays keep their start."""
    bias = make_bias(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in bias.named_parameters():
        if name != "log_decay":
            parameter.data = spread * torch.randn(parameter.shape, generator=generator)
    return bias


def constant_bias(config: ModelConfig, w: float) -> Bias:
    """A bias whose window holds one value everywhere: w = -20 is where subtracted sums cancel."""
    bias = make_bias(config)
    with torch.no_grad():
        for name, parameter in bias.named_parameters():
            if name != "log_decay" and config.bias != "conv":  # conv starts at gamma = 0: its w counts for nothing
                parameter.fill_(0.0)
        if config.bias == "conv":
            bias.get_parameter("beta").fill_(w)
        elif config.bias_rank:
            bias.get_parameter("u")[:, 0] = w
            bias.get_parameter("v")[:, 0] = 1.0
        else:
            bias.get_parameter("w").fill_(w)
    return bias


def keys_and_values(config: ModelConfig, batch: int, length: int, scale: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Float32 k (B, T, H, K), uniform up to +-scale with both ends present in each channel, and v (B, T, H, C)."""
    generator = torch.Generator().manual_seed(seed)
    heads, channels = config.num_heads, config.dim // config.num_heads
    k = scale * (2 * torch.rand(batch, length, heads, config.keys_per_head, generator=generator) - 1)
    if length > 2:
        k[:, length // 2], k[:, 0] = scale, -scale  # the first row hangs on the smallest key alone
    return k, torch.randn(batch, length, heads, channels, generator=generator)


def band64(bias: Bias, length: int) -> np.ndarray:
    """The logarithms of the window's weights as the bias gives them, float64 (T, H, s)."""
    band = bias.band(torch.arange(length)).detach().double()
    return band.expand(length, -1, -1).numpy()


def decay64(bias: Bias) -> np.ndarray:
    """Lambda as the bias gives it, float64 (H,)."""
    return bias.decay().detach().double().numpy()


def oracle(k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    """model/reference.py's plain sums: k (B, T, H, K), v (B, T, H, C) -> float64 (B, T, H, C)."""
    keys, values = k.detach().double().numpy(), v.detach().double().numpy()
    length, y = v.shape[1], np.empty(v.shape)
    band, decay = band64(bias, length), decay64(bias)
    for head in range(v.shape[2]):
        matrix = reference.bias_matrix(band[:, head], float(decay[head]), length)
        for row in range(v.shape[0]):
            y[row, :, head] = reference.average(keys[row, :, head], values[row, :, head], matrix)
    return torch.from_numpy(y)


def parameters64(bias: Bias) -> dict[str, Tensor]:
    """Float64 copies of the parameters, to differentiate by."""
    return {name: p.detach().double().requires_grad_() for name, p in bias.named_parameters()}


def dense_bias(config: ModelConfig, parameters: dict[str, Tensor], length: int) -> Tensor:
    """b (H, T, T) from the parameters alone, without model/bias.py; -inf in the future."""
    t = torch.arange(length)
    offset = t[:, None] - t
    if config.bias == "raster":
        return raster_dense(config, parameters, length)
    inside = (offset >= 0) & (offset < config.window)
    b = torch.zeros(config.num_heads, length, length, dtype=torch.float64)
    if config.window:
        column = offset.clamp(0, config.window - 1)
        if config.bias == "absolute" and config.bias_rank:
            pairs = (parameters["u"][:length] @ parameters["v"][:length].T)[None]
        elif config.bias == "absolute":
            pairs = parameters["w"][t[:, None], column][None]
        else:
            w = parameters["w"]
            if config.bias == "conv":
                deviation = w.std(1, correction=0, keepdim=True)
                w = parameters["gamma"] * (w - w.mean(1, keepdim=True)) / deviation + parameters["beta"]
            pairs = w[:, column]
        b = torch.where(inside, pairs, b)
    if config.decay:
        decay = parameters["log_decay"].exp().clamp(max=40.0 / max(config.window, 1))
        b = b - decay[:, None, None] * offset
    return torch.where(offset >= 0, b, -math.inf)


def raster_dense(config: ModelConfig, parameters: dict[str, Tensor], length: int) -> Tensor:
    """The same for the raster bias, pair by pair from its definition: rows and columns of sub-pixels."""
    assert config.raster is not None
    row, reach = config.raster.row, config.window_columns
    b = torch.full((config.num_heads, length, length), -math.inf, dtype=torch.float64)
    decay = parameters["log_decay"].exp().clamp(max=40.0 / config.window) if config.decay else torch.zeros(1)
    for t in range(length):
        for past in range(t + 1):
            rows, columns = t // row - past // row, t % row - past % row
            inside = rows < config.window // row and abs(columns) <= reach and t - past < config.window
            w = parameters["w"][:, rows, columns + reach] if inside else torch.zeros(1, dtype=torch.float64)
            b[:, t, past] = w - decay * (t - past)
    return b


def dense(k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    """Eq. 2's average as a softmax over T x T x C: k (B, T, H, K), v (B, T, H, C), b (H, T, T) -> (B, T, H, C)."""
    exponents = b[None, :, :, :, None] + k.expand(v.shape).permute(0, 2, 1, 3)[:, :, None]  # (B, H, T, T, C)
    return (exponents.softmax(3) * v.permute(0, 2, 1, 3)[:, :, None]).sum(3).permute(0, 2, 1, 3)
