"""`aft bench`: what a runtime reaches in process, beside what this machine could reach at most and beside its peers.

A figure is the median of several runs, with their range. What is compared runs by turns, so that a machine that slows
down slows all of it. The limit of a decode step is the larger of two times: reading the weights and the streams' states
once, at the bandwidth that a loop measures on so many bytes, and the arithmetic at the rates that the kernel itself
reaches on data in the nearest cache.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.generate import values_only
from model.machine import facts
from model.runtime.base import Draw, Job, Runtime
from model.sampling import SamplingParams

REPEATS = 5
SECONDS = 0.4  # about how long one repeat takes
CHUNK = 512


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured rate."""

    what: str
    who: str  # the runtime, or the peer
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


def machine(runtime: Runtime, limits: Limits) -> dict[str, object]:
    """What the figures were measured on."""
    return {
        **facts(), "runtime": runtime.name, "isa": runtime.isa, "threads": runtime.threads,
        "state_bytes": runtime.state_bytes, "weight_bytes": runtime.weight_bytes,
        "flops_per_token": limits.operations, "peak_flops": limits.flops,
    }  # fmt: skip


def matrix_parameters(config: ModelConfig) -> int:
    """Weights of matrices: each is one multiplication and one addition a position."""
    mixing = 3 * config.dim**2 + config.dim * config.num_heads * config.keys_per_head
    return config.num_layers * (mixing + 2 * config.mlp_ratio * config.dim**2) + config.vocab_size * config.dim


def unread_parameters(config: ModelConfig) -> int:
    """Of these, what a position of a prompt does without: the head, and of the last layer all but keys and values."""
    return (2 + 2 * config.mlp_ratio) * config.dim**2 + config.vocab_size * config.dim


def window_operations(config: ModelConfig, layers: int) -> int:
    """Of a position: each key of a window is two multiplications and two additions a channel."""
    return 4 * layers * config.dim * config.window


class Limits:
    """Most steps a second that this machine allows."""

    def __init__(self, runtime: Runtime, config: ModelConfig) -> None:
        self._runtime, self._config = runtime, config
        windows = window_operations(config, config.num_layers)
        self.operations = 2 * matrix_parameters(config) + windows  # of one token
        self.flops = 0.0  # a second, at most; 0: not known
        if runtime.name == "native":
            from model.runtime.native._kernel import flops

            self.flops = flops(runtime.isa, runtime.threads)
            # windows are added up without the instruction that makes two products
            fused = flops("avx512", runtime.threads) if runtime.isa == "avx512bf16" else self.flops
            self._window_flops = fused / 2  # multiplied and added apart

    def decode(self, streams: int) -> tuple[float | None, str]:
        """Tokens a second of ``streams`` streams together, and what binds."""
        if not self.flops:
            return None, ""
        from model.runtime.native._kernel import bandwidth

        # last tokens are searched from the newest on, and seldom to the end
        size = self._runtime.weight_bytes + streams * (self._runtime.state_bytes - self._runtime.recent_bytes)
        reading = size / bandwidth(self._runtime.isa, self._runtime.threads, size)
        computing = streams * self._seconds_each(matrix_parameters(self._config), self._config.num_layers)
        return streams / max(reading, computing), "reading" if reading > computing else "arithmetic"

    def prefill(self) -> tuple[float | None, str]:
        """Tokens a second of a long prompt."""
        if not self.flops:
            return None, ""
        read = matrix_parameters(self._config) - unread_parameters(self._config)
        return 1 / self._seconds_each(read, self._config.num_layers - 1), "arithmetic"

    def _seconds_each(self, parameters: int, windows: int) -> float:
        return 2 * parameters / self.flops + window_operations(self._config, windows) / self._window_flops


class Contestant(Protocol):
    """What is measured: the runtime itself, or a peer of as many parameters."""

    name: str
    max_depth: int | None  # positions that it can have consumed before; None: any number

    def decode(self, streams: int, depth: int, steps: int) -> float:
        """Tokens a second of so many streams, each ``steps`` long, after so many positions."""

    def prefill(self, length: int) -> float:
        """Tokens a second of one prompt, up to the logits after it."""


class RuntimeContestant:
    """A runtime with its slots."""

    max_depth: int | None = None

    def __init__(self, runtime: Runtime, name: str = "") -> None:
        self.name, self.runtime = name or runtime.name, runtime
        self._reached: dict[int, bytes] = {}

    def _tokens(self, length: int) -> list[int]:
        tokens: list[int] = np.random.default_rng(0).integers(0, self.runtime.vocab_size, length).tolist()
        return tokens

    def _reach(self, depth: int) -> bytes:
        """The state after so many positions: reached once."""
        if depth not in self._reached:
            tokens = self._tokens(CHUNK)
            self.runtime.reset(0)
            for left in range(depth, 0, -CHUNK):
                self.runtime.run([Job(0, tokens[: min(left, CHUNK)])])
            self._reached[depth] = self.runtime.export(0)
        return self._reached[depth]

    def decode(self, streams: int, depth: int, steps: int) -> float:
        """Sampled at temperature 1."""
        self.runtime.restore(0, self._reach(depth))
        self.runtime.copy(0, range(1, streams))
        jobs = [Job(slot, [1], draw=Draw(SamplingParams(seed=slot), steps)) for slot in range(streams)]
        began = time.perf_counter()
        done = self.runtime.run(jobs)
        return sum(len(d.drawn) for d in done) / (time.perf_counter() - began)

    def prefill(self, length: int) -> float:
        """In chunks, as the service does."""
        tokens = self._tokens(length)
        self.runtime.reset(0)
        began = time.perf_counter()
        for at in range(0, length, CHUNK):
            self.runtime.run([Job(0, tokens[at : at + CHUNK], logits="last")])
        return length / (time.perf_counter() - began)


def peers(folder: Path, checkpoint: Checkpoint, slots: int, threads: int) -> tuple[list[Contestant], list[str]]:
    """Every ``FILE.py`` with an ``open_peer(checkpoint, slots, threads)``; and which are not installed, and why."""
    found: list[Contestant] = []
    missing = []
    for path in sorted(folder.glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            found.append(module.open_peer(checkpoint, slots, threads))
        except ImportError as error:
            missing.append(f"{path.stem}: {error}")
    return found, missing


def alternate(work: Sequence[Callable[[], float]]) -> list[list[float]]:
    """Rates of each, taken by turns, after one of each that warms up."""
    for each in work:
        each()
    rounds = [[each() for each in work] for _ in range(REPEATS)]
    return [list(rates) for rates in zip(*rounds, strict=True)]


def _figure(
    what: str, who: str, streams: int, depth: int, rates: Sequence[float], limit: tuple[float | None, str]
) -> Figure:
    return Figure(what, who, streams, depth, statistics.median(rates), min(rates), max(rates), *limit)


def decode(
    own: Contestant, others: Sequence[Contestant], limits: Limits, streams: Sequence[int], depths: Sequence[int]
) -> list[Figure]:
    """Tokens a second of so many streams after so many positions. Peers run beyond depth 0 with one stream only."""
    figures = []
    for count in streams:
        cases = [(own, depth) for depth in depths]
        for peer in others:
            reachable = [depth for depth in depths if peer.max_depth is None or depth <= peer.max_depth]
            cases += [(peer, depth) for depth in reachable if depth == 0 or count == 1]

        def run(who: Contestant, depth: int, count: int = count) -> Callable[[], float]:
            rate = who.decode(count, depth, 8)
            steps = max(8, int(rate * SECONDS / count))
            return lambda: who.decode(count, depth, steps)

        limit = limits.decode(count)
        for (who, depth), rates in zip(cases, alternate([run(*case) for case in cases]), strict=True):
            figures.append(_figure("decode", who.name, count, depth, rates, limit if who is own else (None, "")))
    return figures


def prefill(own: Contestant, others: Sequence[Contestant], limits: Limits, lengths: Sequence[int]) -> list[Figure]:
    """Prompt tokens a second, up to the logits of the last."""
    figures = []
    for length in lengths:
        cases = [own, *(peer for peer in others if peer.max_depth is None or length <= peer.max_depth)]
        rates = alternate([lambda who=who, length=length: who.prefill(length) for who in cases])  # type: ignore[misc]
        for who, each in zip(cases, rates, strict=True):
            limit = limits.prefill() if who is own else (None, "")
            figures.append(_figure("prefill", who.name, 1, length, each, limit))
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
            jobs = [Job(i, codec.prompt(), draw=Draw(params[i], size, automaton)) for i in range(count)]
            began = time.perf_counter()
            runtime.run(jobs)
            return count / (time.perf_counter() - began)

        limit, bound = limits.decode(count)
        rates = alternate([run])[0]
        figures.append(_figure("images", runtime.name, count, 0, rates, (limit / size if limit else None, bound)))
    return figures


def as_json(checkpoint: Checkpoint, runtime: Runtime, limits: Limits, figures: Sequence[Figure]) -> dict[str, object]:
    """For machines."""
    return {
        "model": checkpoint.name,
        "machine": machine(runtime, limits),
        "figures": [asdict(figure) for figure in figures],
    }
