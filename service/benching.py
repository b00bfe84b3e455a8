"""`aft bench` at a terminal: a table for people, JSON for machines."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from model import bench
from model.checkpoint import Checkpoint
from model.runtime.choice import Wanted, open_runtime


def run(
    what: str,
    folder: Path,
    sizes: list[int],
    depths: list[int],
    threads: int,
    wanted: Wanted,
    json_file: Path | None,
) -> None:
    """Measure and print. ValueError for what the model cannot do."""
    checkpoint = Checkpoint(folder)
    config = checkpoint.config.model
    if (what == "images") != (checkpoint.config.kind == "image"):
        raise ValueError(f"{checkpoint.name} is a model of {checkpoint.config.kind}: it has no {what}")
    if config.max_model_len is not None and max([*depths, 0]) >= config.max_model_len:
        raise ValueError(f"{checkpoint.name} ends at {config.max_model_len} positions")
    slots = max(sizes) if what != "prefill" else 1
    runtime = open_runtime(checkpoint, slots, threads=threads, wanted=wanted)
    limits = bench.Limits(runtime, config)
    if what == "images":
        figures = bench.images(checkpoint, runtime, limits, sizes)
    elif what == "decode":
        figures = bench.decode(runtime, limits, config.vocab_size, sizes, depths)
    else:
        figures = bench.prefill(runtime, limits, config.vocab_size, sizes)
    facts = bench.machine(runtime)
    title = (
        f"{checkpoint.name}: {what}, {facts['runtime']} ({facts['isa']}, threads: {facts['threads']}), {facts['cpu']}"
    )
    table = Table("streams", "depth", "a second", "range", "limit", "of it", "bound by", title=title)
    for figure in figures:
        share = f"{figure.share:.0%}" if figure.share is not None else ""
        limit = f"{figure.limit:,.4g}" if figure.limit is not None else ""
        spread = f"{figure.low:,.5g} ... {figure.high:,.5g}"
        table.add_row(
            str(figure.streams), f"{figure.depth:,}", f"{figure.per_second:,.5g}", spread, limit, share, figure.bound
        )
    Console().print(table)
    if json_file:
        json_file.write_text(json.dumps(bench.as_json(runtime, figures), indent=1) + "\n")
