"""Bits per character: every character once, each with its own context, against a plain loop."""

from __future__ import annotations

import math

import checkpoints_for_tests as tiny
import numpy as np
import pytest
import torch

from model import evaluate, weights
from model.batches import Ids
from model.checkpoint import Checkpoint
from model.config import preset
from model.evaluate import by_depth, compare, windows
from model.network import Network
from model.runtime.eager import EagerRuntime
from model.tokenizer import Bytes

VOCAB = 17


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Tiny, of bytes, with logits that hang on all that precedes."""
    folder = tmp_path_factory.mktemp("evaluate") / "tiny"
    weights.save(tiny.random_network(preset("tiny", 258, max_half_life=500.0)), Bytes(), folder, {})
    return Checkpoint(folder)


@pytest.fixture(scope="module")
def network(checkpoint: Checkpoint) -> Network:
    """Its network."""
    return weights.load(checkpoint).freeze()


@pytest.fixture(scope="module")
def runtime(checkpoint: Checkpoint) -> EagerRuntime:
    """Its runtime."""
    return EagerRuntime(checkpoint, num_slots=1)


@pytest.fixture(scope="module")
def ids() -> Ids:
    """Random ids."""
    return np.random.default_rng(0).integers(0, VOCAB, 400).astype(np.int32)


@torch.no_grad()
def bits_after(network: Network, ids: Ids, begin: int, at: int) -> float:
    """Bits of ids[at] after ids[begin:at], which is all that the network sees."""
    logits = network(torch.from_numpy(ids[begin:at].astype(np.int64))[None])[0][0, -1].double()
    return -float(logits.log_softmax(-1)[int(ids[at])]) / math.log(2)


def test_context_matters(network: Network, ids: Ids) -> None:
    """One character more of context changes the bits by far more than the tolerance of the tests below."""
    changes = [abs(bits_after(network, ids, begin, 90) - bits_after(network, ids, begin + 1, 90)) for begin in (20, 60)]
    assert min(changes) > 1e-3


@pytest.mark.parametrize(
    ("start", "count", "length", "stride"),
    [(100, 60, 16, 4), (100, 61, 16, 5), (100, 7, 16, 16), (100, 3, 40, 8), (1, 50, 16, 8), (5, 40, 64, 1),
     (60, 150, 20, 3)],
)  # fmt: skip
def test_windows(network: Network, ids: Ids, start: int, count: int, length: int, stride: int) -> None:
    """A character's window ends where its stride ends, holds ``length`` inputs, and begins no earlier than the text."""
    part = ids[: start + count]
    expected, contexts = [], []
    for at in range(start, start + count):
        end = min(start + ((at - start) // stride + 1) * stride, len(part))
        begin = max(0, end - 1 - length)
        expected.append(bits_after(network, part, begin, at))
        contexts.append(at - begin)
        assert min(at, length - stride + 1) <= contexts[-1] <= length
    assert max(contexts) == min(length, start + count - 1)
    scored = windows(network, part, start, length, stride)
    assert scored.shape == (count,)
    np.testing.assert_allclose(scored, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("start", "count", "depth"),
    [(100, 60, 10), (100, 61, 7), (100, 30, 100), (100, 30, 50), (40, 41, 40), (100, 100, 1), (390, 10, 390),
     (300, 1, 5)],
)  # fmt: skip
def test_by_depth(network: Network, runtime: EagerRuntime, ids: Ids, start: int, count: int, depth: int) -> None:
    """A stream begins ``depth`` before a block of at most ``depth`` characters: each has depth to 2 depth before it."""
    part = ids[: start + count]
    expected = []
    for at in range(start, start + count):
        first = (at - start) // min(depth, count) * min(depth, count)
        begin = start + first - depth
        assert depth <= at - begin < 2 * depth
        expected.append(bits_after(network, part, begin, at))
    scored = by_depth(runtime, part, start, depth)
    assert scored.shape == (count,)
    np.testing.assert_allclose(scored, expected, atol=1e-5)


@pytest.mark.parametrize("piece", [1, 7, 16, 59])
def test_streams_in_pieces(
    network: Network, runtime: EagerRuntime, ids: Ids, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """The length of the pieces that carry the state does not show, and neither does how many rows go together."""
    whole = by_depth(runtime, ids[:200], 100, 30)
    monkeypatch.setattr(evaluate, "PIECE", piece)
    monkeypatch.setattr(evaluate, "ROWS", 3)
    np.testing.assert_allclose(by_depth(runtime, ids[:200], 100, 30), whole, atol=1e-5)
    np.testing.assert_allclose(windows(network, ids[:200], 100, 16, 4), windows(network, ids[:200], 100, 16, 4))


def test_a_scored_character_does_not_see_the_future(network: Network, runtime: EagerRuntime, ids: Ids) -> None:
    """Other characters after it: the same bits; another character itself: others."""
    changed = ids.copy()
    changed[150:] = (changed[150:] + 1) % VOCAB
    for before, after in (
        (windows(network, ids, 100, 16, 4), windows(network, changed, 100, 16, 4)),
        (by_depth(runtime, ids, 100, 20), by_depth(runtime, changed, 100, 20)),
    ):
        np.testing.assert_allclose(before[:50], after[:50], atol=1e-6)
        assert abs(before[50] - after[50]) > 1e-3


@pytest.mark.parametrize(("start", "count", "depth"), [(10, 100, 11), (0, 1, 1), (3, 3, 6)])
def test_a_depth_that_the_text_does_not_have(
    runtime: EagerRuntime, ids: Ids, start: int, count: int, depth: int
) -> None:
    """Not enough text before the first scored character: an error that says so, never a wrong number."""
    with pytest.raises(ValueError, match="depth"):
        by_depth(runtime, ids[: start + count], start, depth)


@pytest.mark.parametrize(("start", "count", "length", "stride"), [(100, 60, 4, 20), (3, 5, 1, 5), (0, 16, 16, 16)])
def test_no_context(network: Network, ids: Ids, start: int, count: int, length: int, stride: int) -> None:
    """A stride longer than the window, or the text's first character: an error that says so, never a wrong number."""
    with pytest.raises(ValueError, match=r"stride|start"):
        windows(network, ids[: start + count], start, length, stride)


def test_compare() -> None:
    """Means, the mean paired difference, and its error over whole blocks of 1,000."""
    rng = np.random.default_rng(1)
    overlapping = rng.random(3500)
    shift = np.repeat([0.1, 0.4, -0.2, 7.0], [1000, 1000, 1000, 500])
    row = compare(64, overlapping + shift, overlapping)
    assert row.depth == 64
    assert row.bits == pytest.approx(float((overlapping + shift).mean()))
    assert row.difference == pytest.approx((100 + 400 - 200 + 3500) / 3500)
    spread = math.sqrt(((0.1 - 0.1) ** 2 + (0.4 - 0.1) ** 2 + (-0.2 - 0.1) ** 2) / 2)
    assert row.standard_error == pytest.approx(spread / math.sqrt(3))


@pytest.mark.parametrize("count", [10, 999, 1000, 1999])
def test_compare_without_blocks(count: int) -> None:
    """Fewer than two blocks have no spread: the error is not a number, the difference is."""
    row = compare(8, np.full(count, 2.0), np.full(count, 1.5))
    assert (row.bits, row.difference) == (2.0, 0.5)
    assert math.isnan(row.standard_error)
