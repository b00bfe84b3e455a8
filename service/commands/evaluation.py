"""``aft eval``: the table, the JSON, the plot."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from model import data, images, pixels
from model.batches import counted_by, encode, examples, prompts
from model.checkpoint import Checkpoint
from model.evaluate import Depth, by_depth, compare, per_dimension, windows
from model.machine import facts
from model.match import Ids
from model.network import Network
from model.runtime.choice import open_runtime
from model.weights import load

DEPTHS = [100, 1_000, 10_000, 100_000]  # characters of preceding text
COLUMNS, WEBP_MOST = 16, 16_383  # of the sheet of all pictures; pixels of a WebP's side


def run(
    folder: Path,
    corpus: str | None,
    stride: int | None,
    depths: list[int] | None,
    max_chars: int | None,
    json_file: Path | None,
    plot: Path | None,
    *,
    match: bool = True,
) -> None:
    """Evaluate a checkpoint on the test split of a corpus; ``match``: with its match model, where it has one.

    Windows restart the network only: matches are looked for in all that stands before, as a stream at any depth does.
    ``depths`` are DEPTHS where none are given. ValueError for what says nothing to an image model.
    """
    checkpoint = Checkpoint(folder)
    if checkpoint.config.kind == "image":
        given = {"--stride": stride, "--depths": depths, "--max-chars": max_chars, "--plot": plot}
        if idle := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"{checkpoint.name} is a model of images: {idle[0]} says nothing to it")
        _run_images(checkpoint, load(checkpoint).freeze(), corpus, json_file)
        return
    depths = DEPTHS if depths is None else depths
    length = checkpoint.length
    stride = stride or max(1, length // 2)
    source, ids, start, characters = _test_split(checkpoint, corpus, max_chars)
    scale = (len(ids) - start) / characters  # tokens a character: more than one where characters are spelled in bytes
    overlapping = windows(load(checkpoint).freeze(), ids, start, length, stride)
    if match and checkpoint.match is not None:
        overlapping = checkpoint.match.mixed_bits(overlapping, ids, start)
    overlapping = overlapping * scale
    runtime = open_runtime(checkpoint, num_slots=1, match=match)
    longest = min(start, runtime.max_position // 2) if runtime.max_position else start
    left_out = [depth for depth in depths if depth > longest]
    if left_out:
        Console(stderr=True).print(f"left out, beyond the text or the model's end: {left_out}")
    rows = [
        compare(depth, by_depth(runtime, ids, start, depth) * scale, overlapping)
        for depth in depths
        if depth <= longest
    ]
    result = {
        **_made_by(checkpoint),
        "corpus": source,
        "match": match and checkpoint.match is not None,
        "characters": characters,
        "window": length,
        "stride": stride,
        "bits_per_character": float(overlapping.mean()),
        "by_depth": [row._asdict() for row in rows],
    }
    _print(result, rows)
    if json_file:
        json_file.write_text(json.dumps(result, indent=2) + "\n")
    if plot:
        _plot(result, rows, plot)


class _TestSplit(NamedTuple):
    source: str  # name of the corpus
    ids: Ids  # all of the corpus up to the last character that is scored
    start: int  # where the test split begins
    characters: int  # that are scored


def _test_split(checkpoint: Checkpoint, corpus: str | None, max_chars: int | None) -> _TestSplit:
    """What is scored, and what stands before it. ValueError where nobody says which corpus."""
    source = checkpoint.corpus(corpus)
    text = counted_by(checkpoint.tokenizer, data.load(source))
    test = data.split(text).test
    scored = test[:max_chars] if max_chars else test
    before = encode(text[: len(text) - len(test)], checkpoint.tokenizer)
    ids = np.concatenate([before, encode(scored, checkpoint.tokenizer)])
    return _TestSplit(source, ids, len(before), len(scored))


def _run_images(checkpoint: Checkpoint, network: Network, corpus: str | None, json_file: Path | None) -> None:
    """Bits per dimension of the held-out pictures, with their condition and without, beside WebP's."""
    codec = checkpoint.pixels
    source = checkpoint.corpus(corpus)
    held_out = images.load(source, codec.raster.width).subset(2)
    if not held_out.names:
        raise ValueError(f"{source} has no picture to test on: it is too small")
    known = prompts(held_out, codec)
    nameless, anything = known.copy(), known.copy()
    nameless[:, 1:], anything[:] = codec.spell(""), codec.prompt()
    sheet = _sheet(held_out.images)
    result = {
        **_made_by(checkpoint),
        "corpus": source,
        "pictures": len(held_out.names),
        "bits_per_dimension": per_dimension(network, *examples(held_out.images, known)),
        **(
            {"bits_per_dimension_without_name": per_dimension(network, *examples(held_out.images, nameless))}
            if codec.raster.name_length
            else {}
        ),
        "bits_per_dimension_without_condition": per_dimension(network, *examples(held_out.images, anything)),
        "webp_bits_per_dimension": len(pixels.to_webp(sheet)) * 8 / held_out.images.size,
    }
    Console().print(result)
    if json_file:
        json_file.write_text(json.dumps(result, indent=2) + "\n")


def _sheet(images: pixels.Pixels) -> pixels.Pixels:
    """All pictures (N, H, W, 3) as one: in 16 columns, or in as many as rows where that were too high for WebP."""
    columns = COLUMNS
    if -(-len(images) // columns) * images.shape[1] > WEBP_MOST:
        columns = math.isqrt(len(images) - 1) + 1
    return pixels.sheet(list(images), columns=columns, gap=0)


def _made_by(checkpoint: Checkpoint) -> dict[str, Any]:
    """Which model, and where."""
    return {"model": checkpoint.name, "fingerprint": checkpoint.fingerprint[:12], **facts()}


def _print(result: dict[str, Any], rows: list[Depth]) -> None:
    table = Table(
        title=f"{result['model']}: bits per character of {result['characters']:,} characters of the test split"
    )
    for column in ("preceding characters", "bits", "minus overlapping windows", "standard error"):
        table.add_column(column, justify="right")
    context = f"{result['window'] - result['stride']}-{result['window']}, restarted"
    if result["match"]:
        context += "; matches in all before"
    table.add_row(context, f"{result['bits_per_character']:.4f}", "", "")
    for row in rows:
        table.add_row(f"{row.depth:,}", f"{row.bits:.4f}", f"{row.difference:+.4f}", f"{row.standard_error:.4f}")
    Console().print(table)


def _plot(result: dict[str, Any], rows: list[Depth], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    depths = [row.depth for row in rows]
    axes.errorbar(
        depths, [row.difference for row in rows], [2 * row.standard_error for row in rows], marker="o", capsize=3
    )
    axes.axhline(0, color="gray", linewidth=1)
    axes.axhspan(-0.01, 0.01, alpha=0.15)
    label = f"bits per character minus overlapping windows\n({result['bits_per_character']:.3f})"
    most = max([0.05, *(1.3 * abs(row.difference) for row in rows)])
    axes.set(xscale="log", xlabel="characters of preceding text, never restarted", ylabel=label, ylim=(-most, most))
    axes.set_title(f"{result['model']}: the same {result['characters']:,} characters at any depth")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
