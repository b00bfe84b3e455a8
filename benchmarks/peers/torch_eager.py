"""The torch runtime beside the native one."""

from __future__ import annotations

from model.bench import RuntimeContestant
from model.checkpoint import Checkpoint
from model.runtime.choice import open_runtime


def open_peer(checkpoint: Checkpoint, slots: int, threads: int) -> RuntimeContestant:
    """The contestant of `aft bench`."""
    peer = RuntimeContestant(open_runtime(checkpoint, slots, threads=threads, wanted="torch"), "torch, eager")
    peer.max_depth = 8192  # the million that the native runtime reaches in a minute takes it many
    return peer
