"""The laws of docs and design, for every variant, odd lengths, extreme keys, w = -20, float32 and bf16."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from variants import (
    DECAYING,
    MAX_LEN,
    VARIANTS,
    WINDOWED,
    band64,
    constant_bias,
    decay64,
    dense,
    dense_bias,
    keys_and_values,
    make_config,
    oracle,
    parameters64,
    random_bias,
)

from model import parallel, reference
from model.aft import AFT
from model.bias import Bias
from model.parallel import mix
from model.recurrent import State, coefficients, init_state, scan, step

LENGTH = 37
BATCH = 3
# A key of 100 times log2 e keeps 17 bits after the point: exp of it is exact to 1e-5. Ordinary keys keep more.
VALUE_TOLERANCE = {1.0: 3e-6, 15.0: 6e-6, 40.0: 1.5e-5, 100.0: 4e-5}
GRADIENT_TOLERANCE = {15.0: 2e-5, 40.0: 4e-5, 100.0: 1e-4}  # of the largest entry of the same gradient
BF16_TOLERANCE = 2.0**-6  # of the largest value: e, e v, exp(b), the sums and their quotient are rounded by 2^-9 each

every_variant = pytest.mark.parametrize("name", VARIANTS)
every_form = pytest.mark.usefixtures("form")
every_scale = pytest.mark.parametrize("scale", [15.0, 40.0, 100.0])


@pytest.fixture(params=["at-once", "chunked", "odd-chunks"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The parallel form as one block, in chunks of 8 (or the window), and in chunks of 5, whose last one is padded."""
    at_once, chunk = {"at-once": (512, 128), "chunked": (8, 8), "odd-chunks": (5, 5)}[request.param]
    monkeypatch.setattr(parallel, "AT_ONCE", at_once)
    monkeypatch.setattr(parallel, "CHUNK", chunk)
    return str(request.param)


def begin(bias: Bias, k: Tensor, v: Tensor) -> State:
    """The empty state for these keys and values."""
    return init_state(k.shape[0], k.shape[2], v.shape[3], k.shape[3], bias.window, k.device)


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Every entry within ``tolerance`` of the largest expected magnitude (at least 1)."""
    actual, expected = actual.detach().double(), expected.detach().double()
    size = max(1.0, float(expected.abs().max()))
    error = float((actual - expected).abs().max())
    assert error <= tolerance * size, f"off by {error:.3g}, allowed {tolerance * size:.3g}"  # a NaN fails too


def same_state(actual: State, expected: State, tolerance: float) -> None:
    """Two decode states agree: sums relative to each channel's denominators, positions and frames exactly."""
    assert torch.equal(actual.position, expected.position)
    assert torch.equal(actual.frame, expected.frame)
    torch.testing.assert_close(actual.peak, expected.peak, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(actual.ring_e, expected.ring_e, rtol=tolerance, atol=1e-30)
    torch.testing.assert_close(actual.den, expected.den, rtol=tolerance, atol=1e-30)
    for sums, weights, wanted in (
        (actual.num, expected.den, expected.num),
        (actual.ring_ev, expected.ring_e, expected.ring_ev),
    ):
        # the error of a sum of e v is bounded by the sum of e times the largest v
        assert bool(((sums - wanted).abs() <= 4 * tolerance * weights + 1e-30).all())


# --- oracle: the references agree with each other ---------------------------------------------------------------


@every_variant
@every_scale
def test_dense_formula_equals_reference(name: str, scale: float) -> None:
    """The softmax that gradients are compared with is the plain loop, to float64 rounding."""
    config = make_config(name)
    bias = random_bias(config)
    k, v = keys_and_values(config, 2, LENGTH, scale)
    plain = dense(k.double(), v.double(), dense_bias(config, parameters64(bias), LENGTH)).detach()
    close(plain, oracle(k, v, bias), 2e-6)  # the bias is a float32 module
    matrix = dense_bias(config, parameters64(bias), LENGTH).detach().numpy()
    for head in range(config.num_heads):
        loop = reference.average(k[0, :, head].double().numpy(), v[0, :, head].double().numpy(), matrix[head])
        assert np.abs(loop - plain[0, :, head].numpy()).max() < 1e-12


@every_variant
@every_scale
@pytest.mark.parametrize("length", [1, LENGTH])
def test_reference_recurrence_equals_reference_sums(name: str, scale: float, length: int) -> None:
    """The float64 recurrence is the float64 sums, so that it may be the oracle where T x T is too much."""
    config = make_config(name)
    bias = random_bias(config)
    k, v = (x.double().numpy() for x in keys_and_values(config, 1, length, scale))
    band, decay = band64(bias, length), decay64(bias)
    for head in range(config.num_heads):
        matrix = reference.bias_matrix(band[:, head], float(decay[head]), length)
        expected = reference.average(k[0, :, head], v[0, :, head], matrix)
        actual = reference.recurrence(k[0, :, head], v[0, :, head], band[:, head], float(decay[head]))
        assert np.abs(actual - expected).max() < 1e-11


# --- oracle: values ----------------------------------------------------------------------------------------------


@every_variant
@every_form
@every_scale
@pytest.mark.parametrize("length", [1, 2, 7, LENGTH, MAX_LEN])
def test_parallel_form_equals_oracle(name: str, scale: float, length: int) -> None:
    """mix() is the plain sums; at +-15 by matrix products alone, at +-100 with the exact scan's help."""
    config = make_config(name)
    bias = random_bias(config)
    k, v = keys_and_values(config, BATCH, length, scale)
    mixed = mix(k, v, bias)
    close(mixed.y, oracle(k, v, bias), VALUE_TOLERANCE[scale])
    if scale == 15.0:
        assert mixed.num_scanned == 0
    if scale == 100.0 and length >= 7:
        assert mixed.num_scanned == BATCH


@every_variant
@every_scale
def test_scan_equals_oracle(name: str, scale: float) -> None:
    """Steps are the plain sums at any keys."""
    config = make_config(name)
    bias = random_bias(config)
    k, v = keys_and_values(config, BATCH, LENGTH, scale)
    y, _ = scan(k, v, bias, begin(bias, k, v))
    close(y, oracle(k, v, bias), VALUE_TOLERANCE[scale])


@every_form
@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("w", [-20.0, 20.0])
@pytest.mark.parametrize("scale", [1.0, 15.0, 100.0])
def test_window_of_minus_twenty(name: str, w: float, scale: float) -> None:
    """A window of w = -20 leaves nothing but small positive numbers, which nobody may have got by subtraction."""
    config = make_config(name)
    bias = constant_bias(config, w)
    k, v = keys_and_values(config, BATCH, LENGTH, scale)
    expected = oracle(k, v, bias)
    close(mix(k, v, bias).y, expected, VALUE_TOLERANCE[scale])
    close(scan(k, v, bias, begin(bias, k, v))[0], expected, VALUE_TOLERANCE[scale])


@every_variant
@every_form
@every_scale
def test_bf16_values_equal_oracle(name: str, scale: float) -> None:
    """With bf16 values the sums are bf16 products: within bf16's own error of the oracle."""
    config = make_config(name)
    bias = random_bias(config)
    k, v = keys_and_values(config, BATCH, LENGTH, scale)
    v = v.bfloat16()
    mixed = mix(k, v, bias)
    assert mixed.y.dtype == torch.bfloat16
    close(mixed.y, oracle(k, v, bias), BF16_TOLERANCE)
    if scale == 15.0:
        assert mixed.num_scanned == 0


@every_variant
@every_form
def test_one_enormous_key(name: str) -> None:
    """One key of +100 among ordinary ones: the first rows would be lost to a block's maximum, the last to the key."""
    config = make_config(name)
    bias = random_bias(config)
    k, v = keys_and_values(config, BATCH, LENGTH, 3.0)
    k[1, 18] = 100.0
    mixed = mix(k, v, bias)
    assert mixed.num_scanned == 1  # only the sequence that needs it
    close(mixed.y, oracle(k, v, bias), VALUE_TOLERANCE[100.0])
    close(scan(k, v, bias, begin(bias, k, v))[0], oracle(k, v, bias), VALUE_TOLERANCE[100.0])


@every_variant
@every_form
def test_shared_offset_of_keys_cancels(name: str) -> None:
    """Keys around +-80, whose plain exp() overflows or vanishes, give what keys around 0 give, on the fast path."""
    config = make_config(name)
    bias = random_bias(config)
    k, v = keys_and_values(config, BATCH, LENGTH, 3.0)
    for offset in (-300.0, -80.0, 80.0, 300.0):
        mixed = mix(k + offset, v, bias)
        assert mixed.num_scanned == 0
        close(mixed.y, oracle(k + offset, v, bias), 1e-5)
        stepped, _ = scan(k + offset, v, bias, begin(bias, k, v))
        close(stepped, oracle(k + offset, v, bias), 1e-4)  # log2 e times 300 keeps 15 bits after the point


# --- oracle: gradients -------------------------------------------------------------------------------------------


def float64_gradients(bias: Bias, k: Tensor, v: Tensor, g: Tensor, name: str) -> dict[str, Tensor]:
    """Gradients of sum(g y) by the independent float64 formula: of k, v and every parameter."""
    config, parameters = make_config(name), parameters64(bias)
    inputs = {"keys": k.detach().double().requires_grad_(), "values": v.detach().double().requires_grad_()}
    y = dense(inputs["keys"], inputs["values"], dense_bias(config, parameters, k.shape[1]))
    everything = {**inputs, **parameters}
    found = torch.autograd.grad((y * g.double()).sum(), list(everything.values()), allow_unused=True)
    return {n: torch.zeros_like(everything[n]) if d is None else d for n, d in zip(everything, found, strict=True)}


def gradients(bias: Bias, k: Tensor, v: Tensor, y: Tensor, g: Tensor) -> dict[str, Tensor]:
    """The same through the tested form's own graph."""
    everything = {"keys": k, "values": v, **dict(bias.named_parameters())}
    found = torch.autograd.grad((y.float() * g).sum(), list(everything.values()), allow_unused=True)
    return {n: torch.zeros_like(everything[n]) if d is None else d for n, d in zip(everything, found, strict=True)}


@pytest.mark.parametrize(("name", "w"), [*((name, None) for name in VARIANTS), *((name, -20.0) for name in WINDOWED)])
@every_scale
def test_gradients_equal_oracle(name: str, scale: float, w: float | None, form: str) -> None:
    """Gradients of every input and every parameter, parallel and recurrent, against float64."""
    config = make_config(name)
    bias = random_bias(config) if w is None else constant_bias(config, w)
    k, v = (x.requires_grad_() for x in keys_and_values(config, BATCH, LENGTH, scale))
    g = torch.randn(v.shape, generator=torch.Generator().manual_seed(5))
    expected = float64_gradients(bias, k, v, g, name)
    forms = {"mix": mix(k, v, bias).y}
    if form == "at-once":
        forms["scan"] = scan(k, v, bias, begin(bias, k, v))[0]
    for which, y in forms.items():
        for part, actual in gradients(bias, k, v, y, g).items():
            size = max(1.0, float(expected[part].abs().max()))
            error = float((actual.double() - expected[part]).abs().max())
            assert error <= GRADIENT_TOLERANCE[scale] * size, f"{which}: {part} off by {error:.3g} of {size:.3g}"


@every_variant
@every_form
def test_bf16_gradients_equal_oracle(name: str) -> None:
    """In bf16 each gradient, as a vector, is within bf16's own error of float64's.

    A parameter's gradient is a sum over keys in which terms cancel, so the error is measured by their size too.
    """
    config = make_config(name)
    bias = random_bias(config)
    k, v = keys_and_values(config, BATCH, LENGTH, 3.0)
    k, v = k.requires_grad_(), v.bfloat16().requires_grad_()
    g = torch.randn(v.shape, generator=torch.Generator().manual_seed(5))
    expected = float64_gradients(bias, k, v, g, name)
    for part, actual in gradients(bias, k, v, mix(k, v, bias).y, g).items():
        error = float((actual.double() - expected[part]).norm())
        size = max(float(expected[part].norm()), float(expected["keys"].norm()))
        assert error <= BF16_TOLERANCE * size, f"{part} off by {error:.3g} of {size:.3g}"


# --- split -------------------------------------------------------------------------------------------------------


@every_variant
@every_form
@pytest.mark.parametrize("scale", [3.0, 15.0, 40.0, 100.0])
def test_split_at_every_cut(name: str, scale: float) -> None:
    """Two pieces through a state equal the whole, for every cut; the states at the end agree too."""
    config, length = make_config(name), 23
    bias = random_bias(config)
    k, v = keys_and_values(config, 2, length, scale)
    tolerance = VALUE_TOLERANCE.get(scale, 6e-6)
    whole, last = scan(k, v, bias, begin(bias, k, v))
    together = mix(k, v, bias, keep_state=True)
    assert together.state is not None
    close(together.y, whole, 2 * tolerance)
    same_state(together.state, last, 4 * tolerance)
    for cut in range(1, length):
        first = mix(k[:, :cut], v[:, :cut], bias, begin(bias, k, v), keep_state=True)
        second = mix(k[:, cut:], v[:, cut:], bias, first.state, keep_state=True)
        assert second.state is not None
        close(torch.cat([first.y, second.y], 1), whole, 2 * tolerance)
        same_state(second.state, last, 4 * tolerance)


@every_variant
@every_scale
def test_split_of_steps_is_exact(name: str, scale: float) -> None:
    """The recurrence in pieces is the recurrence whole, bit for bit, whatever the cut."""
    config, length = make_config(name), 13
    bias = random_bias(config)
    k, v = keys_and_values(config, 2, length, scale)
    whole, last = scan(k, v, bias, begin(bias, k, v))
    for cut in range(1, length):
        first, state = scan(k[:, :cut], v[:, :cut], bias, begin(bias, k, v))
        second, state = scan(k[:, cut:], v[:, cut:], bias, state)
        assert torch.equal(torch.cat([first, second], 1), whole)
        assert all(torch.equal(a, b) for a, b in zip(state, last, strict=True))


@every_variant
@every_form
def test_prefill_then_steps(name: str) -> None:
    """Steps that begin at a prefill's state go on as steps from the start would."""
    config = make_config(name)
    bias = random_bias(config)
    k, v = keys_and_values(config, 2, LENGTH, 15.0)
    whole, last = scan(k, v, bias, begin(bias, k, v))
    prefill = mix(k[:, :20], v[:, :20], bias, begin(bias, k, v), keep_state=True)
    assert prefill.state is not None
    rest, state = scan(k[:, 20:], v[:, 20:], bias, prefill.state)
    close(rest, whole[:, 20:], 2 * VALUE_TOLERANCE[15.0])
    same_state(state, last, 4 * VALUE_TOLERANCE[15.0])


@every_variant
@every_form
def test_gradients_pass_through_a_state(name: str) -> None:
    """Training with carried states: gradients of the second piece reach the keys and values of the first."""
    config, cut = make_config(name), 16
    bias = random_bias(config)
    k, v = (x.requires_grad_() for x in keys_and_values(config, 2, LENGTH, 3.0))
    g = torch.randn(v.shape, generator=torch.Generator().manual_seed(5))
    expected = float64_gradients(bias, k, v, g, name)
    first = mix(k[:, :cut], v[:, :cut], bias, begin(bias, k, v), keep_state=True)
    second = mix(k[:, cut:], v[:, cut:], bias, first.state, keep_state=True)
    for part, actual in gradients(bias, k, v, torch.cat([first.y, second.y], 1), g).items():
        close(actual, expected[part], GRADIENT_TOLERANCE[15.0])


# --- causal ------------------------------------------------------------------------------------------------------


@every_variant
def test_recurrent_form_is_causal_bit_for_bit(name: str) -> None:
    """Whatever comes after t (an enormous key, a NaN) leaves the outputs up to t as they were."""
    config = make_config(name)
    bias = random_bias(config)
    k, v = keys_and_values(config, 2, LENGTH, 15.0)
    whole, _ = scan(k, v, bias, begin(bias, k, v))
    for t in (0, 4, 18, 35):
        for key, value in ((100.0, 5.0), (-100.0, 5.0), (math.nan, math.nan)):
            changed_k, changed_v = k.clone(), v.clone()
            changed_k[:, t + 1 :], changed_v[:, t + 1 :] = key, value
            changed, _ = scan(changed_k, changed_v, bias, begin(bias, k, v))
            assert torch.equal(changed[:, : t + 1], whole[:, : t + 1])


@every_variant
@every_form
def test_parallel_form_is_causal(name: str) -> None:
    """Later keys, +100 included, change earlier outputs by rounding only, and get a gradient of exactly zero."""
    config = make_config(name)
    bias = random_bias(config)
    k, v = keys_and_values(config, 2, LENGTH, 15.0)
    whole = mix(k, v, bias).y
    for t in (0, 4, 18, 35):
        for key in (100.0, -100.0, 20.0):
            changed_k, changed_v = k.clone(), v.clone()
            changed_k[:, t + 1 :], changed_v[:, t + 1 :] = key, 5.0
            changed_k.requires_grad_()
            changed_v.requires_grad_()
            y = mix(changed_k, changed_v, bias).y[:, : t + 1]
            close(y, whole[:, : t + 1], 2 * VALUE_TOLERANCE[15.0])
            for gradient in torch.autograd.grad(y.square().sum(), [changed_k, changed_v]):
                assert bool((gradient[:, t + 1 :] == 0).all())  # a NaN is not zero
                assert bool(gradient[:, : t + 1].isfinite().all())


# --- slot --------------------------------------------------------------------------------------------------------


@every_variant
def test_step_does_not_see_batch_mates(name: str) -> None:
    """A sequence steps to the same bits alone, beside NaNs, among others and in another order."""
    config = make_config(name)
    bias = random_bias(config)
    k, v = keys_and_values(config, 5, 11, 15.0)
    alone = [scan(k[i : i + 1], v[i : i + 1], bias, begin(bias, k[:1], v[:1])) for i in range(5)]
    poisoned_k, poisoned_v = k.clone(), v.clone()
    poisoned_k[2], poisoned_v[2] = math.nan, math.inf
    order = torch.tensor([3, 0, 4, 2, 1])
    for keys, values, who in (
        (k, v, torch.arange(5)),
        (poisoned_k, poisoned_v, torch.arange(5)),
        (k[order], v[order], order),
    ):
        y, state = scan(keys, values, bias, begin(bias, keys, values))
        for row, i in enumerate(who.tolist()):
            if bool(values[row].isinf().any()):
                assert bool(y[row].isnan().all())
                continue
            assert torch.equal(y[row], alone[i][0][0])
            assert all(torch.equal(a[row], b[0]) for a, b in zip(state, alone[i][1], strict=True))


@every_variant
def test_step_at_mixed_positions(name: str) -> None:
    """Sequences that stand at different positions step together as each would alone."""
    config = make_config(name)
    bias = random_bias(config)
    k, v = keys_and_values(config, 1, 20, 15.0)
    whole, _ = scan(k, v, bias, begin(bias, k, v))
    positions = [0, 3, 7, 19]
    states = []
    for position in positions:
        state = begin(bias, k, v)
        if position:
            _, state = scan(k[:, :position], v[:, :position], bias, state)
        states.append(state)
    together = State(*(torch.cat(parts) for parts in zip(*states, strict=True)))
    y, after = step(k[0, positions], v[0, positions], together, coefficients(bias, together.position))
    assert torch.equal(y, whole[0, positions])
    assert after.position.tolist() == [1, 4, 8, 20]


@every_variant
@every_form
def test_parallel_form_keeps_a_nan_to_itself(name: str) -> None:
    """A NaN in one sequence of a training batch does not reach the others."""
    config = make_config(name)
    bias = random_bias(config)
    k, v = keys_and_values(config, BATCH, LENGTH, 15.0)
    expected = oracle(k, v, bias)
    v[1, 7] = math.nan
    y = mix(k, v, bias).y
    close(y[[0, 2]], expected[[0, 2]], VALUE_TOLERANCE[15.0])


# --- long --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECAYING)
def test_long_after_an_enormous_key(name: str) -> None:
    """3,000 positions, half-lives of 2 to 4, one key of +100 near the start: the frame comes down with the key."""
    length = 3000
    config = make_config(name, min_half_life=2.0, max_half_life=4.0)
    bias = random_bias(config)
    k, v = keys_and_values(config, 1, length, 5.0)
    k -= 20.0  # in a frame that stayed at the key of +100 these would be zeros
    k[:, 10] = 100.0
    k[:, 1500] = -100.0
    band, decay = band64(bias, length), decay64(bias)
    expected = np.empty(v.shape)
    for head in range(config.num_heads):
        keys, values = k[0, :, head].double().numpy(), v[0, :, head].double().numpy()
        expected[0, :, head] = reference.recurrence(keys, values, band[:, head], float(decay[head]))
    with torch.no_grad():
        close(scan(k, v, bias, begin(bias, k, v))[0], torch.from_numpy(expected), VALUE_TOLERANCE[100.0])
        mixed = mix(k, v, bias, keep_state=True)
    close(mixed.y, torch.from_numpy(expected), VALUE_TOLERANCE[100.0])


def test_long_without_decay_on_the_fast_path() -> None:
    """Without decay the far sums carry 2,001 positions through chunks of 128."""
    config, length = make_config("relative"), 2001
    bias = random_bias(config)
    k, v = keys_and_values(config, 1, length, 5.0)
    band = band64(bias, length)
    mixed = mix(k, v, bias)
    assert mixed.num_scanned == 0
    for head in range(config.num_heads):
        keys, values = k[0, :, head].double().numpy(), v[0, :, head].double().numpy()
        expected = reference.recurrence(keys, values, band[:, head], 0.0)
        close(mixed.y[:, :, head], torch.from_numpy(expected)[None], 1e-5)


# --- the layer ---------------------------------------------------------------------------------------------------


@every_variant
def test_layer_equals_oracle(name: str) -> None:
    """The layer is its projections around Eq. 2: at once, by prefill and by single steps."""
    config = make_config(name)
    torch.manual_seed(1)
    layer = AFT(config)
    layer.bias = random_bias(config)
    x = 2 * torch.randn(2, LENGTH, config.dim)
    with torch.no_grad():
        q = layer.q(x).unflatten(2, (config.num_heads, -1)).double().numpy()
        k = layer.k(x).unflatten(2, (config.num_heads, -1))
        v = layer.v(x).unflatten(2, (config.num_heads, -1))
        band, decay = band64(layer.bias, LENGTH), decay64(layer.bias)
        y = np.empty(v.shape)
        for head in range(config.num_heads):
            matrix = reference.bias_matrix(band[:, head], float(decay[head]), LENGTH)
            for row in range(2):
                keys, values = k[row, :, head].double().numpy(), v[row, :, head].double().numpy()
                y[row, :, head] = reference.aft(q[row, :, head], keys, values, matrix)
        expected = torch.from_numpy(y).flatten(2) @ layer.o.weight.double().T
        trained, none = layer(x)
        assert none is None
        close(trained, expected, 3e-6)
        prefilled, state = layer(x[:, :20], layer.init_state(2))
        rows = [prefilled]
        for t in range(20, LENGTH):
            row, state = layer(x[:, t : t + 1], state)
            rows.append(row)
        close(torch.cat(rows, 1), expected, 3e-6)
        assert state.position.tolist() == [LENGTH, LENGTH]
