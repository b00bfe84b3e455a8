"""Whether drawings are recognised: a classifier trained on real emoji names the category of what a model draws.

    python benchmarks/emoji/classifier.py checkpoints/emoji --json benchmarks/results/emoji_classifier.json

The classifier (three convolutions, trained on the training split alone) knows nothing of the model. Its own accuracy
on held-out real emoji says what can be expected. Every figure is given twice: in the categories' shares of all
pictures (people and flags are the largest), and with each category alike. Seeds count from 0, as many drawings of each
category as of the next, the styles in turn, temperature 1, none left out; once as the model draws by itself, once
guided and, where it reads names, once guided and told the name of a held-out emoji of the category, too.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model import images
from model.batches import spelled
from model.checkpoint import Checkpoint
from model.generate import draw_together
from model.images import ImageSet
from model.machine import facts
from model.pixels import Pixels
from model.runtime.choice import open_runtime

EACH = 40  # drawings a category
AT_ONCE = 64
EPOCHS, BATCH, RATE = 40, 64, 2e-3


def network(num_labels: int) -> nn.Sequential:
    """Three convolutions, an average over the places, a linear layer: 0.2 million weights."""

    def block(channels: int, wider: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.ReLU(), nn.MaxPool2d(2)]

    layers = [*block(3, 48), *block(48, 96), *block(96, 160)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(160, num_labels))


def tensor(pictures: Pixels) -> Tensor:
    """(N, H, W, 3) -> (N, 3, H, W), -1 ... 1."""
    return torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1


def augmented(x: Tensor, draw: torch.Generator) -> Tensor:
    """Moved by up to a pixel, mirrored, a little brighter or darker."""
    size = x.shape[-1]
    padded = F.pad(x, (1, 1, 1, 1), value=1.0)
    top, left = torch.randint(0, 3, (2,), generator=draw).tolist()
    x = padded[..., top : top + size, left : left + size]
    if torch.rand((), generator=draw) < 0.5:
        x = x.flip(-1)
    return x + torch.randn((len(x), 1, 1, 1), generator=draw) * 0.05


def train(known: ImageSet, seed: int = 0) -> nn.Sequential:
    """A classifier of the training split; AdamW, one cycle."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    model, x, y = network(len(known.labels)), tensor(known.images), torch.from_numpy(known.label)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    steps = EPOCHS * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(x), generator=draw).split(BATCH):
            loss = F.cross_entropy(model(augmented(x[part], draw)), y[part], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.inference_mode()
def named(model: nn.Sequential, pictures: Pixels) -> NDArray[np.int64]:
    """The category of each picture, by its number."""
    found: NDArray[np.int64] = model(tensor(pictures)).argmax(1).numpy()
    return found


def corpus_of(checkpoint: Checkpoint) -> str:
    """The image set that a model was trained on: real pictures are in its styles."""
    corpus: str = checkpoint.config.training["recipe"]["corpus"]
    return corpus


def drawings(
    checkpoint: Checkpoint, guidance: float, held_out: ImageSet | None = None
) -> tuple[Pixels, NDArray[np.int64]]:
    """EACH pictures of every category, and which; told the names of those held out in turn, where these are given."""
    codec = checkpoint.pixels
    runtime = open_runtime(checkpoint, 2 * AT_ONCE)
    labels = np.repeat(np.arange(len(codec.labels)), EACH)
    prompts = []
    for i, label in enumerate(labels):
        prompts.append(codec.prompt(codec.labels[label], codec.styles[i % len(codec.styles)]))
        if held_out is not None:
            named = [held_out.aliases[k][:1] for k in np.flatnonzero(held_out.label == label)]
            prompts[-1][1:] = spelled(named[i % len(named)], codec)[0]
    made: list[Pixels] = []
    for at in range(0, len(prompts), AT_ONCE):
        # draw_together numbers seeds from 0 in each call: another category or style each time
        made += draw_together(runtime, codec, prompts[at : at + AT_ONCE], guidance)
        print(f"\rguidance {guidance}: {len(made)} of {len(prompts)}", end="", file=sys.stderr, flush=True)
    return np.stack(made), labels


def agreement(found: NDArray[np.int64], wanted: NDArray[np.int64], shares: NDArray[np.float64]) -> dict[str, Any]:
    """How often both name the same category: in the categories' `shares` (num_labels,), and each alike.

    The standard errors are those of drawing pictures anew, the classifier given.
    """
    labels = range(len(shares))
    right = np.array([(found[wanted == i] == i).mean() for i in labels])
    count = np.array([(wanted == i).sum() for i in labels])
    alike = np.full(len(shares), 1 / len(shares))

    def summed(weight: NDArray[np.float64]) -> dict[str, float]:
        variance = (weight**2 * right * (1 - right) / count).sum()
        return {"right": float((weight * right).sum()), "standard_error": float(np.sqrt(variance))}

    return {"in_proportion": summed(shares), "each_alike": summed(alike), "by_category": right.tolist()}


def compared(
    model: nn.Sequential,
    checkpoint: Checkpoint,
    guidance: float,
    shares: NDArray[np.float64],
    held_out: ImageSet | None = None,
) -> dict[str, Any]:
    """What the classifier says of drawings."""
    drawn, wanted = drawings(checkpoint, guidance, held_out)
    blank = int((drawn.mean((1, 2, 3)) >= 253).sum())
    return {
        "guidance": guidance,
        "named": held_out is not None,
        "count": len(drawn),
        **agreement(named(model, drawn), wanted, shares),
        "blank": blank,
    }


def main() -> int:
    """Train, draw, compare; status 1 where under 60 % of the guided drawings, in proportion, are recognised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--guidance", type=float, default=3.0, help="of the second set of drawings")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    checkpoint = Checkpoint(arguments.checkpoint)
    pictures = images.load(corpus_of(checkpoint), checkpoint.pixels.raster.width)
    held_out = pictures.subset(2)
    model = train(pictures.subset(0))
    shares = np.bincount(pictures.label) / len(pictures.label)
    plans = [(1.0, None), (arguments.guidance, None)]
    if checkpoint.pixels.raster.name_length:
        plans.append((arguments.guidance, held_out))
    result = {
        **facts(),
        "checkpoint": checkpoint.name,
        "corpus": corpus_of(checkpoint),
        "size": checkpoint.pixels.raster.width,
        "categories": list(pictures.labels),
        "shares": shares.tolist(),
        "chance": {"in_proportion": float(shares.max()), "each_alike": 1 / len(shares)},
        "held_out": {
            "count": len(held_out.names),
            **agreement(named(model, held_out.images), held_out.label, shares),
        },
        "drawings": [compared(model, checkpoint, guidance, shares, named) for guidance, named in plans],
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(result["drawings"][1]["in_proportion"]["right"] < 0.6)


if __name__ == "__main__":
    sys.exit(main())
