"""transformers' GPT-2 beside the runtime: as many layers and channels, random weights, float32, a key-value cache."""

from __future__ import annotations

import time

import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from model.checkpoint import Checkpoint

MAX_DEPTH = 8192
LONGEST = 512  # tokens of a decode run after the deepest position
CHUNK = 512


class GPT2:
    """A GPT-2 and the cache of the last depth that was reached."""

    name = "GPT-2, transformers"
    max_depth = MAX_DEPTH

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        config = checkpoint.config.model
        torch.set_num_threads(threads)
        shape = GPT2Config(
            vocab_size=config.vocab_size, n_embd=config.dim, n_layer=config.num_layers, n_head=max(1, config.dim // 32),
            n_inner=config.mlp_ratio * config.dim, n_positions=MAX_DEPTH + LONGEST, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        self._network = GPT2LMHeadModel(shape).eval()
        self._vocab = config.vocab_size
        self._caches: dict[int, DynamicCache] = {}

    def _consume(self, cache: DynamicCache, length: int) -> None:
        tokens = torch.randint(self._vocab, (1, length))
        for part in tokens.split(CHUNK, 1):
            self._network(part, past_key_values=cache, use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def decode(self, streams: int, depth: int, steps: int) -> float:
        """Every step is one call for all streams; a reached cache is cut back to its depth afterwards."""
        steps = min(steps, LONGEST)
        cache = self._caches.get(depth) if depth else DynamicCache()
        if cache is None:
            cache = self._caches[depth] = DynamicCache()
            self._consume(cache, depth)
        tokens = torch.randint(self._vocab, (steps, streams, 1))
        began = time.perf_counter()
        for step in tokens:
            self._network(step, past_key_values=cache, use_cache=True)
        rate = steps * streams / (time.perf_counter() - began)
        if depth:
            cache.crop(depth - cache.get_seq_length())
        return rate

    @torch.inference_mode()
    def prefill(self, length: int) -> float:
        """In chunks of 512."""
        began = time.perf_counter()
        self._consume(DynamicCache(), length)
        return length / (time.perf_counter() - began)


def open_peer(checkpoint: Checkpoint, slots: int, threads: int) -> GPT2:
    """The contestant of `aft bench`."""
    return GPT2(checkpoint, threads)
