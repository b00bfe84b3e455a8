"""T x T at once against chunks: seconds of a training step of the mixing alone, by length.

    python benchmarks/crossover.py [--json FILE]

One layer of the first text model's shape (8 heads of 32 channels, window 16, decay), 8,192 positions in all, forward
and backward; the median of five runs, all forms in turn in each run.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from model import parallel
from model.bias import make_bias
from model.config import preset

POSITIONS = 8192
LENGTHS = (128, 256, 512, 1024, 2048)
CHUNKS = (64, 128, 256)
RUNS = 5


def seconds(length: int, chunk: int | None, dtype: torch.dtype) -> float:
    """One forward and backward pass; chunk None: at once."""
    config = preset("shipped", 100, window=16)
    bias = make_bias(config)
    parallel.AT_ONCE, parallel.CHUNK = (length, 128) if chunk is None else (0, chunk)
    shape = (POSITIONS // length, length, config.num_heads, config.dim // config.num_heads)
    k = torch.randn(shape, requires_grad=True)
    v = torch.randn(shape).to(dtype).requires_grad_()
    began = time.perf_counter()
    parallel.mix(k, v, bias).y.float().sum().backward()
    return time.perf_counter() - began


def main() -> None:
    """Print a table; keep the numbers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        for length in LENGTHS:
            forms: list[int | None] = [None, *(chunk for chunk in CHUNKS if chunk < length)]
            times: dict[int | None, list[float]] = {form: [] for form in forms}
            for form in forms:
                seconds(length, form, dtype)
            for _ in range(RUNS):
                for form in forms:
                    times[form].append(seconds(length, form, dtype))
            for form in forms:
                rows.append(
                    {
                        "type": str(dtype).removeprefix("torch."),
                        "length": length,
                        "form": "at once" if form is None else f"chunks of {form}",
                        "milliseconds": 1e3 * statistics.median(times[form]),
                        "least": 1e3 * min(times[form]),
                        "most": 1e3 * max(times[form]),
                    }
                )
                print(
                    "{type:9} {length:5} {form:14} {milliseconds:8.1f} ms ({least:.1f} ... {most:.1f})".format(
                        **rows[-1]
                    )
                )
    if arguments.json:
        arguments.json.write_text(json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
