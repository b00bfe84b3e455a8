"""What the shape of a match model is worth: fitted to the validation split, scored on it and on the test split.

    python benchmarks/matches.py --json benchmarks/results/matches.json

The network's logits are computed once, by overlapping windows; a shape is then fitted as ``aft calibrate`` does.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from model import calibration, data, weights
from model.batches import encode
from model.checkpoint import Checkpoint
from model.evaluate import window_logits
from model.machine import facts
from model.match import Match

LENGTH, STRIDE = 512, 256
SHAPES = {  # window, shortest, longest, most
    "as shipped": (4096, 2, 20, 8),
    "window 1,024": (1024, 2, 20, 8),
    "window 2,048": (2048, 2, 20, 8),
    "window 16,384": (16384, 2, 20, 8),
    "from 1 character": (4096, 1, 20, 8),
    "from 3": (4096, 3, 20, 8),
    "from 5": (4096, 5, 20, 8),
    "1 match": (4096, 2, 20, 1),
    "4 matches": (4096, 2, 20, 4),
    "32 matches": (4096, 2, 20, 32),
    "to 8 characters": (4096, 2, 8, 8),
}


def main() -> int:
    """A row a shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/shakespeare"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    source = Checkpoint(arguments.checkpoint)
    text = data.load(source.config.training["recipe"]["corpus"])
    train, validation, test = (encode(part, source.tokenizer) for part in data.split(text))
    ids = np.concatenate([train, validation, test])
    network, began = weights.load(source).freeze(), time.perf_counter()
    splits = [
        (ids[: len(train) + len(validation)], len(train)),
        (ids, len(train) + len(validation)),
    ]
    logits = [window_logits(network, some, start, LENGTH, STRIDE) for some, start in splits]
    print(f"logits: {time.perf_counter() - began:.0f} s")
    rows = {}
    for name, shape in {"no match model": None, **SHAPES}.items():
        wanted = Match.unfitted(*shape) if shape else None
        found = calibration.fit(logits[0], *splits[0], wanted)
        targets = ids[splits[1][1] :].astype(np.int64)
        bits = calibration.target_bits(logits[1], targets, found.factor)
        if found.match is not None:
            bits = found.match.mixed_bits(bits, *splits[1])
        rows[name] = {"factor": found.factor, "validation": found.bits, "test": float(bits.mean()), "shape": shape}
        print(f"| {name} | {found.factor:.3f} | {found.bits:.4f} | {bits.mean():.4f} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": facts(), "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
