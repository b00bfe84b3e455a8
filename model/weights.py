"""Between a checkpoint's model.safetensors and a network of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from model import checkpoint
from model.checkpoint import TOKENIZER, Checkpoint, CheckpointError, Codec, codec_facts
from model.config import ModelConfig
from model.network import Network


def stored(network: Network) -> dict[str, torch.Tensor]:
    """What a checkpoint stores of a network: every parameter once."""
    weights = dict(network.state_dict())
    if network.config.tied_head:
        del weights["head.weight"]
    return weights


def load(source: Checkpoint) -> Network:
    """The network in float32, for evaluation. CheckpointError where names or shapes of tensors do not fit."""
    try:
        given = safetensors.torch.load(source.weights())
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{source.name}: {checkpoint.WEIGHTS} is no safetensors file: {error}") from error
    network = Network(source.config.model)
    expected = stored(network)
    for name in sorted(expected.keys() | given.keys()):
        wanted, found = (tuple(t[name].shape) if name in t else "nothing" for t in (expected, given))
        if wanted != found:
            where = f"{source.name}: {checkpoint.WEIGHTS}: {name}"
            raise CheckpointError(f"{where} has shape {found}, the config asks for {wanted}")
    # a tied head is the embedding, which is stored once
    network.load_state_dict(given, strict=not network.config.tied_head)
    return network.eval()


def neutral(network: Network) -> dict[str, torch.Tensor]:
    """Weights of what a network may have beside another, at which it changes nothing: token shifts, lookbacks."""
    known = network.state_dict()
    passed_on = {name: torch.ones_like(tensor) for name, tensor in known.items() if name.endswith(".share")}
    nothing = {name: torch.zeros_like(tensor) for name, tensor in known.items() if name.startswith("lookback.")}
    return passed_on | nothing


def scaled(source: Checkpoint, factor: float) -> bytes:
    """The stored weights of a model whose logits are ``factor`` times as large: the last norm is."""
    given = safetensors.torch.load(source.weights())
    given.update({name: given[name].float() * factor for name in ("norm.weight", "norm.bias")})
    return safetensors.torch.save(given)


def mean(one: Checkpoint, other: Checkpoint, share: float) -> Network:
    """(1 - share) times one model's weights and share times another's, which went on from it or from where it began.

    Two such models often lie in one valley, and what is between them is better than either (Wortsman et al. 2022,
    arXiv 2203.05482). What only the other has, a token shift or a lookback, changes nothing in the first. ValueError
    where the shapes differ otherwise, or ids mean something else.
    """
    if codec_facts(one.codec) != codec_facts(other.codec) or one.config.files.get(TOKENIZER) != other.config.files.get(
        TOKENIZER
    ):
        raise ValueError(f"the ids of {one.name} and {other.name} mean different things")
    first, network = load(one), load(other)
    ours, theirs = stored(first), stored(network)
    ours = {**neutral(network), **ours}
    if meaning(first, network) != meaning(network, network):
        raise ValueError(f"{one.name} and {other.name} have different shapes: there is nothing between them")
    between = {name: torch.lerp(ours[name], tensor, share) for name, tensor in theirs.items()}
    network.load_state_dict(between, strict=not network.config.tied_head)
    return network


def meaning(network: Network, other: Network) -> ModelConfig:
    """What the weights mean; a token shift and a lookback that only the other has are taken as there: see neutral."""
    fixed: dict[str, Any] = {"dropout": 0.0, "min_half_life": 1.0, "max_half_life": 1.0}  # of training alone
    if not network.config.token_shift:
        fixed["token_shift"] = other.config.token_shift
    if not network.config.lookback:
        fixed["lookback"] = other.config.lookback
    if not network.config.mirror:
        fixed["mirror"] = other.config.mirror
    return network.config.model_copy(update=fixed)


def save(network: Network, codec: Codec, folder: Path, training: dict[str, Any]) -> None:
    """Write a checkpoint: matrices in bf16; biases, decays and norms, which are few, in float32."""
    weights = {name: _stored_type(name, tensor) for name, tensor in stored(network).items()}
    checkpoint.save(safetensors.torch.save(weights), network.config, codec, folder, training)


def _stored_type(name: str, tensor: torch.Tensor) -> torch.Tensor:
    matrix = tensor.ndim == 2 and ".bias." not in name
    return tensor.detach().to("cpu", torch.bfloat16 if matrix else torch.float32).contiguous()
