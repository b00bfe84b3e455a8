"""What a step reads depends on (seed, step) alone; beginnings start with the begin symbol."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.batches import Ids, Mixture, Windows, encode
from model.tokenizer import Bytes, train_characters

LINES = "".join(f"{i:03d}\n\n" for i in range(200)).encode()  # every beginning of a paragraph is a number


def make_windows(raw: bytes = LINES, length: int = 16, begin_share: float = 0.0, seed: int = 0) -> Windows:
    """Windows over bytes."""
    return Windows(encode(raw, Bytes()), length, Bytes(), begin_share, seed)


def places(windows: Windows, row: torch.Tensor, ids: Ids) -> list[int]:
    """Where a window of targets stands in the corpus."""
    found = np.lib.stride_tricks.sliding_window_view(ids, windows.length)
    return np.flatnonzero((found == row.numpy()).all(1)).tolist()


def test_encode() -> None:
    """Bytes are their own ids; text goes through the tokenizer; both are int32."""
    assert encode(b"\x00a\xff", Bytes()).tolist() == [0, 97, 255]
    assert encode("aé", Bytes()).tolist() == [97, 0xC3, 0xA9]
    tokenizer = train_characters("ab c")
    assert encode("cab", tokenizer).tolist() == tokenizer.encode("cab")
    assert encode(b"ab", Bytes()).dtype == encode("ab", tokenizer).dtype == np.int32


def test_targets_are_the_inputs_one_later() -> None:
    """Without beginnings each window is length + 1 characters of the corpus, at places all over it."""
    windows = make_windows()
    inputs, targets = windows.batch(0, 500)
    assert inputs.shape == targets.shape == (500, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    raw = bytes(LINES)
    starts = [raw.find(bytes([*x.tolist(), int(y[-1])])) for x, y in zip(inputs, targets, strict=True)]
    assert min(starts) >= 0
    assert len(set(starts)) > 300  # 985 places, 500 draws: 391 expected


def test_both_ends_of_the_corpus_are_read() -> None:
    """The first window and the last one, whose last target is the last id, are drawn too."""
    ids = np.arange(20, dtype=np.int32)
    windows = Windows(ids, 16, Bytes(), 0.0, 0)
    inputs, targets = windows.batch(0, 200)
    assert set(inputs[:, 0].tolist()) == {0, 1, 2, 3}
    assert set(targets[:, -1].tolist()) == {16, 17, 18, 19}


def test_beginnings() -> None:
    """A window that begins reads: begin, then the text after an empty line; its first target is that text's first."""
    windows = make_windows(begin_share=1.0)
    inputs, targets = windows.batch(3, 200)
    assert bool((inputs[:, 0] == 256).all())
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    for row in targets:
        text = bytes(row.tolist())
        assert text[:3].isdigit(), text
        assert text[3:5] == b"\n\n"
        assert LINES.find(text) % 5 == 0
    assert len({bytes(row.tolist()) for row in targets}) > 100


def test_windows_that_follow_one_another() -> None:
    """Three steps of a row are one stretch of text, beginnings too; the fourth starts elsewhere."""
    windows = Windows(encode(LINES, Bytes()), 16, Bytes(), 0.5, 0, carry=3)
    steps = [windows.batch(step, 50) for step in range(4)]
    begun = steps[0][0][:, 0] == 256
    assert 0 < int(begun.sum()) < 50
    for row in range(50):
        read = torch.cat([steps[0][0][row], *(targets[row, -1:] for _, targets in steps[:1])])
        for inputs, targets in steps[1:3]:
            assert int(inputs[row, 0]) == int(read[-1])
            assert torch.equal(inputs[row, 1:], targets[row, :-1])
            read = torch.cat([read, targets[row]])
        assert bytes(read[1:].tolist()) in LINES
        assert len(read) == 49
    assert not bool((steps[1][0] == 256).any() | (steps[2][0] == 256).any())
    assert bool((steps[3][0] == 256).any())
    assert not torch.equal(steps[3][0][:, 0], steps[2][1][:, -1])


def test_the_last_window_that_follows_ends_with_the_corpus() -> None:
    """No row starts so late that its last window would lack characters."""
    ids = np.arange(40, dtype=np.int32)
    windows = Windows(ids, 12, Bytes(), 0.0, 0, carry=3)
    last = {int(windows.batch(step, 100)[1].max()) for step in range(2, 30, 3)}
    assert last == {39}
    with pytest.raises(ValueError, match="a window needs 49"):
        Windows(ids, 12, Bytes(), 0.0, 0, carry=4)


def test_share_of_beginnings() -> None:
    """About the share that was asked for, and the begin symbol nowhere else."""
    inputs, _ = make_windows(begin_share=0.25).batch(0, 4000)
    count = int((inputs[:, 0] == 256).sum())
    assert 840 < count < 1160  # 1,000 expected, standard deviation 27: a false alarm once in 10^8
    assert not bool((inputs[:, 1:] == 256).any())


@pytest.mark.parametrize(
    ("raw", "first"),
    [
        (b"one line\ntwo line\nred line\nlot line\n" * 9, {b"one", b"two", b"red", b"lot"}),  # no empty line: any line
        (b"no line end at all, " * 9, {b"no "}),  # no line: the corpus's own beginning
    ],
)
def test_beginnings_without_empty_lines(raw: bytes, first: set[bytes]) -> None:
    """The best beginning that a text has."""
    _, targets = make_windows(raw, begin_share=1.0).batch(0, 200)
    assert {bytes(row[:3].tolist()) for row in targets} == first


@pytest.mark.parametrize("place", range(30))
def test_a_line_end_at_any_place(place: int) -> None:
    """One empty line anywhere, the last window's border included: no window reaches beyond the corpus."""
    raw = bytearray(b"x" * 32)
    raw[place : place + 2] = b"\n\n"
    inputs, targets = make_windows(bytes(raw), length=8, begin_share=1.0).batch(0, 20)
    for x, y in zip(inputs, targets, strict=True):
        assert x[0] == 256
        assert places(make_windows(bytes(raw), length=8), y, np.frombuffer(bytes(raw), np.uint8).astype(np.int32))


def test_deterministic_by_seed_and_step() -> None:
    """The same (seed, step) gives the same batch whatever was drawn before; another seed or step gives another."""
    one, two = make_windows(begin_share=0.3, seed=5), make_windows(begin_share=0.3, seed=5)
    for step in range(7):
        two.batch(step, 3)
    torch.manual_seed(123)
    for step in (7, 0, 10**12):
        for a, b in zip(one.batch(step, 32), two.batch(step, 32), strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(one.batch(7, 32)[0], one.batch(8, 32)[0])
    assert not torch.equal(one.batch(7, 32)[0], make_windows(begin_share=0.3, seed=6).batch(7, 32)[0])


def test_negative_seed() -> None:
    """Any int is a seed."""
    negative = make_windows(seed=-1).batch(0, 32)[0]
    assert torch.equal(negative, make_windows(seed=-1).batch(0, 32)[0])
    assert not torch.equal(negative, make_windows(seed=1).batch(0, 32)[0])


def test_corpus_shorter_than_a_window() -> None:
    """length ids are too few, length + 1 are enough."""
    with pytest.raises(ValueError, match="has 16 ids, a window needs 17"):
        make_windows(b"x" * 16)
    inputs, targets = make_windows(b"x" * 16 + b"y").batch(0, 3)
    assert bytes(inputs[0].tolist()) == b"x" * 16
    assert bytes(targets[0].tolist()) == b"x" * 15 + b"y"


def test_two_corpora_in_a_step() -> None:
    """A share of the second's windows until some step, then the first alone; rows that continue stay in theirs."""
    own, extra = make_windows(b"ab" * 100), make_windows(b"xy" * 100)
    mixture = Mixture(own, extra, 0.25, until=3)
    for step in range(5):
        inputs, targets = mixture.batch(step, 8)
        assert inputs.shape == targets.shape == (8, 16)
        foreign = (inputs >= ord("x")).all(1)
        assert foreign.tolist() == [True] * (2 if step < 3 else 0) + [False] * (6 if step < 3 else 8)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
    long = [Windows(encode(raw, Bytes()), 4, Bytes(), 0.0, 0, carry=4) for raw in (b"ab" * 100, b"xy" * 100)]
    carried = Mixture(long[0], long[1], 0.5, until=6)
    assert [int((carried.batch(step, 8)[0] >= ord("x")).all(1).sum()) for step in range(12)] == [4] * 8 + [0] * 4
