"""A configuration is valid or refused with the numbers that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from variants import VARIANTS, make_config

from model.config import MAX_LEN_WITHOUT_DECAY, PRESETS, ModelConfig, preset
from model.network import Network


def build(**changes: Any) -> ModelConfig:
    """A valid relative model with decay, changed."""
    return ModelConfig(**{"vocab_size": 10, "dim": 12, "num_layers": 1, "num_heads": 2, "decay": True, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_heads": 5}, "dim 12 is not a multiple of num_heads 5"),
        ({"bias": "none"}, "bias 'none' has no window, but window is 16"),
        ({"window": 0}, "bias 'relative' needs a window of at least 1"),
        ({"bias": "conv", "window": 0}, "bias 'conv' needs a window"),
        ({"bias": "absolute", "window": 0, "max_model_len": 9}, "bias 'absolute' needs a window"),
        ({"bias_rank": 4}, "bias_rank belongs to the absolute bias, not to 'relative'"),
        ({"bias": "none", "window": 0, "bias_rank": 4}, "bias_rank belongs to the absolute bias, not to 'none'"),
        ({"bias": "conv", "bias_rank": 4}, "bias_rank belongs to the absolute bias, not to 'conv'"),
        ({"decay": False}, "a model without decay needs max_model_len"),
        ({"decay": False, "max_model_len": 100_001}, "max_model_len 100001 without decay is above 100000"),
        ({"bias": "absolute"}, "it needs max_model_len"),
        ({"bias": "absolute", "decay": False, "num_heads": 1, "max_model_len": 15}, "window 16 is longer"),
        ({"bias": "absolute", "num_heads": 1, "max_model_len": 64}, "one head and no decay"),
        ({"bias": "absolute", "decay": False, "max_model_len": 64}, "one head and no decay"),
        ({"lookback": (3, 2)}, "each longer than the one before"),
        ({"lookback": (2, 2)}, "each longer than the one before"),
        ({"lookback": tuple(range(2, 11))}, "at most 8 distances"),
        ({"lookback": (2,), "vocab_size": 65_537}, "at most 65536 ids, not 65537"),
        ({"mirror": True}, "mirror needs a raster of two columns at least"),
        (
            {"mirror": True, "raster": {"height": 9, "width": 1}, "max_model_len": 27},
            "mirror needs a raster of two columns at least",
        ),
    ],
)  # fmt: skip
def test_combinations_that_the_equation_does_not_have(changes: dict[str, Any], words: str) -> None:
    """Each is refused by name and number."""
    with pytest.raises(ValidationError, match=words):
        build(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 0}, {"dim": -2}, {"num_layers": 0}, {"num_heads": 0}, {"window": -1}, {"bias_rank": -1},
        {"bias": "fancy"}, {"dropout": 1.0}, {"dropout": -0.1}, {"mlp_ratio": 0}, {"max_model_len": 0},
        {"min_half_life": 0.0}, {"max_half_life": -1.0}, {"activation": "relu"}, {"dim": "12"}, {"decay": 1},
        {"unknown": 1}, {"lookback": [1]}, {"lookback": [1025]}, {"lookback": ["2"]}, {"lookback": 2},
    ],
)  # fmt: skip
def test_values_out_of_range(changes: dict[str, Any]) -> None:
    """Numbers, kinds, types and names are checked; the message names the field."""
    with pytest.raises(ValidationError, match=next(iter(changes))):
        build(**changes)


def test_limits_themselves_are_allowed() -> None:
    """The largest length without decay, and a window as long as the model."""
    assert build(decay=False, max_model_len=MAX_LEN_WITHOUT_DECAY).max_model_len == 100_000
    assert build(bias="absolute", num_heads=1, decay=False, window=9, max_model_len=9).window == 9
    assert build(max_model_len=10**9).max_model_len == 10**9  # with decay there is no end


def test_frozen() -> None:
    """A configuration does not change after its checks."""
    with pytest.raises(ValidationError, match="frozen"):
        build().dim = 7  # type: ignore[misc]


def test_json_round_trip() -> None:
    """What a checkpoint stores is what was built."""
    for name in VARIANTS:
        config = make_config(name)
        assert ModelConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(("name", "keys"), [("conv", 1), ("relative", 3), ("local-free", 6)])
def test_keys_per_head(name: str, keys: int) -> None:
    """One scalar in AFT-conv, one for each channel of the head otherwise."""
    assert make_config(name).keys_per_head == keys


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name: str) -> None:
    """Each named size is a valid configuration, and a field can be changed."""
    assert preset(name, 300).vocab_size == 300
    assert preset(name, 300, num_layers=3).num_layers == 3


def test_paper_presets() -> None:
    """The paper's Enwik8 models: layers, channels, window 32, rank 256, length 1024."""
    for name, layers, dim in (("enwik8-12x512", 12, 512), ("enwik8-24x256", 24, 256)):
        config = preset(name, 258)
        assert (config.num_layers, config.dim, config.window, config.bias_rank) == (layers, dim, 32, 256)
        assert config.max_model_len == 1024


def test_tiny_is_tiny() -> None:
    """Below 50,000 parameters, so that tests take seconds."""
    assert Network(preset("tiny", 100)).num_parameters < 50_000


def test_unknown_preset() -> None:
    """Names that exist are listed."""
    with pytest.raises(ValueError, match="unknown preset 'huge'; known: tiny, shipped"):
        preset("huge", 10)
