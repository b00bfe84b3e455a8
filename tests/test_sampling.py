"""A draw: Philox's known answers, every step of the order against plain loops, and draws against their distribution."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model import sampling
from model.sampling import SamplingParams, draw, likeliest, log_softmax, penalised, philox, truncate, uniform

ANSWERS = [  # Random123's kat_vectors: counter, key, result
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
NUMBERS = st.floats(-30, 30, width=32)
ROWS = st.lists(NUMBERS | st.integers(-3, 3).map(float), min_size=1, max_size=12)  # whole numbers make ties


def words(text: str) -> tuple[int, ...]:
    """Hexadecimal words."""
    return tuple(int(word, 16) for word in text.split())


def unmarked(size: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Nothing drawn, nothing seen."""
    return np.zeros(size, np.int32), np.zeros(size, np.bool_)


@pytest.mark.parametrize(("counter", "key", "result"), ANSWERS)
def test_philox_gives_the_known_answers(counter: str, key: str, result: str) -> None:
    """Philox4x32-10 is the published one."""
    assert philox(words(counter), words(key)) == words(result)  # type: ignore[arg-type]


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_uniform_is_53_bits_of_philox(seed: int, sample: int, position: int) -> None:
    """Counter = (position, sample, 0), key = seed, in two's complement; the result lies in [0, 1)."""
    key = int.from_bytes(seed.to_bytes(8, "little", signed=True), "little")
    counter = (position % 2**32, position // 2**32, sample, 0)
    high, low, _, _ = philox(counter, (key % 2**32, key // 2**32))
    value = uniform(seed, sample, position)
    assert value == (high * 2**32 + low) // 2**11 / 2**53
    assert 0 <= value < 1


def test_uniform_depends_on_each_of_its_arguments() -> None:
    """Other seeds (negative ones too, and ones equal in 32 bits), samples and positions: other numbers."""
    arguments = [
        (0, 0, 0), (1, 0, 0), (-1, 0, 0), (2**32, 0, 0), (-(2**32), 0, 0), (-(2**63), 0, 0), (2**63 - 1, 0, 0),
        (0, 1, 0), (0, 0, 1), (0, 0, 2**32),
    ]  # fmt: skip
    assert len({uniform(*each) for each in arguments}) == len(arguments)


def test_uniform_fills_the_interval() -> None:
    """16,384 numbers in 64 equal bins: chi-square below its 1 - 1e-9 quantile (63 degrees: 156)."""
    values = np.array([uniform(-5, 3, position) for position in range(16_384)])
    counts = np.bincount((values * 64).astype(int), minlength=64)
    assert ((counts - 256) ** 2 / 256).sum() < 156


@given(ROWS)
def test_log_softmax(row: list[float]) -> None:
    """Float64 logarithms of exp(x) / sum exp(x), row by row."""
    total = math.fsum(math.exp(x) for x in row)
    expected = [x - math.log(total) for x in row]
    given_rows = np.array([row, [x + 1000 for x in row]], np.float32)
    assert log_softmax(given_rows)[0] == pytest.approx(expected, abs=1e-12)
    assert np.exp(log_softmax(given_rows)).sum(-1) == pytest.approx([1, 1], abs=1e-12)


@st.composite
def penalties(draw_of: st.DrawFn) -> tuple[list[float], list[int], list[bool], SamplingParams]:
    """A row, counts, seen and parameters."""
    row = draw_of(ROWS)
    counts = draw_of(st.lists(st.integers(0, 4), min_size=len(row), max_size=len(row)))
    seen = [bool(count) or draw_of(st.booleans()) for count in counts]
    params = SamplingParams(
        frequency_penalty=draw_of(st.sampled_from([0.0, 0.5, -1.25])),
        presence_penalty=draw_of(st.sampled_from([0.0, 0.75, -2.0])),
        repetition_penalty=draw_of(st.sampled_from([1.0, 1.3, 0.5])),
        logit_bias=draw_of(
            st.dictionaries(st.integers(0, len(row) - 1), st.sampled_from([-100.0, -99.5, 2.5, 100.0]), max_size=4)
        ),
    )
    return row, counts, seen, params


@given(penalties())
def test_penalties_and_bias_by_a_loop(case: tuple[list[float], list[int], list[bool], SamplingParams]) -> None:
    """Repetition first, then frequency and presence, then the bias; -100 forbids; the logits stay as they were."""
    row, counts, seen, params = case
    expected = []
    for token, score in enumerate(np.float32(row).tolist()):
        if seen[token]:
            score = score / params.repetition_penalty if score > 0 else score * params.repetition_penalty
        score -= params.frequency_penalty * counts[token]
        if counts[token]:
            score -= params.presence_penalty
        bias = params.logit_bias.get(token, 0.0)
        expected.append(-math.inf if bias <= -100 else score + bias)
    logits = np.float32(row)
    scores = penalised(logits, params, np.int32(counts), np.array(seen))
    assert scores.dtype == np.float64
    assert scores.tolist() == pytest.approx(expected, rel=1e-14, abs=1e-12)
    assert logits.tolist() == np.float32(row).tolist()


def plain_truncate(scores: list[float], params: SamplingParams) -> list[float]:
    """Temperature, then top-k, top-p and min-p by loops, each on what the one before has left."""
    largest = max(scores)
    weights = [math.exp((score - largest) / params.temperature) for score in scores]
    ranked = sorted(range(len(scores)), key=lambda token: (-weights[token], token))
    ranked = [token for token in ranked if weights[token] > 0]
    if params.top_k:
        ranked = ranked[: params.top_k]
    if params.top_p < 1:
        total, reached, kept = sum(weights[token] for token in ranked), 0.0, []
        for token in ranked:
            if kept and reached >= params.top_p * total:
                break
            kept.append(token)
            reached += weights[token]
        ranked = kept
    if params.min_p:
        ranked = [token for token in ranked if weights[token] >= params.min_p * weights[ranked[0]]]
    return [weights[token] if token in ranked else 0.0 for token in range(len(scores))]


# half-integers: their sums and products stay away from the thresholds, or meet them exactly
SCORES = st.lists(st.integers(-12, 12).map(lambda n: n / 2) | st.just(-math.inf), min_size=1, max_size=12).filter(
    lambda row: max(row) > -math.inf
)


@settings(max_examples=300)
@given(
    SCORES,
    st.sampled_from([0.01, 0.7, 1.0, 2.0]),
    st.integers(0, 14),
    st.sampled_from([1e-9, 0.123, 0.517, 0.9, 0.987, 1.0]),
    st.sampled_from([0.0, 0.013, 0.21, 0.77, 1.0]),
)
def test_truncation_by_loops(scores: list[float], temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    """The same tokens survive with the same weights, in every combination."""
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assert truncate(np.array(scores), params).tolist() == pytest.approx(plain_truncate(scores, params), rel=1e-13)


def test_ties_go_to_the_lowest_id() -> None:
    """Top-k, top-p, the single survivor and greedy all prefer the lowest of equals."""
    row = np.array([0.0, 2.0, 2.0, 2.0, 2.0])
    assert np.flatnonzero(truncate(row, SamplingParams(top_k=2))).tolist() == [1, 2]
    assert np.flatnonzero(truncate(row, SamplingParams(top_p=0.3))).tolist() == [1, 2]
    assert np.flatnonzero(truncate(row, SamplingParams(top_p=1e-12))).tolist() == [1]
    assert np.flatnonzero(truncate(row, SamplingParams(min_p=1.0))).tolist() == [1, 2, 3, 4]
    assert draw(row, SamplingParams(temperature=0), 0) == 1


def test_top_p_stops_where_it_is_reached() -> None:
    """Half of equal weights is half of the tokens, and not one more."""
    for size in (2, 4, 8):
        assert np.flatnonzero(truncate(np.zeros(size), SamplingParams(top_p=0.5))).tolist() == list(range(size // 2))


@pytest.mark.parametrize(
    ("number", "row", "token"),
    [
        (0.0, [-math.inf, 0.0, 0.0], 1),  # a token without weight is skipped
        (0.5, [0.0, 0.0], 1),  # a token's share ends before the sum that it reaches
        (0.5, [0.0, -math.inf, 0.0], 2),
        (0.5 - 2**-53, [0.0, 0.0], 0),
        (1 - 2**-53, [0.0, 0.0, -math.inf], 1),
        (1 - 2**-53, [0.3, 0.1, -0.2, -80.0, -math.inf], 2),  # the largest number stays inside the sum
    ],
)
def test_draw_at_the_borders(monkeypatch: pytest.MonkeyPatch, number: float, row: list[float], token: int) -> None:
    """Random numbers that Philox gives once in 2^53 draws."""
    monkeypatch.setattr(sampling, "uniform", lambda *_: number)
    assert draw(np.array(row), SamplingParams(), 0) == token


def test_order_top_k_before_top_p_before_min_p() -> None:
    """Probabilities 0.4, 0.3, 0.2, 0.1: each cut counts on what the one before has left."""
    row = np.log([0.1, 0.4, 0.2, 0.3])
    # of 0.4 and 0.3 alone, 0.4 is 57 %: enough for 0.55; of all four it would not be
    assert np.flatnonzero(truncate(row, SamplingParams(top_k=2, top_p=0.55))).tolist() == [1]
    assert np.flatnonzero(truncate(row, SamplingParams(top_p=0.55))).tolist() == [1, 3]
    # min-p is relative to the likeliest
    assert np.flatnonzero(truncate(row, SamplingParams(min_p=0.45))).tolist() == [1, 2, 3]
    # and it sees temperature: squared, 0.3 is 56 % of 0.4
    assert np.flatnonzero(truncate(row, SamplingParams(min_p=0.6))).tolist() == [1, 3]
    assert np.flatnonzero(truncate(row, SamplingParams(min_p=0.6, temperature=0.5))).tolist() == [1]


@given(SCORES, st.integers(0, 10_000))
def test_draw_inverts_the_cumulative_sum(scores: list[float], position: int) -> None:
    """The first token whose cumulative weight exceeds the random number; greedy takes the largest."""
    weights = plain_truncate(scores, SamplingParams())
    threshold, reached = uniform(7, 1, position) * sum(weights), 0.0
    for expected, weight in enumerate(weights):  # noqa: B007
        reached += weight
        if reached > threshold:
            break
    assert draw(np.array(scores), SamplingParams(seed=7, sample=1), position) == expected
    assert draw(np.array(scores), SamplingParams(temperature=0), position) == scores.index(max(scores))


@pytest.mark.parametrize(
    ("params", "quantile"),
    [
        (SamplingParams(seed=-11), 52.0),
        (SamplingParams(seed=12, temperature=2.0, sample=3), 52.0),
        (SamplingParams(seed=13, top_k=4), 46.0),
        (SamplingParams(seed=14, top_p=0.8, min_p=0.05), 46.0),
    ],
)
def test_draws_have_their_distribution(params: SamplingParams, quantile: float) -> None:
    """20,000 positions, chi-square against the exact probabilities.

    Seeds are fixed, so this fails always or never. For a right sampler and a seed picked blindly, the odds of a false
    alarm are below 1 in 10^9 (chi-square above 52 with 5 degrees of freedom, above 46 with at most 3).
    """
    row = np.array([0.3, -1.0, 2.0, 1.1, -0.4, 0.0])
    weights = np.array(plain_truncate(row.tolist(), params))
    expected = 20_000 * weights / weights.sum()
    counts = np.bincount([draw(row, params, position) for position in range(20_000)], minlength=6)
    kept = expected > 0
    assert counts[~kept].tolist() == [0] * int((~kept).sum())
    assert ((counts - expected)[kept] ** 2 / expected[kept]).sum() < quantile


def test_samples_and_positions_are_independent() -> None:
    """Pairs of neighbouring positions and of samples over 4 x 4 cells: below the 1 - 1e-9 quantile (15 degrees: 76)."""
    row = np.zeros(4)

    def chi_square(pairs: list[tuple[int, int]]) -> float:
        counts = np.bincount([4 * a + b for a, b in pairs], minlength=16)
        return float(((counts - 500) ** 2 / 500).sum())

    first = [draw(row, SamplingParams(seed=1), position) for position in range(8001)]
    second = [draw(row, SamplingParams(seed=1, sample=1), position) for position in range(8000)]
    assert chi_square(list(pairwise(first))) < 76
    assert chi_square(list(zip(first[:-1], second, strict=True))) < 76


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_k=2)])
@pytest.mark.parametrize(
    "row", [[-math.inf] * 3, [math.nan] * 3, [0.0, math.nan, 1.0], [-math.inf, math.nan, -math.inf]]
)
def test_nothing_to_draw_is_an_error(row: list[float], params: SamplingParams) -> None:
    """All forbidden, or anything that is not a number."""
    with pytest.raises(ValueError, match="no token may be drawn"):
        draw(np.array(row), params, 0)


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_p=0.5)])
def test_an_infinite_score_draws_no_token_outside_the_vocabulary(params: SamplingParams) -> None:
    """Plus infinity is refused: it is no probability."""
    with pytest.raises(ValueError, match="no token may be drawn"):
        draw(np.array([0.0, math.inf, 1.0]), params, 0)


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-3, 1.0, 1e6])
def test_forbidden_tokens_are_never_drawn(temperature: float) -> None:
    """A bias of -100 is a ban, however large the logit and the temperature; one token left is always drawn."""
    counts, seen = unmarked(4)
    bias = {0: -100.0, 1: -250.0, 3: -100.0}
    params = SamplingParams(temperature=temperature, logit_bias=bias)
    scores = penalised(np.float32([1e30, 500.0, -1e30, 3.0]), params, counts, seen)
    assert {draw(scores, params, position) for position in range(200)} == {2}


@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_the_likeliest_are_those_of_a_sort(count: int, seed: int) -> None:
    """Of equals the lowest id; no more than there are."""
    logits = np.random.default_rng(seed).integers(-2, 3, (4, 4)).astype(np.float32)
    known = log_softmax(logits)
    for row, top in zip(known, likeliest(logits, count), strict=True):
        order = np.argsort(-row, kind="stable")[:count]
        assert top == [(int(i), float(row[i])) for i in order]


def test_truncation_keeps_the_likeliest_at_any_extreme() -> None:
    """However small top-p is and however cold: at least one token, the likeliest."""
    row = np.array([5.0, 9.0, -math.inf, 9.0])
    for params in (SamplingParams(temperature=1e-300), SamplingParams(top_p=1e-300), SamplingParams(top_k=1)):
        weights = truncate(row, params)
        assert weights[1] == 1
        assert weights[0] == weights[2] == 0
