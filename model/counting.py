"""From a checkpoint and its corpus to the checkpoint with an n-gram prior."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model import checkpoint, data, prior
from model.batches import Ids, encode
from model.checkpoint import Checkpoint
from model.evaluate import by_depth
from model.runtime.choice import open_runtime
from model.tokenizer import Bytes

BEFORE = 10_000  # tokens that a stream reads before those that the gates are fitted on


class Counted(NamedTuple):
    """What was made."""

    contexts: int
    bytes: int
    gates: list[float]
    without: float  # bits a token of the validation split, by the network alone
    bits: float  # with the prior, whose gates were fitted there


def add(folder: Path, corpus: str | None, order: int, least: int) -> Counted:
    """Count, fit, store. ValueError for a model without a known corpus, CheckpointError where the folder is none."""
    source = Checkpoint(folder)
    tokenizer = source.tokenizer
    name = corpus or source.config.training.get("recipe", {}).get("corpus")
    if not name:
        raise ValueError("the checkpoint does not say what it was trained on: name a corpus with --corpus")
    text = data.load(name)
    if isinstance(tokenizer, Bytes) and isinstance(text, str):
        text = text.encode()
    parts = data.split(text)
    train, held_out = encode(parts.train, tokenizer), encode(parts.validation, tokenizer)
    if len(train) < 2 or len(held_out) < 2:
        raise ValueError(f"{name} is too short to count and to fit the gates on")
    before = train[-min(BEFORE, len(train)) :]
    ids: Ids = np.concatenate([before, held_out])
    bits = by_depth(open_runtime(source, 1, prior=False), ids, len(before), len(before))
    fitted = prior.fit_gates(prior.count(train, order, least), bits, ids, len(before))
    mixed = float(fitted.mixed_bits(bits, ids, len(before)).mean())
    facts: dict[str, Any] = {"corpus": name, "order": order, "least": least, "discount": prior.DISCOUNT}
    checkpoint.add_prior(folder, fitted, facts)
    size = (folder / prior.FILE).stat().st_size
    return Counted(int((fitted.keys > 0).sum()), size, fitted.gates.tolist(), float(bits.mean()), mixed)
