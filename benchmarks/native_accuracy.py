"""How far the native runtime is from the equation in float64, beside the torch runtime: by source, and by depth.

    python benchmarks/native_accuracy.py [--json FILE] [--parts stream,sources,extremes,depth] [--threads 1]

``Exact`` is the network in float64, many positions at once, with a state from piece to piece: so that a million
positions are read through. Its mixing shares no code with what is measured; linear layers and norms are torch's. It can
round what the native runtime rounds, one kind at a time; then only the difference between float32 and float64 is left.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model import data, weights
from model.batches import encode
from model.bias import MAX_WINDOW_DECAY
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.network import Block, Network, TokenShift
from model.runtime.base import Job, Runtime
from model.runtime.eager import EagerRuntime
from model.runtime.native.runtime import NativeRuntime
from model.sampling import log_softmax
from model.tokenizer import Bytes

SHIPPED = Path(__file__).parent.parent / "checkpoints" / "shakespeare"
STREAM = 100_000  # characters of the test split in one stream
SOURCES = 4096  # positions of the table by source
EXTREMES = 2000  # positions of the table of extreme keys
DEPTHS = (100, 1_000, 10_000, 100_000, 1_000_000)
LAST = 64  # positions compared before each depth
PIECE, CHUNK = 2048, 128  # positions of one call, and of one product with exp(b)
LARGEST_KEY = 100.0
REACH = 20_000  # positions that float64 reads of the shipped model's past: 31 of its longest half-life, 645

Figures = dict[str, Any]


class Rounding(NamedTuple):
    """Which numbers are rounded to bf16, as the native runtime rounds them; weights are stored rounded."""

    inputs: bool = False  # what a matrix is multiplied with
    window: bool = False  # exp(k) and exp(k) v of the keys in the window


NONE, ALL = Rounding(), Rounding(inputs=True, window=True)


def bf16(x: Tensor) -> Tensor:
    """Float64 rounded to 8 bits, to nearest even, of any size: 45 bits of 52 go."""
    bits = x.contiguous().view(torch.int64)
    return (bits + ((bits >> 45 & 1) + (2**44 - 1)) & -(2**45)).view(torch.float64)


class Past(NamedTuple):
    """What a layer keeps between pieces: exp(k) and exp(k) v side by side, M = 2 C."""

    window: Tensor  # (s, H, M) of the last s keys, oldest first
    far: Tensor  # (H, M) the sum over the keys that left the window, decayed


class Exact:
    """A network in float64 and where its stream stands; bias ``relative`` or ``none``, with and without decay.

    exp(k) is taken as it is: to |k| = 300 nothing leaves the range of float64, so there is no frame.
    """

    def __init__(self, network: Network, rounding: Rounding = NONE, stretch: float = 0.0) -> None:
        """``stretch``: scale each layer's key matrix until the largest key of the first piece is this large."""
        self.network, self.rounding, self.stretch = network.double().requires_grad_(False), rounding, stretch
        config = network.config
        if config.bias not in ("none", "relative"):
            raise ValueError(f"no float64 form of the bias {config.bias!r} here")
        self.heads, self.size, self.vocab = config.num_heads, config.window, config.vocab_size
        width = 2 * config.dim // config.num_heads
        empty = torch.zeros(self.size + 1, self.heads, width, dtype=torch.float64)
        self.pasts = [Past(empty[1:], empty[0]) for _ in network.blocks]
        self._last: dict[TokenShift, Tensor] = {}  # what each saw last

    def logprobs(self, tokens: Sequence[int] | Tensor) -> Tensor:
        """Consume tokens; log-probabilities of what follows each: (T, V)."""
        return self._head(self._hidden(torch.as_tensor(tokens))).log_softmax(-1)

    def skip(self, tokens: Sequence[int] | Tensor) -> None:
        """Consume tokens, without the head."""
        for piece in torch.as_tensor(tokens).split(PIECE):
            self._hidden(piece)

    def targets(self, tokens: Sequence[int], targets: Sequence[int]) -> Tensor:
        """Consume tokens; the log-probability of each target: (T,)."""
        pieces = zip(torch.tensor(tokens).split(PIECE), torch.tensor(targets).split(PIECE), strict=True)
        return torch.cat([self.logprobs(x).gather(1, y[:, None])[:, 0] for x, y in pieces])

    def _input(self, x: Tensor) -> Tensor:
        return bf16(x) if self.rounding.inputs else x

    def _shifted(self, shift: TokenShift | None, x: Tensor) -> Tensor:
        """Each position mixed with the one before, which may be the last of the call before: (T, D)."""
        if shift is None:
            return x
        y: Tensor = shift(x[None], self._last.get(shift, torch.zeros_like(x[0]))[None])
        self._last[shift] = x[-1]
        return self._input(y[0])

    def _head(self, x: Tensor) -> Tensor:
        y: Tensor = self.network.head(self._input(self.network.norm(x)))
        return y

    def _hidden(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.network.embed(tokens)
        for layer, block in enumerate(self.network._blocks):
            x = self._block(layer, block, x)
        return x

    def _block(self, layer: int, block: Block, x: Tensor) -> Tensor:
        aft, mlp = block.aft, block.mlp
        z = self._shifted(block.shift_aft, self._input(block.norm_aft(x)))
        if self.stretch:
            aft.k.weight.mul_(self.stretch / aft.k(z).abs().max())
        e, v = (part.unflatten(1, (self.heads, -1)) for part in (aft.k(z).exp(), aft.v(z)))
        y = self._mix(layer, block, torch.cat([e, e * v], 2))
        x = x + aft.o(self._input(aft.q(z).sigmoid() * y.flatten(1)))
        hidden = mlp.up(self._shifted(block.shift_mlp, self._input(block.norm_mlp(x))))
        hidden = F.relu(hidden).square() if mlp.squared_relu else F.gelu(hidden, approximate="tanh")
        after: Tensor = x + mlp.down(self._input(hidden))
        return after

    def _mix(self, layer: int, block: Block, x: Tensor) -> Tensor:
        """The weighted averages of exp(k) and exp(k) v (T, H, M) -> (T, H, C)."""
        if self.rounding.window and self.size:
            x = bf16(x)
        chunk = max(CHUNK, self.size)
        whole = len(x) // chunk * chunk
        parts = [(x[:whole], chunk), (x[whole:], len(x) - whole)]
        sums = torch.cat([self._sums(layer, block, part, length) for part, length in parts if len(part)])
        den, num = sums.chunk(2, 2)
        return num / den

    def _sums(self, layer: int, block: Block, x: Tensor, length: int) -> Tensor:
        """Sums over the past, in chunks of ``length`` positions: (T, H, M) -> (T, H, M)."""
        logs, decay = self._logs(block, length)
        past, size = self.pasts[layer], self.size
        padded = torch.cat([past.window, x])
        spans = padded.unfold(0, size + length, length).transpose(2, 3)  # (Q, H, s + L, M)
        offsets = torch.arange(length)[:, None] + size - torch.arange(size + length)
        near = torch.where(offsets >= 0, logs[:, offsets.clamp(min=0)].exp(), 0.0) @ spans  # (Q, H, L, M)
        ages = torch.arange(size + length - 1, -1, -1)
        leave = torch.where(ages >= size, (-decay[:, None] * ages).exp(), 0.0)  # (H, s + L)
        left = (leave[:, None] @ spans)[:, :, 0]  # (Q, H, M)
        far, fars = past.far, []
        for row in left:
            fars.append(far)
            far = far * (-decay * length).exp()[:, None] + row
        fade = (-decay[:, None] * torch.arange(1, length + 1)).exp()[:, :, None]
        self.pasts[layer] = Past(padded[len(padded) - size :], far)
        return (near + fade * torch.stack(fars)[:, :, None]).transpose(1, 2).flatten(0, 1)

    def _logs(self, block: Block, length: int) -> tuple[Tensor, Tensor]:
        """B by offset (H, s + L), and lambda (H,)."""
        own = dict(block.aft.bias.named_parameters())
        decay = torch.zeros(self.heads, dtype=torch.float64)
        if "log_decay" in own:
            decay = own["log_decay"].exp().clamp(max=MAX_WINDOW_DECAY / max(self.size, 1))
        logs = -decay[:, None] * torch.arange(self.size + length)
        if self.size:
            logs[:, : self.size] += own["w"]
        return logs, decay


# --- models and runtimes -----------------------------------------------------------------------------------------


def random_checkpoint(folder: Path, config: ModelConfig, change: Callable[[Network], object] | None = None) -> Path:
    """Random weights that count: matrices eight times as large as training starts with, window biases N(0, 1)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network(config)
        for name, parameter in network.named_parameters():
            if name.endswith("bias.w"):
                parameter.data = torch.randn_like(parameter)
            elif parameter.ndim == 2:
                parameter.data *= 8
    if change is not None:
        change(network.eval())
    weights.save(network, Bytes(), folder, {"corpus": "none", "steps": 0})
    return folder


def without_end(source: Checkpoint) -> Checkpoint:
    """A model without decay that goes on beyond where it may: to see what its end prevents."""
    model = source.config.model.model_copy(update={"max_model_len": None})
    source.config = source.config.model_copy(update={"model": model})
    return source


def config_of(bias: str, *, decay: bool, layers: int) -> ModelConfig:
    """A small model of bytes, its heads as wide as the shipped model's."""
    shape = {"vocab_size": 258, "dim": 64, "num_heads": 2, "num_layers": layers, "bias": bias}
    ends = {} if decay else {"max_model_len": 100_000}
    return ModelConfig.model_validate({**shape, "window": 16 if bias != "none" else 0, "decay": decay, **ends})


def random_tokens(count: int, vocab: int = 256) -> list[int]:
    """Uniform ids."""
    tokens: list[int] = np.random.default_rng(0).integers(0, vocab, count).tolist()
    return tokens


def ran(runtime: Runtime, tokens: Sequence[int]) -> Tensor:
    """Consume tokens; log-probabilities of what follows each, float64 (T, V)."""
    rows = []
    for at in range(0, len(tokens), PIECE):
        (done,) = runtime.run([Job(0, tokens[at : at + PIECE], logits="all")])
        assert done.logits is not None
        rows.append(log_softmax(done.logits))
    return torch.from_numpy(np.concatenate(rows))


def scored(runtime: Runtime, tokens: Sequence[int], targets: Sequence[int]) -> Tensor:
    """Consume tokens; the log-probability of each target."""
    found: list[float] = []
    for at in range(0, len(tokens), PIECE):
        (done,) = runtime.run([Job(0, tokens[at : at + PIECE], targets[at : at + PIECE])])
        found += done.target_logprobs
    return torch.tensor(found, dtype=torch.float64)


def difference(a: Tensor, b: Tensor) -> Figures:
    """Absolute differences of log-probabilities."""
    error = (a - b).abs().flatten()
    median, high = np.quantile(error.numpy(), [0.5, 0.999])
    return {"largest": float(error.max()), "p99.9": float(high), "mean": float(error.mean()), "median": float(median)}


# --- the parts ---------------------------------------------------------------------------------------------------


def stream() -> Figures:
    """The shipped model over one stream of the test split, by each runtime and in float64."""
    source = Checkpoint(SHIPPED)
    text = data.split(data.load("shakespeare")).test[:STREAM]
    ids = [source.tokenizer.begin, *encode(text, source.tokenizer).tolist()]
    tokens, targets = ids[:-1], ids[1:]
    found = {
        "native": scored(NativeRuntime(source, 1, match=False), tokens, targets),
        "torch": scored(EagerRuntime(source, 1, match=False), tokens, targets),
        "float64": Exact(weights.load(source)).targets(tokens, targets),
    }
    pairs = (("native", "torch"), ("native", "float64"), ("torch", "float64"))
    return {
        "characters": len(text),
        "bits_per_character": {name: float(-row.sum()) / math.log(2) / len(text) for name, row in found.items()},
        "signed_mean_native_minus_torch": float((found["native"] - found["torch"]).mean()),
        "deviation_native_minus_torch": float((found["native"] - found["torch"]).std()),
        "log_probability_of_next_character": {f"{a} - {b}": difference(found[a], found[b]) for a, b in pairs},
    }


def by_source(source: Checkpoint, tokens: Sequence[int]) -> Figures:
    """All log-probabilities at all positions against float64: both runtimes, and float64 with one rounding each."""
    exact = Exact(weights.load(source)).logprobs(tokens)
    same = Exact(weights.load(source), ALL).logprobs(tokens)
    native = ran(NativeRuntime(without_end(source), 1, match=False), tokens)
    return {
        "positions": len(tokens),
        "largest_log_probability": float(exact.abs().max()),
        "torch": difference(ran(EagerRuntime(source, 1, match=False), tokens), exact),
        "native": difference(native, exact),
        "float64, inputs rounded": difference(
            Exact(weights.load(source), Rounding(inputs=True)).logprobs(tokens), exact
        ),
        "float64, window rounded": difference(
            Exact(weights.load(source), Rounding(window=True)).logprobs(tokens), exact
        ),
        "float64, both rounded": difference(same, exact),
        "native - float64, both rounded": difference(native, same),
    }


def sources() -> Figures:
    """The shipped weights on the test split's text, and random weights of the same shape on random ids."""
    source = Checkpoint(SHIPPED)
    text = data.split(data.load("shakespeare")).test[: SOURCES - 1]
    result = {"shipped": by_source(source, [source.tokenizer.begin, *encode(text, source.tokenizer).tolist()])}
    with tempfile.TemporaryDirectory() as folder:
        config = source.config.model.model_copy(update={"vocab_size": 258})
        path = random_checkpoint(Path(folder) / "m", config)
        result["random"] = by_source(Checkpoint(path), random_tokens(SOURCES))
    return result


def extreme_checkpoint(folder: Path, w: float, *, decay: bool) -> Path:
    """One layer: keys to +-100 on the first of ``random_tokens``, and one window bias everywhere."""

    def change(network: Network) -> None:
        for block in network._blocks:
            block.aft.bias.get_parameter("w").data.fill_(w)
        Exact(network, stretch=LARGEST_KEY).skip(random_tokens(EXTREMES))

    return random_checkpoint(folder, config_of("relative", decay=decay, layers=1), change)


def extremes() -> Figures:
    """One layer with keys to +-100 and a window bias of -20 to 20: logits against float64, relative to the largest."""
    result: Figures = {}
    tokens = random_tokens(EXTREMES)
    for decay in (True, False):
        for w in (-20.0, 0.0, 20.0):
            with tempfile.TemporaryDirectory() as folder:
                source = Checkpoint(extreme_checkpoint(Path(folder) / "m", w, decay=decay))
                row = by_source(source, tokens)
            result[f"{'decay' if decay else 'no decay'}, w = {w:g}"] = row
    return result


def exact_by_depth(source: Checkpoint, tokens: Sequence[int], rounding: Rounding, reach: int | None) -> list[Tensor]:
    """Float64 rows before each depth: from the first position, or, with decay, from ``reach`` positions before."""
    if reach is None:
        exact = Exact(weights.load(source), rounding)
        return walked(tokens, exact.logprobs, exact.skip)
    rows = []
    for depth in reached(tokens):
        exact = Exact(weights.load(source), rounding)
        exact.skip(tokens[max(0, depth - LAST - reach) : depth - LAST])
        rows.append(exact.logprobs(tokens[depth - LAST : depth]))
    return rows


def runtime_by_depth(runtime: Runtime, tokens: Sequence[int]) -> list[Tensor]:
    """A runtime's rows before each depth, of one stream."""

    def skip(part: Sequence[int]) -> None:
        for at in range(0, len(part), PIECE):
            runtime.run([Job(0, part[at : at + PIECE])])

    return walked(tokens, lambda part: ran(runtime, part), skip)


def reached(tokens: Sequence[int]) -> list[int]:
    """The depths that so many tokens have."""
    return [depth for depth in DEPTHS if depth <= len(tokens)]


def walked(
    tokens: Sequence[int], compared: Callable[[Sequence[int]], Tensor], skip: Callable[[Sequence[int]], None]
) -> list[Tensor]:
    """Rows of the LAST positions before each depth, all in one walk."""
    rows, at = [], 0
    for depth in reached(tokens):
        skip(tokens[at : depth - LAST])
        rows.append(compared(tokens[depth - LAST : depth]))
        at = depth
    return rows


def by_depth(source: Checkpoint, tokens: Sequence[int], *, torch_too: bool, reach: int | None = None) -> Figures:
    """Differences at the last positions before each depth of one stream."""
    exact = exact_by_depth(source, tokens, NONE, reach)
    same = exact_by_depth(source, tokens, ALL, reach)
    native = runtime_by_depth(NativeRuntime(source, 1, match=False), tokens)
    pairs = {"native - float64": (native, exact), "native - float64, both rounded": (native, same)}
    if torch_too:
        pairs["torch - float64"] = (runtime_by_depth(EagerRuntime(source, 1, match=False), tokens), exact)
    if reach is not None:  # what an earlier start would have changed
        end = len(tokens) - LAST
        earlier = Exact(weights.load(source))
        earlier.skip(tokens[end - reach * 3 // 2 : end])
        pairs["float64 - float64 from earlier"] = (exact[-1:], [earlier.logprobs(tokens[end:])])
    return {
        name: {depth: difference(x, y) for depth, x, y in zip(reached(tokens)[-len(a) :], a, b, strict=True)}
        for name, (a, b) in pairs.items()
    }


def depth() -> Figures:
    """A million positions: two layers of 64 channels with and without decay, and the shipped model."""
    result: Figures = {}
    tokens = random_tokens(DEPTHS[-1])
    for name, bias, decay in (
        ("relative, decay", "relative", True),
        ("simple, no decay", "none", False),
    ):
        with tempfile.TemporaryDirectory() as folder:
            source = Checkpoint(random_checkpoint(Path(folder) / "m", config_of(bias, decay=decay, layers=2)))
            result[name] = by_depth(without_end(source), tokens, torch_too=True)
    source = Checkpoint(SHIPPED)
    text = data.load("shakespeare")[-DEPTHS[-1] :]
    ids = [source.tokenizer.begin, *encode(text, source.tokenizer).tolist()][: DEPTHS[-1]]
    result["shipped"] = by_depth(source, ids, torch_too=False, reach=REACH)
    return result


PARTS = {"stream": stream, "sources": sources, "extremes": extremes, "depth": depth}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    for name in arguments.parts.split(","):
        began = time.perf_counter()
        result = PARTS[name]()
        print(f"{name} ({time.perf_counter() - began:.0f} s)", json.dumps(result, indent=1), flush=True)
        if arguments.json:  # other parts of the file stay
            kept = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
            arguments.json.write_text(json.dumps({**kept, name: result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
