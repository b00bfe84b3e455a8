"""Decode steps of the torch runtime by streams, and the prefill of 512 tokens, in process.

python benchmarks/torch_steps.py THREADS
"""

import sys
import time
from pathlib import Path

import torch

from model.checkpoint import Checkpoint
from model.runtime.base import Draw, Job
from model.runtime.eager import EagerRuntime
from model.sampling import SamplingParams

SLOTS, STEPS = 64, 30


def main() -> None:
    """Print a row a number of streams."""
    torch.set_num_threads(int(sys.argv[1]))
    runtime = EagerRuntime(Checkpoint(Path("checkpoints/shakespeare")), SLOTS)
    params = SamplingParams(seed=5)
    for streams in (1, 16, 64):
        for count in (3, STEPS):  # the first call warms up
            began = time.perf_counter()
            runtime.run([Job(slot, [5], draw=Draw(params, count)) for slot in range(streams)])
            step = (time.perf_counter() - began) / count
        print(f"{streams:3} streams: {1e3 * step:.1f} ms a step, {streams / step:,.0f} tokens/s")
    began = time.perf_counter()
    runtime.run([Job(0, [5] * 512)])
    print(f"prefill of 512: {512 / (time.perf_counter() - began):,.0f} tokens/s")


if __name__ == "__main__":
    main()
