"""A slot's state as bytes: a fixed head, the model's tensors, the sampler's part, and a hash over all of it."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.match import Recent
from model.runtime.base import StateError

MAGIC = b"AFTSTATE"
FORMAT = 1
HASH_BYTES = 32


def pack(facts: dict[str, object], arrays: Sequence[NDArray[np.generic]]) -> bytes:
    """Facts as canonical JSON, then the arrays' bytes in order, then sha256 of everything before."""
    head = json.dumps({"format": FORMAT, **facts}, sort_keys=True, separators=(",", ":")).encode()
    body = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    content = MAGIC + struct.pack("<I", len(head)) + head + body
    return content + hashlib.sha256(content).digest()


def unpack(state: bytes) -> tuple[dict[str, object], bytes]:
    """The facts and the arrays' bytes. StateError where the bytes are cut, changed or something else."""
    start = len(MAGIC) + 4
    if len(state) < start + HASH_BYTES or not state.startswith(MAGIC):
        raise StateError("these bytes are no exported state")
    content, digest = state[:-HASH_BYTES], state[-HASH_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise StateError("the state is damaged: its hash differs")
    (size,) = struct.unpack_from("<I", content, len(MAGIC))
    try:
        facts = json.loads(content[start : start + size])
    except (ValueError, RecursionError) as error:
        raise StateError("the state's head cannot be read") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise StateError(f"the state has another format than {FORMAT}")
    return facts, content[start + size :]


def padded(recent: Recent, window: int) -> Recent:
    """The last tokens of a stream and zeros: a state has one size."""
    return np.concatenate([recent, np.zeros(window - len(recent), np.uint16)])


def check_recent(stored: Recent, position: int, vocab_size: int) -> Recent:
    """What ``padded`` stored: the last tokens, which a match model reads. StateError where they cannot be."""
    count = max(0, min(position, len(stored)))
    if position < 0 or stored[:count].max(initial=0) >= vocab_size or stored[count:].any():
        raise StateError("the state's last tokens are no tokens of this model, or more than it has read")
    return stored[:count]


def check_sampler(counts: NDArray[np.int32], seen: NDArray[np.uint8], position: int) -> None:
    """StateError for counts that no stream of so many positions can have."""
    # the last token of a burst is counted before it is consumed
    if counts.size and (counts.min() < 0 or int(counts.sum(dtype=np.int64)) > position + 1 or seen.max() > 1):
        raise StateError("the state counts tokens that it cannot have drawn")
