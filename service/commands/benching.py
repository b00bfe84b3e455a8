"""`aft bench` at a terminal: a table for people, JSON for machines."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from model import bench
from model.checkpoint import Checkpoint
from model.runtime.choice import Wanted, open_runtime


@dataclass(frozen=True, slots=True)
class Wish:
    """What to measure, and where its figures go."""

    what: str  # decode, prefill or images
    sizes: list[int]  # streams, lengths of a prompt, or images
    depths: list[int] = field(default_factory=lambda: [0])
    threads: int = 0
    runtime: Wanted = "auto"
    device: str = "cpu"  # of the torch runtime
    peers: Path | None = None  # a folder of them
    json_file: Path | None = None


@contextmanager
def random_model(shape: str) -> Iterator[Path]:
    """A text model of bytes with random weights: LAYERSxCHANNELSxWINDOW, otherwise as the preset ``shipped``."""
    numbers = re.fullmatch(r"(\d+)x(\d+)x(\d+)", shape)
    if numbers is None:
        raise ValueError(f"a random model is LAYERSxCHANNELSxWINDOW, as 6x256x32, not {shape!r}")
    from model import weights
    from model.config import preset
    from model.network import Network
    from model.tokenizer import Bytes

    layers, dim, window = map(int, numbers.groups())
    config = preset("shipped", Bytes().vocab_size, num_layers=layers, dim=dim, window=window)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / shape
        weights.save(Network(config).eval(), Bytes(), path, {"corpus": "none", "steps": 0})
        yield path


def run(folder: Path, wish: Wish) -> None:
    """Measure and print. ValueError for what the model cannot do."""
    checkpoint = Checkpoint(folder)
    config, what = checkpoint.config.model, wish.what
    if (what == "images") != (checkpoint.config.kind == "image"):
        raise ValueError(f"{checkpoint.name} is a model of {checkpoint.config.kind}: it has no {what}")
    if config.max_model_len is not None and max([*wish.depths, 0]) >= config.max_model_len:
        raise ValueError(f"{checkpoint.name} ends at {config.max_model_len} positions")
    slots = max(wish.sizes) if what != "prefill" else 1
    runtime = open_runtime(checkpoint, slots, threads=wish.threads, wanted=wish.runtime, device=wish.device)
    limits = bench.Limits(runtime, config)
    others, missing = bench.peers(wish.peers, checkpoint, slots, runtime.threads) if wish.peers else ([], [])
    own = bench.RuntimeContestant(runtime)
    if what == "images":
        figures = bench.images(checkpoint, runtime, limits, wish.sizes)
    elif what == "decode":
        figures = bench.decode(own, others, limits, wish.sizes, wish.depths)
    else:
        figures = bench.prefill(own, others, limits, wish.sizes)
    console = Console()
    console.print(table(checkpoint.name, what, bench.machine(runtime, limits), figures))
    for peer in missing:
        console.print(f"not measured: {peer}", highlight=False)
    if wish.json_file:
        wish.json_file.write_text(json.dumps(bench.as_json(checkpoint, runtime, limits, figures), indent=1) + "\n")


def table(name: str, what: str, facts: dict[str, object], figures: list[bench.Figure]) -> Table:
    """For people."""
    title = f"{name}: {what}, {facts['runtime']} ({facts['isa']}, threads: {facts['threads']}), {facts['cpu']}"
    rows = Table("", "streams", "depth", "a second", "range", "limit", "of it", "bound by", title=title)
    for figure in figures:
        share = f"{figure.share:.0%}" if figure.share is not None else ""
        limit = f"{figure.limit:,.4g}" if figure.limit is not None else ""
        rows.add_row(
            figure.who, str(figure.streams), f"{figure.depth:,}", f"{figure.per_second:,.5g}",
            f"{figure.low:,.5g} ... {figure.high:,.5g}", limit, share, figure.bound,
        )  # fmt: skip
    return rows
