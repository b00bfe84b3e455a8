"""One run: train, score on the validation split. In a module of its own, so that other processes find it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from model import data, evaluate, images
from model.batches import encode, examples, prompts
from model.checkpoint import Codec
from model.machine import device_name, facts
from model.network import Network
from model.pixels import PixelCodec
from model.recipe import Recipe, make
from model.runs import make_trainer
from trials.networks import NETWORKS

SCORED_CHARS = 100_000  # of the validation split


def run(name: str, fields: dict[str, Any], runs: Path) -> dict[str, Any]:
    """Train one run to its end and score it: a row."""

    torch.set_num_threads(1)
    build = NETWORKS[fields.pop("network", "aft")]
    recipe = make(name, {**fields, "name": name})
    trainer, codec = make_trainer(recipe, runs / name, build)
    trainer.run(lambda row: print(f"{name}: {row['step']:.0f} {row['validation_bpc']:.3f}", flush=True))
    return {
        "parameters": trainer.network.num_parameters,
        "trained_chars": int(trainer.rows[-1]["chars"]),
        "minutes": round(trainer.seconds / 60, 1),
        "train": trainer.rows[-1]["train_bpc"],
        "validation": score(trainer.result, codec, recipe),
        "curve": [[int(row["step"]), round(row["validation_bpc"], 4)] for row in trainer.rows],  # on the way
        "scanned": sum(row["num_scanned"] for row in trainer.rows),
        "device": device_name(str(trainer.device)),
        **facts(),
    }


def score(network: Network, codec: Codec, recipe: Recipe) -> float:
    """Bits each of the validation split: characters after half a window at least, or sub-pixels."""
    network.eval()
    if isinstance(codec, PixelCodec):
        held_out = images.load(recipe.corpus, recipe.size).subset(1)
        return evaluate.per_dimension(network, *examples(held_out.images, prompts(held_out, codec)))
    ids = encode(data.split(data.load(recipe.corpus)).validation, codec)[: SCORED_CHARS + recipe.length]
    return float(evaluate.windows(network, ids, recipe.length, recipe.length, recipe.length // 2).mean())
