"""The laws on every device that torch has here: equation, gradients, pieces, company, states, training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import checkpoints_for_tests as tiny
import pytest
import torch
from jobs_for_tests import one, prompt, same
from torch import Tensor
from variants import VARIANTS, keys_and_values, make_config, oracle, random_bias

from model import runs, weights
from model.evaluate import per_dimension, windows
from model.parallel import mix
from model.recipe import Recipe
from model.recurrent import init_state, scan
from model.runtime import choice, eager
from model.runtime.base import Draw, Job
from model.runtime.choice import RuntimeMissingError, choose, open_runtime
from model.runtime.eager import EagerRuntime
from model.sampling import SamplingParams

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
LENGTH, BATCH, SLOTS = 37, 3, 20
TOLERANCE = {3.0: 3e-6, 15.0: 6e-6, 100.0: 4e-5}

every_device = pytest.mark.parametrize("device", DEVICES)
every_variant = pytest.mark.parametrize("name", VARIANTS)


def near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Every entry within ``tolerance`` of the largest expected magnitude, at least 1."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    error = float((actual - expected).abs().max())
    assert error <= tolerance * max(1.0, float(expected.abs().max())), f"off by {error:.3g}"  # a NaN fails too


@every_device
@every_variant
@pytest.mark.parametrize("scale", TOLERANCE)
def test_both_forms_equal_the_equation(device: str, name: str, scale: float) -> None:
    """The parallel form and the steps are the plain sums in float64, extreme keys among them."""
    config = make_config(name)
    bias = random_bias(config)
    k, v = keys_and_values(config, BATCH, LENGTH, scale)
    expected = oracle(k, v, bias)
    bias, k, v = bias.to(device), k.to(device), v.to(device)
    near(mix(k, v, bias).y, expected, TOLERANCE[scale])
    empty = init_state(BATCH, config.num_heads, v.shape[3], k.shape[3], bias.window, k.device)
    near(scan(k, v, bias, empty)[0], expected, TOLERANCE[scale])


@every_device
@every_variant
def test_gradients_equal_those_of_steps(device: str, name: str) -> None:
    """Of keys, values and every parameter: the parallel form's are those of the steps on the CPU."""
    config = make_config(name)
    bias = random_bias(config)
    k, v = keys_and_values(config, BATCH, LENGTH, 3.0)
    g = torch.randn(v.shape, generator=torch.Generator().manual_seed(5))
    empty = init_state(BATCH, config.num_heads, v.shape[3], k.shape[3], bias.window, k.device)

    def found(y: Tensor, *inputs: Tensor) -> list[Tensor]:
        everything = [*inputs, *bias.parameters()]
        given = torch.autograd.grad((y * g.to(y.device)).sum(), everything, allow_unused=True)
        return [torch.zeros_like(x) if d is None else d for x, d in zip(everything, given, strict=True)]

    k, v = k.requires_grad_(), v.requires_grad_()
    expected = found(scan(k, v, bias, empty)[0], k, v)
    bias.to(device)
    k, v = (x.detach().to(device).requires_grad_() for x in (k, v))
    for actual, wanted in zip(found(mix(k, v, bias).y, k, v), expected, strict=True):
        near(actual, wanted, 2e-5)


@every_device
@every_variant
def test_pieces_equal_the_whole(device: str, name: str) -> None:
    """A network that reads at once, in two pieces and by steps gives the logits of the CPU."""
    torch.manual_seed(3)
    network = tiny.random_network(make_config(name))
    tokens = torch.randint(0, 11, (2, LENGTH))
    with torch.no_grad():
        expected, _ = network(tokens)
        network.to(device)
        tokens = tokens.to(device)
        near(network(tokens)[0], expected, 1e-4)
        logits, states = network(tokens[:, :20], network.init_state(2))
        rows = [logits]
        for t in range(20, LENGTH):
            logits, states = network(tokens[:, t : t + 1], states)
            rows.append(logits)
    near(torch.cat(rows, 1), expected, 1e-4)


@pytest.fixture(scope="module", params=DEVICES)
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EagerRuntime]:
    """A runtime of bytes with a match model, whose slots lie in two tiles."""
    folder = tiny.plain_bytes(tmp_path_factory.mktemp("devices") / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eager, "WIDE_TILE", eager.TILE)
        yield EagerRuntime(tiny.opened(tiny.with_match(folder)), SLOTS, request.param)


def jobs() -> list[Job]:
    """Prompts of several lengths, answers drawn, scores."""
    drawn = [Job(slot, prompt(1 + 13 * slot, slot), draw=Draw(SamplingParams(seed=slot), 9)) for slot in range(4)]
    return [*drawn, Job(4, prompt(40, 5), targets=prompt(40, 6)), Job(17, [7], logits="all")]


def test_company_changes_no_bit(runtime: EagerRuntime) -> None:
    """Together or alone, and in whichever slot: equal results, equal states."""
    for slot in range(SLOTS):
        runtime.reset(slot)
    together = runtime.run(jobs())
    states = [runtime.export(job.slot) for job in jobs()]
    for job, done, state in zip(jobs(), together, states, strict=True):
        for slot in (job.slot, SLOTS - 1):
            runtime.reset(slot)
            same(one(runtime, Job(slot, job.tokens, job.targets, job.logits, job.draw)), done)
            assert runtime.export(slot) == state


def test_states_are_saved_and_forked(runtime: EagerRuntime) -> None:
    """A stream goes on from an exported state, and from a copy, with the bits that it would have had."""
    runtime.reset(0)
    one(runtime, Job(0, prompt(70)))
    state = runtime.export(0)
    runtime.copy(0, [5])
    runtime.restore(19, state)
    how = Draw(SamplingParams(seed=8), 30)
    first, *others = (one(runtime, Job(slot, [3], draw=how)) for slot in (0, 5, 19))
    for other in others:
        same(other, first)


@every_device
def test_scores_equal_those_of_the_cpu(device: str, tmp_path: Path) -> None:
    """Overlapping windows of a text, and pictures."""
    text, drawn = tiny.plain_bytes(tmp_path / "t"), tiny.pictures(tmp_path / "p")
    network = weights.load(tiny.opened(text))
    ids = torch.randint(0, 256, (300,), generator=torch.Generator().manual_seed(1)).int().numpy()
    expected = windows(network, ids, 20, 64, 32)
    assert abs(windows(network.to(device), ids, 20, 64, 32) - expected).max() < 1e-3
    pixels = weights.load(tiny.opened(drawn))
    values = torch.randint(0, 256, (2, 49), generator=torch.Generator().manual_seed(1))
    given = values[:, :-1], values[:, 1:]
    assert math.isclose(per_dimension(pixels, *given), per_dimension(pixels.to(device), *given), abs_tol=1e-3)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Twelve steps on a text that is learned at once."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"line {i % 10} of the song,\nand {i % 7} more.\n\n" for i in range(400)))
    fields = {
        "name": "small", "corpus": str(corpus), "preset": "tiny", "model": {"dropout": 0.1}, "length": 32, "batch": 8,
        "accumulate": 2, "steps": 12, "warmup_steps": 4, "eval_every": 6, "eval_chars": 256, "save_every": 5,
    }  # fmt: skip
    return Recipe.model_validate(fields)


def test_a_run_resumes_exactly(recipe: Recipe, tmp_path: Path) -> None:
    """On the device that a run takes here: stopped after seven steps and gone on, or in one go, equal to the bit."""
    assert recipe.steps > 7
    whole, _ = runs.make_trainer(recipe, tmp_path / "whole")
    assert whole.device.type == DEVICES[-1]
    part, _ = runs.make_trainer(recipe, tmp_path / "part")
    losses = [whole.step() for _ in range(recipe.steps)]
    first = [part.step() for _ in range(7)]
    part.save()
    rest, _ = runs.make_trainer(recipe, tmp_path / "part")
    assert first + [rest.step() for _ in range(recipe.steps - 7)] == losses
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(rest.network.state_dict()[name], tensor), name


def test_a_run_learns_as_on_the_cpu(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dropout, which draws other bits elsewhere, and without autocast: the losses of the CPU.

    Where there is nothing but a CPU, that two runs are one.
    """
    plain = recipe.model_copy(update={"model": {"dropout": 0.0}, "precision": "float32"})
    here, _ = runs.make_trainer(plain, tmp_path / "here")
    losses = [here.step() for _ in range(recipe.steps)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    there, _ = runs.make_trainer(plain, tmp_path / "there")
    assert there.device.type == "cpu"
    assert losses == pytest.approx([there.step() for _ in range(recipe.steps)], abs=0.02)


def test_devices_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says which; the native runtime knows the CPU alone."""
    checkpoint = tiny.opened(tiny.plain_bytes(tmp_path / "m"))
    for device in ("gpu", "cuda:99", "meta", "hpu", "privateuseone", "opengl", "cuda?"):
        with pytest.raises(ValueError, match="torch has no device") as error:
            open_runtime(checkpoint, 1, device=device)
        assert device in str(error.value)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300
    with pytest.raises(RuntimeMissingError, match="on the CPU alone, not on cuda"):
        choose("native", "cuda")
    assert choose("auto", "cuda") == ("torch", "it computes on cuda")
    for device in ("", "cpu:0"):
        assert choose("auto", device) == choose("auto")
        assert open_runtime(checkpoint, 1, wanted="torch", device=device).isa == "cpu"
    monkeypatch.setattr(choice.importlib.util, "find_spec", {"torch": None}.get)
    with pytest.raises(RuntimeMissingError, match=r"cuda needs the torch runtime.*\[torch\]"):
        choose("auto", "cuda")
