"""What a model is: one frozen class, and the sizes that have a name."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

BiasKind = Literal["none", "absolute", "relative", "conv", "raster"]
Activation = Literal["gelu", "squared_relu"]
PositiveInt = Annotated[int, Field(gt=0)]

# Without decay every key ever seen keeps its full weight in one float32 sum. At 10^6 positions that sum has lost
# 1e-3 of its value to rounding, at 10^5 less than a bf16 product loses anyway: such models end there.
MAX_LEN_WITHOUT_DECAY = 100_000
MAX_LOOKBACK = 1024  # places: they are part of every state
MAX_LOOKBACKS = 8


class Raster(BaseModel):
    """The grid of a pixel model: sub-pixels in reading order, R, G, B of a pixel side by side.

    Before them stand a condition and, in models that know names, the name of what is drawn, a position a character.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    height: PositiveInt  # pixels
    width: PositiveInt  # pixels
    channels: PositiveInt = 3
    name_length: Annotated[int, Field(ge=0)] = 0  # positions of a name; 0: the model knows none

    @property
    def row(self) -> int:
        """Sub-pixels of a row."""
        return self.width * self.channels

    @property
    def size(self) -> int:
        """Sub-pixels of an image."""
        return self.height * self.row

    @property
    def positions(self) -> int:
        """Positions of its sequence: the last sub-pixel is drawn and not read, the condition is read and not drawn."""
        return self.name_length + self.size


class ModelConfig(BaseModel):
    """The shape of one AFT network.

    The paper's variants: AFT-simple is ``bias="none"``; AFT-local is ``bias="absolute"`` with a window; AFT-full is
    the same with ``window == max_model_len``; AFT-conv is ``bias="conv"``. ``relative`` with ``decay`` is ours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    vocab_size: PositiveInt  # ids, the begin and end symbol included
    dim: PositiveInt  # channels of the residual stream
    num_layers: PositiveInt
    num_heads: PositiveInt = 1  # groups of channels that share a position bias (the paper: 1 unless conv)
    bias: BiasKind = "relative"  # how b(t, t') depends on position inside the window
    window: Annotated[int, Field(ge=0)] = 16  # s: b(t, t') is free for t - t' < s
    bias_rank: Annotated[int, Field(ge=0)] = 0  # d' of the factorised absolute bias; 0 = one free weight a pair
    decay: bool = False  # subtract lambda[head] (t - t') from the bias, everywhere
    min_half_life: Annotated[float, Field(gt=0)] = 4.0  # positions; the fastest head at the start of training
    max_half_life: Annotated[float, Field(gt=0)] = 512.0  # positions; the slowest head at the start of training
    token_shift: bool = False  # layers and MLPs read a learned mixture, by channel, of a position and the one before
    # what is read beside a token: an embedding each for the tokens so many places before the one that comes next
    lookback: Annotated[tuple[Annotated[int, Field(ge=2, le=MAX_LOOKBACK)], ...], Field(strict=False)] = ()
    mirror: bool = False  # another one for the sub-pixel of its row whose mirror image comes next, if there is one yet
    mlp_ratio: PositiveInt = 4
    activation: Activation = "squared_relu"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    tied_head: bool = False  # the output head is the embedding, transposed
    max_model_len: PositiveInt | None = None  # positions; None: no end
    raster: Raster | None = None  # of a pixel model: positions are sub-pixels and have a row, a column and a channel
    window_columns: Annotated[int, Field(ge=0)] = 0  # bias "raster": sub-pixels to either side in the window's rows

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse combinations that the equation does not have."""
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")
        if self.bias == "none" and self.window:
            raise ValueError(f"bias 'none' has no window, but window is {self.window}")
        if self.bias != "none" and not self.window:
            raise ValueError(f"bias {self.bias!r} needs a window of at least 1")
        if self.bias == "absolute":
            self._check_absolute()
        elif self.bias_rank:
            raise ValueError(f"bias_rank belongs to the absolute bias, not to {self.bias!r}")
        self._check_raster()
        self._check_lookback()
        if not self.decay and self.max_model_len is None:
            raise ValueError(f"a model without decay needs max_model_len (at most {MAX_LEN_WITHOUT_DECAY})")
        if not self.decay and self.max_model_len and self.max_model_len > MAX_LEN_WITHOUT_DECAY:
            raise ValueError(f"max_model_len {self.max_model_len} without decay is above {MAX_LEN_WITHOUT_DECAY}")
        return self

    def _check_absolute(self) -> None:
        if self.max_model_len is None:
            raise ValueError("an absolute bias has one weight a position: it needs max_model_len")
        if self.window > self.max_model_len:
            raise ValueError(f"window {self.window} is longer than max_model_len {self.max_model_len}")
        if self.decay or self.num_heads != 1:
            raise ValueError("an absolute bias has one head and no decay")

    def _check_raster(self) -> None:
        if self.raster is not None and self.max_model_len != self.raster.positions:
            raise ValueError(f"max_model_len is {self.max_model_len}, the raster has {self.raster.positions} positions")
        if self.raster is not None and self.tied_head:
            raise ValueError("a pixel model has no tied head")
        if self.bias != "raster":
            if self.window_columns:
                raise ValueError(f"window_columns belongs to the raster bias, not to {self.bias!r}")
            return
        if self.raster is None or self.window % self.raster.row:
            raise ValueError("a raster bias needs a raster, and a window of whole rows")
        if self.raster.name_length:
            raise ValueError("a raster bias has rows from the first position on: it knows no names")
        if not 0 < self.window_columns < self.raster.row / 2:
            raise ValueError(f"window_columns must be 1 to {(self.raster.row - 1) // 2}, it is {self.window_columns}")

    def _check_lookback(self) -> None:
        if len(self.lookback) > MAX_LOOKBACKS or list(self.lookback) != sorted(set(self.lookback)):
            raise ValueError(f"lookback is at most {MAX_LOOKBACKS} distances, each longer than the one before")
        if self.mirror and (self.raster is None or self.raster.width < 2):
            raise ValueError("mirror needs a raster of two columns at least")
        if self.remembered and self.vocab_size > 2**16:
            raise ValueError(f"a model that looks back knows at most 65536 ids, not {self.vocab_size}")

    @property
    def remembered(self) -> int:
        """Tokens that a stream remembers for what looks back; the longest distance is so many places."""
        mirrored = (self.raster.width - 1) * self.raster.channels if self.mirror and self.raster else 0
        return max(*self.lookback[-1:], mirrored, 0)

    @property
    def keys_per_head(self) -> int:
        """Channels of a head's key: one scalar in AFT-conv, one for each channel otherwise."""
        return 1 if self.bias == "conv" else self.dim // self.num_heads


# name -> the fields beside vocab_size
PRESETS: dict[str, dict[str, object]] = {
    "tiny": {"dim": 32, "num_layers": 2, "num_heads": 4, "window": 8, "decay": True, "max_half_life": 64.0},
    "shipped": {
        "dim": 256, "num_layers": 6, "num_heads": 8, "window": 8, "decay": True, "token_shift": True, "dropout": 0.1,
    },
    "emoji": {
        "dim": 256, "num_layers": 6, "num_heads": 8, "window": 192, "decay": True,
        "min_half_life": 6.0, "max_half_life": 1000.0, "dropout": 0.1,
    },
    "cifar10-12x512": {
        "dim": 512, "num_layers": 12, "bias": "absolute", "window": 256, "bias_rank": 64,
        "raster": {"height": 32, "width": 32}, "max_model_len": 3072, "activation": "gelu", "dropout": 0.1,
    },
    "cifar10-24x256": {
        "dim": 256, "num_layers": 24, "bias": "absolute", "window": 256, "bias_rank": 64,
        "raster": {"height": 32, "width": 32}, "max_model_len": 3072, "activation": "gelu", "dropout": 0.1,
    },
    "enwik8-12x512": {
        "dim": 512, "num_layers": 12, "bias": "absolute", "window": 32, "bias_rank": 256,
        "max_model_len": 1024, "activation": "gelu", "dropout": 0.1,
    },
    "enwik8-24x256": {
        "dim": 256, "num_layers": 24, "bias": "absolute", "window": 32, "bias_rank": 256,
        "max_model_len": 1024, "activation": "gelu", "dropout": 0.1,
    },
}  # fmt: skip


def preset(name: str, vocab_size: int, **changes: object) -> ModelConfig:
    """The named preset for a vocabulary, with some fields changed. ValueError for an unknown name."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return ModelConfig.model_validate({**PRESETS[name], "vocab_size": vocab_size, **changes})
