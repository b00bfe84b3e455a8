"""Which runtime advances a model: the native one where it was built, otherwise torch where it is installed."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
from pathlib import Path
from typing import Literal

from model import conformance
from model.checkpoint import Checkpoint, CheckpointError
from model.runtime.base import Runtime

log = logging.getLogger("aft")
Wanted = Literal["auto", "native", "torch"]
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
ISA_VARIABLE = "AFT_ISA"  # forces an instruction set of the native runtime: avx512bf16, avx512, avx2, sse2


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


def is_cpu(device: str) -> bool:
    """Whether a device is the CPU, however it is written."""
    return device.partition(":")[0] in ("", "cpu")


def choose(wanted: Wanted = "auto", device: str = "cpu") -> tuple[Literal["native", "torch"], str]:
    """The runtime and why it is that one. RuntimeMissingError where it is not installed, or computes elsewhere."""
    elsewhere = not is_cpu(device)
    if wanted == "native" and elsewhere:
        raise RuntimeMissingError(f"the native runtime computes on the CPU alone, not on {device}: take torch")
    if wanted != "torch" and not elsewhere and native_is_built():
        return "native", "it is built" if wanted == "auto" else "as set"
    if wanted == "native":
        raise RuntimeMissingError("the native runtime is not built: install with a C++20 compiler at hand (g++, clang)")
    if importlib.util.find_spec("torch") is None:
        if elsewhere:
            raise RuntimeMissingError(
                f"{device} needs the torch runtime, which is not installed: pip install '.[torch]'"
            )
        raise RuntimeMissingError(
            "there is no runtime: install with a C++20 compiler at hand for the native one, or pip install '.[torch]'"
        )
    if wanted == "torch":
        return "torch", "as set"
    return "torch", f"it computes on {device}" if elsewhere else "the native runtime is not built"


def open_runtime(
    checkpoint: Checkpoint,
    num_slots: int,
    *,
    threads: int = 0,
    wanted: Wanted = "auto",
    device: str = "cpu",
    match: bool = True,
    verify: bool = True,
) -> Runtime:
    """A runtime for a checkpoint. ``threads`` 0: all available for the native one, one for torch.

    ``device``: what torch computes on, "cuda" for instance; the native runtime knows the CPU alone.
    ``match``: whether the checkpoint's match model is used, where it has one. ``verify``: whether the native runtime
    must compute what is stored beside the model (model/conformance.py), where anything is.
    CheckpointError where the weights do not fit or it does not, RuntimeMissingError where there is no such runtime,
    ValueError where AFT_ISA names an instruction set, or ``device`` a device, that is not available here.
    """
    name, _ = choose(wanted, device)
    if name == "native":
        return _open_native(checkpoint, num_slots, threads or available_cores(), match=match, verify=verify)
    import torch

    from model.runtime.eager import EagerRuntime

    # beside an event loop a second thread of torch makes a step three times as slow (docs/benchmarks.md)
    torch.set_num_threads(threads or 1)
    return EagerRuntime(checkpoint, num_slots, "cpu" if is_cpu(device) else device, match=match)


def _open_native(checkpoint: Checkpoint, num_slots: int, threads: int, *, match: bool, verify: bool) -> Runtime:
    """The first instruction set that computes what is stored beside the model, the fastest one as a rule."""
    from model.runtime.native._kernel import targets
    from model.runtime.native.runtime import NativeRuntime

    forced = os.environ.get(ISA_VARIABLE, "")
    for target in [forced] if forced else targets():
        runtime = NativeRuntime(checkpoint, num_slots, threads, target, match=match)
        if not verify or conformance.agrees(checkpoint, runtime):
            return runtime
        log.warning("%s: %s computes other bits than %s has: not used", checkpoint.name, target, conformance.FILE)
    raise CheckpointError(
        f"{checkpoint.name}: the native runtime computes other bits than {conformance.FILE} has: one of them is wrong"
    )
