"""What tests of every runtime share: prompts, single jobs, equality to the bit, and states with a changed head."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import numpy as np

from model.runtime.base import Done, Job, Runtime


def prompt(length: int, seed: int = 0, vocab_size: int = 256) -> list[int]:
    """Random tokens: bytes where nothing else is asked for."""
    return np.random.default_rng(seed).integers(0, vocab_size, length).tolist()


def one(runtime: Runtime, job: Job) -> Done:
    """A job alone."""
    (done,) = runtime.run([job])
    return done


def same(a: Done, b: Done) -> None:
    """Equal in every field, bit for bit, the logits too."""
    assert (a.logits is None) == (b.logits is None)
    if a.logits is not None and b.logits is not None:
        assert a.logits.dtype == b.logits.dtype == np.float32
        np.testing.assert_array_equal(a.logits, b.logits)
    assert dataclasses.replace(a, logits=None) == dataclasses.replace(b, logits=None)


def forge(state: bytes, change: Callable[[dict[str, Any]], object], body: bytes | None = None) -> bytes:
    """Change the head, or replace the arrays, and make the hash right."""
    (size,) = struct.unpack_from("<I", state, 8)
    facts = json.loads(state[12 : 12 + size])
    change(facts)
    head = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
    content = state[:8] + struct.pack("<I", len(head)) + head + (state[12 + size : -32] if body is None else body)
    return rehash(content)


def rehash(content: bytes) -> bytes:
    """Any content with its hash."""
    return content + sha256(content).digest()
