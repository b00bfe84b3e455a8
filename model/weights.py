"""Between a checkpoint's model.safetensors and a network of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from model import checkpoint
from model.checkpoint import Checkpoint, CheckpointError, Codec
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
        given = safetensors.torch.load_file(source.folder / checkpoint.WEIGHTS)
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


def scaled(source: Checkpoint, factor: float) -> bytes:
    """The stored weights of a model whose logits are ``factor`` times as large: the last norm is."""
    given = safetensors.torch.load_file(source.folder / checkpoint.WEIGHTS)
    given.update({name: given[name].float() * factor for name in ("norm.weight", "norm.bias")})
    return safetensors.torch.save(given)


def save(network: Network, codec: Codec, folder: Path, training: dict[str, Any]) -> None:
    """Write a checkpoint: matrices in bf16; biases, decays and norms, which are few, in float32."""
    weights = {name: _stored_type(name, tensor) for name, tensor in stored(network).items()}
    checkpoint.save(safetensors.torch.save(weights), network.config, codec, folder, training)


def _stored_type(name: str, tensor: torch.Tensor) -> torch.Tensor:
    matrix = tensor.ndim == 2 and ".bias." not in name
    return tensor.detach().to("cpu", torch.bfloat16 if matrix else torch.float32).contiguous()
