"""The network: pieces equal the whole, nothing sees the future, and every parameter learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from variants import MAX_LEN, VARIANTS, keys_and_values, make_config, oracle, random_bias

from model.network import Dropout, Network

LENGTH = 37

every_variant = pytest.mark.parametrize("name", VARIANTS)


def make_network(name: str, **changes: object) -> Network:
    """A network whose biases and head are far from their start."""
    torch.manual_seed(3)
    network = Network(make_config(name, **changes)).eval()
    for i, block in enumerate(network.blocks):
        block.aft.bias = random_bias(network.config, seed=i)
        for parameter in block.parameters():
            if parameter.ndim == 2 and not any(parameter is p for p in block.aft.bias.parameters()):
                parameter.data = torch.randn_like(parameter) / math.sqrt(parameter.shape[1])
        for shift in (block.shift_aft, block.shift_mlp):
            if shift is not None:
                shift.share.data.uniform_(-0.5, 1.5)
    for parameter in network.embed.parameters():
        parameter.data.normal_()
    network.head.weight.data.normal_()
    return network


def random_tokens(batch: int = 2, length: int = LENGTH) -> torch.Tensor:
    """Ids of the small vocabulary."""
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(9))


def weight(module: torch.nn.Module) -> torch.Tensor:
    """A table or matrix in float64."""
    return module.get_parameter("weight").detach().double()


def embedded(network: Network, tokens: torch.Tensor) -> torch.Tensor:
    """What enters the first block, written out once more in float64."""
    config = network.config
    if config.raster is None:
        x = weight(network.embed)[tokens]
    else:
        t, width = torch.arange(tokens.shape[1]), config.raster.width
        places = {"channel": t % 3, "column": t // 3 % width, "row": t // (3 * width)}
        x = weight(network.embed.value)[tokens]
        for name, place in places.items():
            x = x + weight(network.embed.get_submodule(name))[place]

    for number, distance in enumerate(config.lookback):
        table = weight(network.get_submodule(f"lookback.tables.{number}"))
        for at in range(distance - 1, tokens.shape[1]):  # the token after it is at + 1
            x[:, at] = x[:, at] + table[tokens[:, at + 1 - distance]]
    if config.mirror and config.raster is not None:
        table, width = weight(network.get_submodule("lookback.mirror")), config.raster.width
        for at in range(tokens.shape[1]):
            pixel, channel = divmod(at, 3)
            row, column = divmod(pixel, width)
            image = (row * width + width - 1 - column) * 3 + channel  # the token of a place stands one further on
            if image < at:
                x[:, at] = x[:, at] + table[tokens[:, image + 1]]
    return x


def plain(network: Network, tokens: torch.Tensor) -> torch.Tensor:
    """The network written out once more in float64, with the oracle for the average."""
    config = network.config

    def norm(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / deviation * weight(module) + module.get_parameter("bias").detach().double()

    x = embedded(network, tokens)

    def shifted(shift: torch.nn.Module | None, x: torch.Tensor) -> torch.Tensor:
        if shift is None:
            return x
        share = shift.get_parameter("share").detach().double()
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        return share * x + (1 - share) * before

    for block in network.blocks:
        h, aft = shifted(block.shift_aft, norm(block.norm_aft, x)), block.aft
        k, v = ((h @ weight(p).T).unflatten(2, (config.num_heads, -1)) for p in (aft.k, aft.v))
        mixed = oracle(k, v, aft.bias).flatten(2)
        x = x + ((h @ weight(aft.q).T).sigmoid() * mixed) @ weight(aft.o).T
        hidden = (
            shifted(block.shift_mlp, norm(block.norm_mlp, x)) @ weight(block.mlp.up).T
            + block.mlp.up.bias.detach().double()
        )
        # GELU in the form that needs no error function (Hendrycks and Gimpel 2016, section 2)
        bent = (math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)).tanh()
        squared = config.activation == "squared_relu"
        hidden = hidden.clamp(min=0).square() if squared else 0.5 * hidden * (1 + bent)
        x = x + hidden @ weight(block.mlp.down).T + block.mlp.down.bias.detach().double()
    return norm(network.norm, x) @ weight(network.head).T


@every_variant
@pytest.mark.parametrize("activation", ["squared_relu", "gelu"])
def test_logits_equal_the_plain_network(name: str, activation: str) -> None:
    """Embedding, blocks of two additions, norm, head: against float64."""
    network = make_network(name, activation=activation)
    tokens = random_tokens()
    logits, states = network(tokens)
    assert states == []
    expected = plain(network, tokens)
    torch.testing.assert_close(logits.detach().double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@every_variant
def test_pieces_through_states_equal_the_whole(name: str) -> None:
    """A prompt in chunks and then single steps has the logits of the whole, for several ways to cut."""
    network, tokens = make_network(name), random_tokens()
    with torch.no_grad():
        whole, _ = network(tokens)
        for sizes in ([37], [1] * 37, [20, 1, 1, 15], [1, 36], [36, 1], [7, 7, 7, 7, 9]):
            states, rows = network.init_state(2), []
            for piece in tokens.split(sizes, 1):
                logits, states = network(piece, states)
                rows.append(logits)
            torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=0, atol=2e-5 * float(whole.abs().max()))
            assert [state.position.tolist() for state in states] == [[LENGTH] * 2] * 2


@every_variant
def test_causal(name: str) -> None:
    """Later tokens change earlier logits by rounding only, and earlier losses give them a gradient of exactly zero."""
    network, tokens = make_network(name), random_tokens(1)
    whole, _ = network(tokens)
    for t in (0, 17, 35):
        changed = tokens.clone()
        changed[:, t + 1 :] = (changed[:, t + 1 :] + 5) % 11
        logits, _ = network(changed)
        torch.testing.assert_close(
            logits[:, : t + 1], whole[:, : t + 1], rtol=0, atol=1e-5 * float(whole.detach().abs().max())
        )
        embedded = network._embedded(tokens, None).detach().requires_grad_()
        x = embedded
        for block in network.blocks:
            x, _ = block(x)
        (gradient,) = torch.autograd.grad(network.norm(x)[:, : t + 1].square().sum(), embedded)
        assert bool((gradient[:, t + 1 :] == 0).all())
        assert bool((gradient[:, t] != 0).any())


@every_variant
def test_step_does_not_see_batch_mates(name: str) -> None:
    """One token for each of five sequences: exchanging the others changes nothing, to the bit."""
    network, tokens = make_network(name), random_tokens(5, 9)
    other = (tokens + 3) % 11
    other[2] = tokens[2]
    results = []
    with torch.no_grad():
        for batch in (tokens, other):
            states, rows = network.init_state(5), []
            for t in range(9):
                logits, states = network(batch[:, t : t + 1], states)
                rows.append(logits[2])
            results.append(torch.stack(rows))
    assert torch.equal(*results)


@every_variant
def test_every_parameter_gets_a_gradient(name: str) -> None:
    """Nothing is cut off from the loss; the bias trains (its parameters are not made anew in each forward pass)."""
    network, tokens = make_network(name), random_tokens(2, MAX_LEN)
    logits, _ = network(tokens[:, :-1])
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert bool(parameter.grad.isfinite().all()), parameter_name
        assert bool((parameter.grad != 0).any()), parameter_name


def test_untrained_loss_is_that_of_a_uniform_guess() -> None:
    """The start is calm: about log2 of the vocabulary."""
    torch.manual_seed(0)
    network = Network(make_config("relative-decay", dim=64, vocab_size=11))
    tokens = random_tokens(4, 64)
    logits, _ = network(tokens[:, :-1])
    loss = float(F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).detach())
    assert loss == pytest.approx(math.log(11), abs=0.05)


def test_tied_head() -> None:
    """The head is the embedding: one parameter, counted once, with the gradient of both."""
    tied, free = (Network(make_config("relative-decay", tied_head=t)) for t in (True, False))
    assert tied.head.weight is tied.embed.weight
    assert free.num_parameters - tied.num_parameters == 11 * 6


@pytest.mark.parametrize(("rate", "share"), [(0.1, 26 / 256), (0.5, 0.5), (0.999, 255 / 256), (0.001, 1 / 256)])
def test_dropout_keeps_the_mean(rate: float, share: float) -> None:
    """In steps of 1/256, of any number of elements, each by itself; gradients are dropped with the values."""
    torch.manual_seed(0)
    layer = Dropout(rate)
    x = torch.ones(3, 333_333, requires_grad=True)
    y = layer(x)
    values = y.detach()
    assert float((values == 0).float().mean()) == pytest.approx(share, rel=0.05)
    assert float(values.max()) == pytest.approx(1 / (1 - share))
    if share < 0.9:
        assert float((values[:, 1:] * values[:, :-1]).mean()) == pytest.approx(
            1.0, rel=0.01
        )  # neighbours are independent
    y.sum().backward()
    assert torch.equal(x.grad, values)
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_dropout_acts_in_training_only() -> None:
    """Two passes differ in training, and are equal in evaluation."""
    network, tokens = make_network("relative-decay", dropout=0.5), random_tokens()
    assert torch.equal(network(tokens)[0], network(tokens)[0])
    network.train()
    assert not torch.equal(network(tokens)[0], network(tokens)[0])


def test_added_projections_start_small() -> None:
    """Those that write to the residual stream are 1 / sqrt(2 layers) of the others."""
    torch.manual_seed(0)
    network = Network(make_config("relative-decay", dim=128, num_layers=8))
    for block in network.blocks:
        assert float(block.aft.q.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
        assert float(block.aft.o.weight.detach().std()) == pytest.approx(0.005, rel=0.05)
        assert float(block.mlp.down.weight.detach().std()) == pytest.approx(0.005, rel=0.05)
        assert bool((block.mlp.up.bias == 0).all())


def test_num_scanned_is_a_sum_over_layers() -> None:
    """Ordinary keys scan nothing; keys of hundreds make each layer scan its sequences."""
    network, tokens = make_network("relative-decay"), random_tokens(3)
    network(tokens)
    assert network.num_scanned == 0
    for block in network.blocks:
        block.aft.k.weight.data *= 200.0
    network(tokens)
    assert network.num_scanned == sum(block.aft.num_scanned for block in network.blocks) > 3


def test_keys_helper_reaches_its_scale() -> None:
    """The laws' keys really hold both ends."""
    k, _ = keys_and_values(make_config("relative"), 2, LENGTH, 100.0)
    assert (float(k.max()), float(k.min())) == (100.0, -100.0)
