"""Which runtime advances a model: the native one where it was built, otherwise torch where it is installed."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path
from typing import Literal

from model.checkpoint import Checkpoint
from model.runtime.base import Runtime

Wanted = Literal["auto", "native", "torch"]
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
ISA_VARIABLE = "AFT_ISA"  # forces an instruction set of the native runtime: avx512, avx2, sse2


class RuntimeMissingError(RuntimeError):
    """No runtime of the kind that is wanted; the message says what to install."""


def available_cores() -> int:
    """Processors that this process may use: its affinity, and its cgroup's share rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_MAX.read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup, or "max"
        return cores


def native_is_built() -> bool:
    """Whether the kernel was compiled for this Python."""
    return importlib.util.find_spec("model.runtime.native._kernel") is not None


def choose(wanted: Wanted = "auto") -> tuple[Literal["native", "torch"], str]:
    """The runtime and why it is that one. RuntimeMissingError where it is not installed."""
    if wanted != "torch" and native_is_built():
        return "native", "it is built" if wanted == "auto" else "as set"
    if wanted == "native":
        raise RuntimeMissingError("the native runtime is not built: install with a C++20 compiler at hand (g++, clang)")
    if importlib.util.find_spec("torch") is None:
        raise RuntimeMissingError(
            "there is no runtime: install with a C++20 compiler at hand for the native one, or pip install '.[torch]'"
        )
    return "torch", "as set" if wanted == "torch" else "the native runtime is not built"


def open_runtime(
    checkpoint: Checkpoint, num_slots: int, *, threads: int = 0, wanted: Wanted = "auto", match: bool = True
) -> Runtime:
    """A runtime for a checkpoint. ``threads`` 0: all available for the native one, one for torch.

    ``match``: whether the checkpoint's match model is used, where it has one.
    CheckpointError where the weights do not fit, RuntimeMissingError where there is no such runtime.
    """
    name, _ = choose(wanted)
    if name == "native":
        from model.runtime.native.runtime import NativeRuntime

        target = os.environ.get(ISA_VARIABLE, "")
        return NativeRuntime(checkpoint, num_slots, threads or available_cores(), target, match=match)
    import torch

    from model.runtime.eager import EagerRuntime

    # beside an event loop a second thread of torch makes a step three times as slow (docs/benchmarks.md)
    torch.set_num_threads(threads or 1)
    return EagerRuntime(checkpoint, num_slots, match=match)
