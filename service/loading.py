"""From checkpoint folders to served models."""

from __future__ import annotations

import time
from pathlib import Path

from model import checkpoint
from model.checkpoint import Checkpoint, CheckpointError
from model.runtime.base import Runtime
from service.engine import Served
from service.metrics import Metrics
from service.scheduler import Scheduler
from service.settings import Settings


def folders(settings: Settings) -> list[Path]:
    """The folders to serve. CheckpointError where there is none, or a named one is missing."""
    found = {path.name: path for path in checkpoint.find(settings.checkpoints)}
    for name in settings.models:
        if name not in found:
            raise CheckpointError(
                f"model {name!r} is not in {settings.checkpoints}: {', '.join(found) or 'nothing is'}"
            )
    if not found:
        raise CheckpointError(f"{settings.checkpoints} holds no checkpoint (a folder with a config.json)")
    return [found[name] for name in dict.fromkeys(settings.models)] if settings.models else list(found.values())


def make_runtime(loaded: Checkpoint, settings: Settings) -> Runtime:
    """The runtime that the settings name."""
    import torch

    from model.runtime.eager import EagerRuntime

    if settings.threads:
        torch.set_num_threads(settings.threads)
    return EagerRuntime(loaded, settings.slots)


def load_models(settings: Settings, metrics: Metrics) -> list[Served]:
    """Load every model; blocks. CheckpointError names what is wrong with which folder."""
    served = []
    for folder in folders(settings):
        began = time.perf_counter()
        loaded = Checkpoint(folder)
        runtime = make_runtime(loaded, settings)
        scheduler = Scheduler(runtime, settings.max_queue, settings.burst_seconds)
        created = int((folder / checkpoint.CONFIG).stat().st_mtime)
        served.append(Served(loaded.name, runtime, loaded.codec, scheduler, created))
        metrics.startup_seconds.labels(loaded.name, "load").set(time.perf_counter() - began)
    return served
