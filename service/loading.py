"""From checkpoint folders to served models."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from model import checkpoint
from model.checkpoint import Checkpoint, CheckpointError
from model.runtime.choice import choose, open_runtime
from service.engine import Served
from service.metrics import Metrics
from service.scheduler import Scheduler
from service.settings import Settings

log = logging.getLogger("aft")


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


def load_models(settings: Settings, metrics: Metrics) -> list[Served]:
    """Load every model; blocks.

    CheckpointError names what is wrong with which folder, RuntimeMissingError what to install.
    """
    served = []
    for folder in folders(settings):
        began = time.perf_counter()
        loaded = Checkpoint(folder)
        wanted, device = settings.runtime, settings.device
        runtime = open_runtime(loaded, settings.slots, threads=settings.threads, wanted=wanted, device=device)
        per_key = settings.max_choices_per_key, settings.max_queue_per_key
        scheduler = Scheduler(runtime, settings.max_queue, settings.burst_seconds, *per_key)
        created = int((folder / checkpoint.CONFIG).stat().st_mtime)
        served.append(Served(loaded.name, runtime, loaded.codec, scheduler, created, loaded.config.model.window))
        metrics.startup_seconds.labels(loaded.name, "load").set(time.perf_counter() - began)
    log.info("the %s runtime: %s", *choose(settings.runtime, settings.device))
    return served
