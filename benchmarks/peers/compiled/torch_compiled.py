"""The network's step compiled by Inductor, beside the native runtime: an argmax instead of sampling, depth 0 only."""

from __future__ import annotations

import time

import torch

from model import weights
from model.checkpoint import Checkpoint


class Compiled:
    """A compilation for each number of streams, which can take a minute."""

    name = "torch, compiled"
    max_depth = 0

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        torch.set_num_threads(threads)
        torch._dynamo.config.cache_size_limit = 64
        self._network = weights.load(checkpoint).freeze()
        self._step = torch.compile(self._network, dynamic=False)
        self._prompt = torch.randint(checkpoint.config.model.vocab_size, (1, 1 << 16))

    @torch.no_grad()
    def decode(self, streams: int, depth: int, steps: int) -> float:
        """``steps`` tokens of each stream."""
        state, tokens = self._network.init_state(streams), torch.ones(streams, 1, dtype=torch.int64)
        began = time.perf_counter()
        for _ in range(steps):
            logits, state = self._step(tokens, state)
            tokens = logits.argmax(-1)
        return steps * streams / (time.perf_counter() - began)

    @torch.no_grad()
    def prefill(self, length: int) -> float:
        """Not compiled: a scan of many positions is one graph a length."""
        raise NotImplementedError


def open_peer(checkpoint: Checkpoint, slots: int, threads: int) -> Compiled:
    """The contestant of `aft bench`."""
    return Compiled(checkpoint, threads)
