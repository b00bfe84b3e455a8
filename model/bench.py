"""`aft bench`: what a runtime reaches in process, beside what this machine could reach at most.

A figure is the median of several runs, with their range. The limit of a decode step is the larger of two times: reading
the weights and the streams' states once, at the bandwidth that a loop measures on so many bytes, and the products at
the rate that the kernel itself reaches on data in the nearest cache.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.generate import values_only
from model.runtime.base import Draw, Job, Runtime
from model.sampling import SamplingParams

REPEATS = 5
SECONDS = 0.4  # about how long one repeat takes
CHUNK = 512


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured rate."""

    what: str
    streams: int
    depth: int  # positions consumed before
    per_second: float  # median
    low: float
    high: float
    limit: float | None  # per second
    bound: str  # what the limit is: weights and states, or arithmetic

    @property
    def share(self) -> float | None:
        """Of the limit."""
        return self.per_second / self.limit if self.limit else None


def machine(runtime: Runtime) -> dict[str, object]:
    """What the figures were measured on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model")]
        cpu = " ".join(reversed(names[:2]))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    return {
        "cpu": cpu, "runtime": runtime.name, "isa": runtime.isa, "threads": runtime.threads,
        "state_bytes": runtime.state_bytes, "weight_bytes": runtime.weight_bytes, "commit": commit,
        "python": platform.python_version(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def matrix_parameters(config: ModelConfig) -> int:
    """Weights of matrices: each is one multiplication and one addition a position."""
    mixing = 3 * config.dim**2 + config.dim * config.num_heads * config.keys_per_head
    return config.num_layers * (mixing + 2 * config.mlp_ratio * config.dim**2) + config.vocab_size * config.dim


class Limits:
    """Most steps a second that this machine allows."""

    def __init__(self, runtime: Runtime, config: ModelConfig) -> None:
        self._runtime, self._flops_each = runtime, 2 * matrix_parameters(config)
        self._flops = 0.0
        if runtime.name == "native":
            from model.runtime.native._kernel import flops

            self._flops = flops(runtime.isa, runtime.threads)

    def decode(self, streams: int) -> tuple[float | None, str]:
        """Tokens a second of ``streams`` streams together, and what binds."""
        if not self._flops:
            return None, ""
        from model.runtime.native._kernel import bandwidth

        size = self._runtime.weight_bytes + streams * self._runtime.state_bytes
        reading = size / bandwidth(self._runtime.isa, self._runtime.threads, size)
        computing = streams * self._flops_each / self._flops
        return streams / max(reading, computing), "reading" if reading > computing else "arithmetic"

    def prefill(self) -> tuple[float | None, str]:
        """Tokens a second."""
        return (self._flops / self._flops_each, "arithmetic") if self._flops else (None, "")


def repeated(work: Callable[[], float]) -> list[float]:
    """Rates of some runs, after one that warms up."""
    work()
    return [work() for _ in range(REPEATS)]


def _figure(what: str, streams: int, depth: int, rates: Sequence[float], limit: tuple[float | None, str]) -> Figure:
    return Figure(what, streams, depth, statistics.median(rates), min(rates), max(rates), *limit)


def reach(runtime: Runtime, depth: int, vocab: int) -> None:
    """Bring slot 0 to a position and copy it to all others."""
    tokens = np.random.default_rng(0).integers(0, vocab, CHUNK).tolist()
    runtime.reset(0)
    left = depth
    while left > 0:
        runtime.run([Job(0, tokens[: min(left, CHUNK)])])
        left -= CHUNK
    runtime.copy(0, range(1, runtime.num_slots))


def decode(runtime: Runtime, limits: Limits, vocab: int, streams: Sequence[int], depths: Sequence[int]) -> list[Figure]:
    """Tokens a second of so many streams, sampled at temperature 1, after so many positions."""
    figures = []
    for depth in depths:
        reach(runtime, depth, vocab)
        start = runtime.export(0)
        for count in streams:

            def run(burst: int, count: int = count, start: bytes = start) -> float:
                for slot in range(count):
                    runtime.restore(slot, start)
                jobs = [Job(slot, [1], draw=Draw(SamplingParams(seed=slot), burst)) for slot in range(count)]
                began = time.perf_counter()
                done = runtime.run(jobs)
                return sum(len(d.drawn) for d in done) / (time.perf_counter() - began)

            burst = max(8, int(run(8) * SECONDS / count))
            figures.append(_figure("decode", count, depth, repeated(lambda n=burst: run(n)), limits.decode(count)))  # type: ignore[misc]
    return figures


def prefill(runtime: Runtime, limits: Limits, vocab: int, lengths: Sequence[int]) -> list[Figure]:
    """Prompt tokens a second, up to the logits of the last."""
    figures = []
    for length in lengths:
        tokens = np.random.default_rng(0).integers(0, vocab, length).tolist()

        def run(tokens: list[int] = tokens) -> float:
            runtime.reset(0)
            began = time.perf_counter()
            for at in range(0, len(tokens), CHUNK):
                runtime.run([Job(0, tokens[at : at + CHUNK], logits="last")])
            return len(tokens) / (time.perf_counter() - began)

        figures.append(_figure("prefill", 1, length, repeated(run), limits.prefill()))
    return figures


def images(checkpoint: Checkpoint, runtime: Runtime, limits: Limits, batches: Sequence[int]) -> list[Figure]:
    """Whole images a second, so many side by side."""
    codec = checkpoint.pixels
    automaton, size = values_only(codec), codec.raster.size
    figures = []
    for count in batches:

        def run(count: int = count) -> float:
            for slot in range(count):
                runtime.reset(slot)
            params = [SamplingParams(seed=slot) for slot in range(count)]
            jobs = [Job(i, [codec.condition()], draw=Draw(params[i], size, automaton)) for i in range(count)]
            began = time.perf_counter()
            runtime.run(jobs)
            return count / (time.perf_counter() - began)

        limit, bound = limits.decode(count)
        rates = repeated(run)
        figures.append(_figure("images", count, 0, rates, (limit / size if limit else None, bound)))
    return figures


def as_json(runtime: Runtime, figures: Sequence[Figure]) -> dict[str, object]:
    """For machines."""
    return {"machine": machine(runtime), "figures": [asdict(figure) for figure in figures]}
