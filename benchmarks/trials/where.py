"""Where two runs of pixels differ: bits of the validation split by what a pixel is equal to.

    cd benchmarks
    ../.venv/bin/python -m trials.where emoji-equals.toml base transformer

Both must have been trained here (python -m trials): their states stand in ../runs/trials. A folder of a checkpoint may
stand for one, too. Each pixel counts once, by the first row that is true of it.
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model import images, weights
from model.batches import examples, prompts
from model.checkpoint import CONFIG, Checkpoint, Codec
from model.evaluate import bits_of
from model.network import Network
from model.pixels import PixelCodec
from model.recipe import Recipe, make
from model.runs import make_trainer
from trials.__main__ import HERE, merged
from trials.networks import NETWORKS

ROWS = 32  # pictures at a time
Bits = NDArray[np.float64]


def _trained(recipe: Recipe, folder: Path, build: type[Network]) -> tuple[Network, Codec]:
    trainer, codec = make_trainer(recipe, folder, build)
    if not trainer.done:
        raise SystemExit(f"{recipe.name} is not trained: {trainer.steps_done} of {recipe.steps} steps in {folder}")
    return trainer.result.eval(), codec


def _stored(folder: str) -> tuple[Network, Codec]:
    checkpoint = Checkpoint(Path(folder))
    return weights.load(checkpoint), checkpoint.codec


@torch.inference_mode()
def bits(name: str, fields: dict[str, Any], runs: Path) -> tuple[Bits, NDArray[np.uint8]]:
    """Of each sub-pixel (N, H, W, 3), and the pictures."""
    build = NETWORKS[fields.pop("network", "aft")]
    recipe = make(Path(name).name, {**fields, "name": Path(name).name})
    network, codec = _stored(name) if Path(name, CONFIG).exists() else _trained(recipe, runs / name, build)
    assert isinstance(codec, PixelCodec)
    held_out = images.load(recipe.corpus, recipe.size).subset(1)
    inputs, targets = examples(held_out.images, prompts(held_out, codec))
    parts = zip(inputs.split(ROWS), targets.split(ROWS), strict=True)
    found = torch.cat([bits_of(network(x.to(network.device))[0].cpu(), y) for x, y in parts])[:, -codec.raster.size :]
    return found.double().numpy().reshape(held_out.images.shape), held_out.images


def kinds(pictures: NDArray[np.uint8]) -> dict[str, NDArray[np.bool_]]:
    """What each pixel (N, H, W) is equal to; one may be of several kinds."""
    padded = np.pad(pictures.astype(int), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1)

    def beside(row: int, column: int) -> NDArray[np.bool_]:
        _, height, width, _ = pictures.shape
        found: NDArray[np.bool_] = (padded[:, 1 + row :, 1 + column :][:, :height, :width] == pictures).all(-1)
        return found

    mirror = (pictures[:, :, ::-1] == pictures).all(-1)
    mirror[:, :, : pictures.shape[2] // 2] = False
    colours = (pictures.astype(int) @ [65536, 256, 1]).reshape(len(pictures), -1)
    before = np.ones(colours.shape, bool)
    for seen, row in zip(before, colours, strict=True):
        seen[np.unique(row, return_index=True)[1]] = False
    return {
        "the one to the left": beside(0, -1),
        "the one above": beside(-1, 0),
        "above to the left": beside(-1, -1),
        "above to the right": beside(-1, 1),
        "its mirror image": mirror,
        "another before it": before.reshape(mirror.shape),
        "none": np.ones(mirror.shape, bool),
    }


def main() -> None:
    """Score both, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", type=Path, help="a table of runs in this folder, or a path")
    parser.add_argument("one")
    parser.add_argument("other")
    parser.add_argument("--runs", type=Path, default=Path("../runs/trials"), help="folder of the runs' states")
    arguments = parser.parse_args()
    path = arguments.trials if arguments.trials.exists() else HERE / arguments.trials
    content = tomllib.loads(path.read_text())
    runs = arguments.runs / path.stem
    (one, pictures), (other, _) = (
        bits(name, merged(content["base"], content["trial"].get(name, {})), runs)
        for name in (arguments.one, arguments.other)
    )
    print(f"| a pixel is equal to | share, % | {arguments.one} | {arguments.other} | of the difference |")
    print("|---|---|---|---|---|")
    rest = np.ones(pictures.shape[:3], bool)
    for name, of_kind in kinds(pictures).items():
        chosen = rest & of_kind
        rest &= ~of_kind
        a, b, share = one[chosen], other[chosen], 100 * chosen.mean()
        print(f"| {name} | {share:.1f} | {a.mean():.2f} | {b.mean():.2f} | {(a - b).sum() / one.size:+.3f} |")
    print(f"| all | 100 | {one.mean():.3f} | {other.mean():.3f} | {(one - other).mean():+.3f} |")


if __name__ == "__main__":
    main()
