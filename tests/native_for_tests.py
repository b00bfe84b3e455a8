"""The native runtime's models for tests: every variant, in sizes that fill no block of 16 and in sizes that do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import checkpoints_for_tests as tiny
import numpy as np
import pytest
from jobs_for_tests import forge
from variants import MIRRORED, RASTER, make_config

from model.automaton import Automaton
from model.checkpoint import Checkpoint

kernel = pytest.importorskip("model.runtime.native._kernel", reason="the native kernel is not built here")
from model.runtime.native.runtime import NativeRuntime  # noqa: E402

Checkpoints = Callable[[str], Checkpoint]
Pool = Callable[[str], NativeRuntime]
TARGETS = kernel.targets()
SLOTS = 24
LENGTH = 36  # positions of a prompt; the shortest of these models ends after 41
# shape -> variant and what differs from it: heads of 3 to 64 channels, windows of 0 to 41, vocabularies of 258 and 262
SHAPES: dict[str, tuple[str, dict[str, object]]] = {
    "none": ("simple", {"dim": 6, "tied_head": True}),
    "none decay": ("simple-decay", {"dim": 64, "activation": "gelu"}),
    "absolute": ("local-free", {"dim": 20}),
    "absolute full": ("full-free", {"dim": 32, "activation": "gelu"}),
    "absolute factorised": ("local-factorised", {"dim": 48}),  # three blocks in a head: two at once, then one
    "absolute full factorised": ("full-factorised", {"dim": 20, "mlp_ratio": 3}),
    "relative": ("relative", {"dim": 20, "window": 1}),
    "relative decay": ("relative-decay", {"dim": 64, "window": 16}),  # heads of 32 channels, as the shipped model's
    "shift": ("relative-shift", {"dim": 64, "window": 16}),
    "shift raster": ("raster-decay", {"dim": 20, "token_shift": True}),
    "lookback": ("relative-lookback", {"dim": 48, "window": 16}),
    "raster lookback": ("raster-lookback", {"dim": 20}),
    "raster mirror": ("raster-mirror", {"dim": 20}),
    "mirror and names": ("mirror", {"dim": 32, "raster": {**MIRRORED, "name_length": 4}, "max_model_len": 49}),
    "lookback and match": ("relative-lookback", {"dim": 32, "lookback": (3, 300)}),
    "relative one": ("relative-one", {"dim": 48, "num_heads": 3, "tied_head": True}),
    "conv": ("conv", {"dim": 64}),
    "conv decay": ("conv-decay", {"dim": 6, "activation": "gelu"}),
    "raster": ("raster", {"dim": 32}),
    "names": ("relative-decay", {"dim": 32, "raster": {**RASTER, "name_length": 3}, "max_model_len": 45}),
    "match": ("relative-decay", {"dim": 32}),  # with a match model beside it
    "raster decay": ("raster-decay", {"dim": 20, "activation": "gelu"}),
}
every_shape = pytest.mark.parametrize("shape", SHAPES)


def written(folder: Path) -> Checkpoints:
    """A random model of each shape, written once."""
    known: dict[str, Checkpoint] = {}

    def opened(shape: str) -> Checkpoint:
        if shape not in known:
            name, changes = SHAPES[shape]
            path = tiny.of_config(folder / shape, make_config(name, **changes))
            if shape.endswith("match"):
                tiny.with_match(path)
            known[shape] = tiny.opened(path)
        return known[shape]

    return opened


def running(checkpoints: Checkpoints) -> Pool:
    """One runtime a shape for many tests, every slot reset."""
    known: dict[str, NativeRuntime] = {}

    def reset(shape: str) -> NativeRuntime:
        if shape not in known:
            known[shape] = NativeRuntime(checkpoints(shape), SLOTS)
        for slot in range(SLOTS):
            known[shape].reset(slot)
        return known[shape]

    return reset


def automaton(vocab_size: int, seed: int = 0, num_states: int = 5, accepting: float = 0.01) -> Automaton:
    """Random: in each state a third of the tokens is forbidden and a few accept."""
    rng = np.random.default_rng(seed)
    table = rng.choice([0, *range(2, num_states)], (num_states, vocab_size)).astype(np.int32)
    table[rng.random(table.shape) < 0.3] = -1
    table[rng.random(table.shape) < accepting] = 1
    return Automaton(table)


def poison(runtime: NativeRuntime, slot: int, word: int = 0x7FC07FC0) -> None:
    """A state of NaN (two in bf16, or one in float32), by the front door."""
    others = runtime.export(slot)[-32 - 5 * runtime.vocab_size - runtime.recent_bytes : -32]
    body = np.full((runtime.state_bytes - runtime.recent_bytes) // 4, word, np.uint32).tobytes() + others
    runtime.restore(slot, forge(runtime.export(slot), dict.copy, body))
