"""The pictures of checkpoints/emoji/README.md: samples (guided and named, too), nearest training pictures, completions.

    .venv/bin/python benchmarks/emoji/pictures.py checkpoints/emoji

Seeds are numbered from 0, none is left out. Prints what the card says of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from model import images, pixels
from model.checkpoint import Checkpoint
from model.generate import draw_together
from model.images import ImageSet
from model.pixels import Pixels
from model.runtime.choice import open_runtime

SAMPLES, NEAREST, HELD_OUT, WAYS, SCALE = 64, 16, 8, 8, 3
GUIDANCE = 3.0
# what training pictures are called, then words that stand in none of their names together
NAMES = ["red heart", "grinning face", "flag france", "four oclock", "pizza", "cat face", "rocket", "woman running"]
NEW_NAMES = ["blue face", "red clock", "flag of cats", "green pizza"]


def nearest(image: Pixels, training: ImageSet) -> Pixels:
    """The training picture with the least squared distance, mirrored ones too."""
    pool = np.concatenate([training.images, training.images[:, :, ::-1]]).astype(np.int32)
    found: Pixels = pool[((pool - image) ** 2).sum((1, 2, 3)).argmin()].astype(np.uint8)
    return found


def main(folder: Path) -> None:
    """Draw all sheets into the folder."""
    checkpoint = Checkpoint(folder)
    codec, size = checkpoint.pixels, checkpoint.pixels.raster.width
    pictures = images.load(checkpoint.config.training["recipe"]["corpus"], size)
    runtime = open_runtime(checkpoint, 2 * SAMPLES)
    labels, styles = codec.labels, codec.styles
    asked = [codec.prompt(labels[i * len(labels) // SAMPLES], styles[i % len(styles)]) for i in range(SAMPLES)]
    samples = draw_together(runtime, codec, asked)
    (folder / "samples.png").write_bytes(pixels.to_png(pixels.sheet(samples, columns=16, scale=SCALE)))
    blank = sum(int(image.mean() >= 253) for image in samples)
    print(f"{SAMPLES} samples, by category ({', '.join(labels)}), styles {', '.join(styles)} in turn; blank: {blank}")

    guided = draw_together(runtime, codec, asked, GUIDANCE)
    (folder / "guided.png").write_bytes(pixels.to_png(pixels.sheet(guided, columns=16, scale=SCALE)))

    if codec.raster.name_length:
        named = [codec.prompt("", style, name) for name in NAMES + NEW_NAMES for style in styles]
        drawn = draw_together(runtime, codec, named, GUIDANCE)
        # two names a row: each in all styles
        (folder / "names.png").write_bytes(pixels.to_png(pixels.sheet(drawn, columns=2 * len(styles), scale=SCALE)))
        print(f"named, each in {', '.join(styles)}: {', '.join(NAMES + NEW_NAMES)}")

    few = samples[:: SAMPLES // NEAREST]
    pairs = [image for sample in few for image in (sample, nearest(sample, pictures.subset(0)))]
    (folder / "nearest.png").write_bytes(pixels.to_png(pixels.sheet(pairs, columns=8, scale=SCALE)))

    test = pictures.subset(2)
    rows: list[Pixels] = []
    chosen = np.linspace(0, len(test.names) - 1, HELD_OUT).astype(int)
    half = codec.raster.size // 2
    prompts = []
    for i in chosen:
        told = codec.prompt(test.labels[test.label[i]], test.styles[test.style[i]])
        prompts += [[*told, *codec.encode(test.images[i])[:half]]] * WAYS
    completed = draw_together(runtime, codec, prompts)
    for n, i in enumerate(chosen):
        rows += [test.images[i], codec.decode(codec.encode(test.images[i])[:half])]
        rows += completed[n * WAYS : (n + 1) * WAYS]
    (folder / "completions.png").write_bytes(pixels.to_png(pixels.sheet(rows, columns=WAYS + 2, scale=SCALE)))
    print("completed:", ", ".join(test.names[i] for i in chosen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
