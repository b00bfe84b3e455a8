"""Each way to parameterise the band gives the same weights to the recurrence and to the parallel form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from variants import MAX_LEN, VARIANTS, WINDOW, dense_bias, make_config, parameters64, random_bias

from model import reference
from model.bias import Absolute, Bias, Conv, Factorised, Free, Relative, make_bias, skew
from model.config import preset

every_variant = pytest.mark.parametrize("name", VARIANTS)


@pytest.mark.parametrize(("window", "length"), [(0, 1), (0, 5), (1, 1), (1, 4), (3, 1), (3, 7), (5, 5), (9, 2)])
def test_skew_equals_a_plain_loop(window: int, length: int) -> None:
    """[i, c] is table[i + s - c], and 0 where that would be an offset below 0."""
    table = torch.randn(3, window + length)
    expected = torch.zeros(3, length, window + length)
    for i in range(length):
        for c in range(window + length):
            if i + window - c >= 0:
                expected[:, i, c] = table[:, i + window - c]
    assert torch.equal(skew(table, window, length), expected)


@pytest.mark.parametrize(("window", "length"), [(0, 5), (3, 4), (4, 2)])
def test_skew_gradient(window: int, length: int) -> None:
    """Each entry of the table gets the sum of the gradients of the places where it stands."""
    table = torch.randn(2, window + length, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: skew(t, window, length), table)


@every_variant
@pytest.mark.parametrize(("start", "num_chunks", "length"), [(0, 1, 41), (0, 5, 8), (7, 3, 6), (0, 41, 1), (13, 2, 9)])
def test_block_equals_band(name: str, start: int, num_chunks: int, length: int) -> None:
    """block() is exp of band() and decay() laid out: columns are the window before a chunk, then the chunk itself."""
    config = make_config(name)
    bias = random_bias(config)
    positions = torch.arange(start, start + num_chunks * length)
    band = bias.band(positions).detach().double().expand(len(positions), -1, -1)
    decay, s = bias.decay().detach().double(), config.window
    block = bias.block(start, num_chunks, length).detach().double().expand(-1, num_chunks, -1, -1)
    assert block.shape == (config.num_heads, num_chunks, length, s + length)
    for q in range(num_chunks):
        for i in range(length):
            t = q * length + i
            for c in range(s + length):
                offset = i + s - c
                if start + t - offset < 0 <= offset:
                    continue  # before the first position: a key of weight 0 stands there
                expected = torch.zeros(config.num_heads, dtype=torch.float64)
                if offset >= 0:
                    w = band[t, :, offset] if offset < s else 0.0
                    expected = (w - decay * offset).exp()
                torch.testing.assert_close(block[:, q, i, c], expected, rtol=3e-6, atol=0)


@every_variant
def test_band_equals_the_papers_formula(name: str) -> None:
    """band() and decay() are the formula of the variant, written once more in float64 from the parameters."""
    config = make_config(name)
    bias = random_bias(config)
    expected = dense_bias(config, parameters64(bias), MAX_LEN).detach()
    band = bias.band(torch.arange(MAX_LEN)).detach().double().expand(MAX_LEN, -1, -1).numpy()
    for head, decay in enumerate(bias.decay().tolist()):
        matrix = reference.bias_matrix(band[:, head], decay, MAX_LEN)
        lower = np.tril_indices(MAX_LEN)
        assert np.abs(matrix[lower] - expected[head].numpy()[lower]).max() < 2e-6


def test_conv_equals_reference_and_starts_as_simple() -> None:
    """The reparameterisation is the reference's; at the start the window is all zeros."""
    bias = make_bias(make_config("conv"))
    assert torch.equal(bias.band(torch.zeros(1, dtype=torch.int64)), torch.zeros(1, 2, WINDOW))
    assert isinstance(bias, Conv)
    with torch.no_grad():
        bias.gamma.copy_(torch.tensor([[1.5], [-2.0]]))
        bias.beta.copy_(torch.tensor([[0.5], [-20.0]]))
    band = bias.band(torch.zeros(1, dtype=torch.int64))[0].detach().double().numpy()
    for head in range(2):
        w = bias.w[head].detach().double().numpy()
        expected = reference.conv_weights(w, bias.gamma[head].item(), bias.beta[head].item())
        assert np.abs(band[head] - expected).max() < 5e-6


def test_conv_of_one_weight_is_beta() -> None:
    """A window of one has no spread: no division by zero, forward and backward."""
    bias = make_bias(make_config("conv", window=1))
    assert isinstance(bias, Conv)
    with torch.no_grad():
        bias.gamma.fill_(2.0)
        bias.beta.fill_(0.75)
    band = bias.band(torch.zeros(1, dtype=torch.int64))
    assert torch.equal(band, torch.full((1, 2, 1), 0.75))
    band.sum().backward()
    assert bias.w.grad is not None
    assert bool(bias.w.grad.isfinite().all())


def test_half_lives_are_spread_at_the_start() -> None:
    """From min to max, by equal factors: exp(-lambda half-life) is one half."""
    bias = make_bias(preset("shipped", 100))
    half_lives = math.log(2) / bias.decay().detach().double()
    assert half_lives.tolist() == pytest.approx([4 * 2 ** (7 * i / 7) for i in range(8)], rel=1e-5)


def test_decay_is_clamped() -> None:
    """Lambda s is at most 40; without a window, lambda itself."""
    for name, window in (("relative-decay", WINDOW), ("simple-decay", 1)):
        bias = make_bias(make_config(name))
        assert bias.log_decay is not None
        bias.log_decay.data.fill_(50.0)
        assert bias.decay().tolist() == pytest.approx([40.0 / window] * 2)


@pytest.mark.parametrize("window", [16, 256, 4096])
def test_every_head_can_learn_its_decay(window: int) -> None:
    """Even where a half-life is shorter than the window's limit allows: it starts where there is a slope."""
    bias = make_bias(preset("shipped", 100, window=window))
    bias.decay().sum().backward()
    assert bias.log_decay is not None
    assert bias.log_decay.grad is not None
    assert bool((bias.log_decay.grad > 0).all())


def test_without_decay_lambda_is_zero() -> None:
    """No parameter, and zeros."""
    for name, fields in VARIANTS.items():
        bias = make_bias(make_config(name))
        assert (bias.log_decay is not None) == bool(fields.get("decay"))
        assert bool((bias.decay() == 0).all()) != bool(fields.get("decay"))


def test_make_bias_follows_the_config() -> None:
    """One class a kind; the factorised one where a rank is given."""
    classes = {
        "simple": Bias, "local-free": Free, "local-factorised": Factorised, "relative": Relative, "conv": Conv,
        "full-free": Free,
    }  # fmt: skip
    for name, kind in classes.items():
        assert type(make_bias(make_config(name))) is kind
    with pytest.raises(TypeError, match="Free or Factorised"):
        Absolute(make_config("local-free")).block(0, 1, 2)


def test_parameters_have_the_papers_start() -> None:
    """w, u and v are drawn with 0.01; factorised tables have T x d' entries."""
    torch.manual_seed(0)
    config = make_config("local-factorised", max_model_len=4001, bias_rank=7)
    for parameter in make_bias(config).parameters():
        assert parameter.shape == (4001, 7)
        assert float(parameter.detach().std()) == pytest.approx(0.01, rel=0.05)  # 28,007 draws: 12 standard errors
