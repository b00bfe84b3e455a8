"""The native runtime: draws are those of model/sampling.py, and what is no job, state or checkpoint is refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import checkpoints_for_tests as tiny
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs_for_tests import BAD, HOW, forge, one, prompt, rehash, same
from native_for_tests import (
    SLOTS,
    Checkpoints,
    Pool,
    automaton,
    every_shape,
    kernel,
    running,
    written,
)
from test_sampling import ANSWERS, words
from variants import make_config

from model import checkpoint
from model.automaton import Automaton
from model.checkpoint import Checkpoint, CheckpointError
from model.runtime.base import Done, Draw, Job, JobError, StateError, Stop
from model.runtime.eager import EagerRuntime
from model.runtime.native.runtime import NativeRuntime
from model.runtime.sampler import SlotSampler
from model.sampling import SamplingParams, log_softmax, truncate, uniform


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """A random model of each shape."""
    return written(tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def pool(checkpoints: Checkpoints) -> Pool:
    """A runtime of each shape, every slot reset."""
    return running(checkpoints)


@pytest.fixture
def runtime(pool: Pool) -> NativeRuntime:
    """The shape that is nearest to the shipped one; it has no end."""
    return pool("relative decay")


# --- draws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("counter", "key", "result"), ANSWERS)
def test_philox_gives_the_known_answers(counter: str, key: str, result: str) -> None:
    """Random123's, as of the oracle."""
    assert tuple(kernel.philox(list(words(counter)), *words(key))) == words(result)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1))
def test_uniform_is_the_oracles(seed: int, sample: int, position: int) -> None:
    """The same 53 bits."""
    assert kernel.uniform(seed % 2**64, sample, position) == uniform(seed, sample, position)


def random_params(rng: np.random.Generator, vocab_size: int) -> SamplingParams:
    """Every option, each of them off in a part of the cases."""
    biased = rng.integers(0, vocab_size, rng.integers(0, 30)).tolist()
    return SamplingParams(
        temperature=float(rng.choice([0.0, 0.2, 1.0, 1.0, 3.0])),
        top_p=float(rng.choice([1.0, 0.95, 0.4])),
        top_k=int(rng.choice([0, 0, 1, 4, 40, 1000])),
        min_p=float(rng.choice([0.0, 0.0, 0.01, 0.5, 1.0])),
        frequency_penalty=float(rng.choice([0.0, 0.6, -0.9, 2.0])),
        presence_penalty=float(rng.choice([0.0, 0.8, -1.1])),
        repetition_penalty=float(rng.choice([1.0, 1.3, 0.7])),
        logit_bias={token: float(rng.choice([-100.0, -5.0, 1.5, 9.0])) for token in biased},
        seed=int(rng.integers(-(2**63), 2**63)),
        sample=int(rng.choice([0, 1, 7, 2**32 - 1])),
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", ["relative decay", "none", "raster decay"])
def test_draws_are_the_oracles(pool: Pool, shape: str, seed: int) -> None:
    """24 streams of random options, step by step from the runtime's own logits, then each in one burst."""
    runtime, rng, steps = pool(shape), np.random.default_rng(seed), 9
    vocab, stops = runtime.vocab_size, set[Stop | None]()
    how = {}
    for slot in range(SLOTS):
        table = automaton(vocab, slot, accepting=0.1) if slot % 2 else None
        how[slot] = Draw(random_params(rng, vocab), 1, table, top=slot % 5)
    given_tokens = {slot: prompt(slot % 7 + 1, 100 * seed + slot, vocab) for slot in how}
    tokens, samplers = dict(given_tokens), {slot: SlotSampler.empty(vocab) for slot in how}
    singles, ours = ({slot: Done() for slot in how} for _ in range(2))
    for _ in range(steps):
        jobs = [Job(slot, tokens[slot], logits="last", draw=how[slot]) for slot in tokens]
        for job, done in zip(jobs, runtime.run(jobs), strict=True):
            slot, mine, expected = job.slot, singles[job.slot], ours[job.slot]
            assert done.logits is not None
            samplers[slot].consume(job.tokens)
            samplers[slot].draw(done.logits, how[slot], runtime.position(slot), expected)
            mine.drawn += done.drawn
            mine.logprobs += done.logprobs
            mine.top += done.top
            mine.stopped = done.stopped
            stops.add(done.stopped)
            assert (mine.drawn, mine.stopped) == (expected.drawn, expected.stopped)
            tokens[slot] = done.drawn
            if done.stopped is not None:
                del tokens[slot]
    assert {None, Stop.ACCEPT} <= stops
    for slot in how:
        np.testing.assert_allclose(singles[slot].logprobs, ours[slot].logprobs, rtol=0, atol=1e-9)
        for mine_top, top in zip(singles[slot].top, ours[slot].top, strict=True):
            assert [token for token, _ in mine_top] == [token for token, _ in top]
            np.testing.assert_allclose([x for _, x in mine_top], [x for _, x in top], rtol=0, atol=1e-9)
        runtime.reset(slot)
    bursts = [Job(slot, given_tokens[slot], draw=dataclasses.replace(how[slot], max_new=steps)) for slot in how]
    for job, done in zip(bursts, runtime.run(bursts), strict=True):
        same(done, singles[job.slot])


def test_log_probabilities_are_those_of_the_logits(pool: Pool) -> None:
    """Of targets and of every token of ``top``, which cannot be longer than the vocabulary."""
    runtime = pool("raster")
    tokens, targets = prompt(30, 1, runtime.vocab_size), prompt(30, 2, runtime.vocab_size)
    done = one(runtime, Job(0, tokens, targets, logits="all", draw=Draw(SamplingParams(), 1, top=10_000)))
    assert done.logits is not None
    expected = log_softmax(done.logits)
    np.testing.assert_allclose(done.target_logprobs, expected[np.arange(30), targets], rtol=0, atol=1e-9)
    assert [token for token, _ in done.top[0]] == np.argsort(-expected[-1], kind="stable").tolist()
    np.testing.assert_allclose([x for _, x in done.top[0]], sorted(expected[-1])[::-1], rtol=0, atol=1e-9)


def test_ties_go_to_the_lowest_id(tmp_path: Path) -> None:
    """A head of zeros: every token is as likely as any other."""
    folder = tiny.of_config(tmp_path / "m", make_config("relative"), lambda network: network.head.weight.data.zero_())
    runtime = NativeRuntime(tiny.opened(folder), 1)
    greedy = one(runtime, Job(0, [5], targets=[6], draw=Draw(SamplingParams(temperature=0), 3, top=4)))
    assert greedy.drawn == [0, 0, 0]
    assert [[token for token, _ in top] for top in greedy.top] == [[0, 1, 2, 3]] * 3
    assert greedy.target_logprobs == pytest.approx([-math.log(258)], abs=1e-12)
    few = one(runtime, Job(0, [5], draw=Draw(SamplingParams(top_k=3), 60)))
    assert set(few.drawn) == {0, 1, 2}


def test_draws_have_their_distribution(pool: Pool) -> None:
    """20,000 samples of one distribution: chi-square below its 1 - 1e-6 quantile (by Wilson and Hilferty)."""
    runtime, params = pool("none decay"), SamplingParams(seed=11, temperature=1.5, top_k=40, top_p=0.95)
    logits = one(runtime, Job(0, [65], logits="last")).logits
    assert logits is not None
    expected = truncate(logits.astype(np.float64), params)
    expected *= 20_000 / expected.sum()
    counts = np.zeros(runtime.vocab_size)
    for first in range(0, 20_000, SLOTS):
        for slot in range(SLOTS):
            runtime.reset(slot)
        draws = [
            Draw(dataclasses.replace(params, sample=first + slot), 1) for slot in range(min(SLOTS, 20_000 - first))
        ]
        for done in runtime.run([Job(slot, [65], draw=draw) for slot, draw in enumerate(draws)]):
            counts[done.drawn[0]] += 1
    kept = expected > 0
    assert counts[~kept].sum() == 0
    assert expected[kept].min() > 20
    degrees = int(kept.sum()) - 1
    quantile = degrees * (1 - 2 / (9 * degrees) + 4.75 * math.sqrt(2 / (9 * degrees))) ** 3
    assert ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum() < quantile


def test_a_stream_ends_at_the_last_position(pool: Pool) -> None:
    """max_position tokens are consumed; the token drawn after the last one is the stream's last. The others go on."""
    runtime, params = pool("absolute"), SamplingParams(seed=1)
    done, mate = runtime.run([Job(0, [1] * 4, draw=Draw(params, 200)), Job(1, [1] * 2, draw=Draw(params, 39))])
    assert (len(done.drawn), done.stopped, runtime.position(0)) == (41 - 4 + 1, Stop.LENGTH, 41)
    assert (len(mate.drawn), mate.stopped, runtime.position(1)) == (39, None, 40)
    exact = one(runtime, Job(2, [1] * 4, draw=Draw(params, 37)))
    assert (exact.drawn, exact.stopped) == (done.drawn[:-1], None)
    last = one(runtime, Job(2, exact.drawn[-1:], draw=Draw(params, 5)))
    assert (last.drawn, last.stopped) == (done.drawn[-1:], Stop.LENGTH)
    assert runtime.export(2) == runtime.export(0)
    with pytest.raises(JobError, match="slot 0: 1 tokens, but the model ends after 0 more"):
        runtime.run([Job(0, [1])])


def test_nothing_to_draw_is_a_fault(runtime: NativeRuntime) -> None:
    """All forbidden by an automaton at once or later, or by bias: a fault, and the other jobs go on."""
    vocab = runtime.vocab_size
    table = np.full((3, vocab), -1, np.int32)
    table[0] = 2
    later = Draw(SamplingParams(seed=3), 5, Automaton(table))
    never = Draw(SamplingParams(logit_bias=dict.fromkeys(range(vocab), -100.0)), 5)
    at_once = Draw(SamplingParams(temperature=0), 5, Automaton(np.full((2, vocab), -1, np.int32)))
    free = Draw(SamplingParams(seed=3), 9)
    expected = one(runtime, Job(9, [1, 2], draw=free))
    jobs = [Job(slot, [1, 2], draw=draw) for slot, draw in enumerate((free, later, never, at_once, free))]
    first, *faults, last = runtime.run(jobs)
    same(first, expected)
    same(last, expected)
    assert [(done.drawn, done.stopped) for done in faults] == [
        (expected.drawn[:1], Stop.FAULT), ([], Stop.FAULT), ([], Stop.FAULT)
    ]  # fmt: skip
    assert [runtime.position(slot) for slot in range(5)] == [10, 3, 2, 2, 10]


# --- what is refused ---------------------------------------------------------------------------------------------

BAD_HERE: dict[str, tuple[Job, str]] = {
    **BAD,
    "max_new beyond 31 bits": (Job(1, [1], draw=dataclasses.replace(HOW, max_new=2**31)), "max_new is 2147483648"),
    "top": (Job(1, [1], draw=dataclasses.replace(HOW, top=-1)), "slot 1: top is -1, at least 0"),
    "automaton of few states": (Job(2, [1], draw=dataclasses.replace(HOW, automaton=automaton(258))), "fewer states"),
}


@pytest.mark.parametrize("name", BAD_HERE)
def test_a_bad_job_changes_no_slot(runtime: NativeRuntime, name: str) -> None:
    """Beside a good one, before or after it: JobError says what is wrong, and nothing has happened."""
    runtime.run([Job(0, prompt(5)), Job(1, prompt(3))])
    runtime.restore(2, forge(runtime.export(0), lambda facts: facts.update(automaton_state=5)))
    before = [runtime.export(slot) for slot in range(SLOTS)]
    bad, message = BAD_HERE[name]
    for jobs in ([Job(0, [5, 6]), bad], [bad, Job(0, [5, 6])]):
        with pytest.raises(JobError) as caught:
            runtime.run(jobs)
        assert message in str(caught.value)
        assert [runtime.export(slot) for slot in range(SLOTS)] == before
    assert runtime.run([]) == []


@pytest.mark.parametrize("slot", [-1, SLOTS])
def test_no_such_slot(runtime: NativeRuntime, slot: int) -> None:
    """IndexError from everything that takes a slot, and no slot has changed."""
    runtime.run([Job(0, prompt(5))])
    before, state = [runtime.export(each) for each in range(SLOTS)], runtime.export(0)
    calls: list[Callable[[], object]] = [
        lambda: runtime.position(slot), lambda: runtime.reset(slot), lambda: runtime.export(slot),
        lambda: runtime.copy(slot, [1]), lambda: runtime.copy(0, [1, slot]), lambda: runtime.restore(slot, state),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(IndexError, match=f"slot {slot} is outside"):
            call()
    assert [runtime.export(each) for each in range(SLOTS)] == before


def test_tokens_may_be_numpys(runtime: NativeRuntime) -> None:
    """Integers of numpy, alone or as an array, are tokens too."""
    plain = one(runtime, Job(0, prompt(5), targets=prompt(5, 1)))
    same(one(runtime, Job(1, list(np.array(prompt(5))), targets=list(np.array(prompt(5, 1))))), plain)
    runtime.run([Job(2, np.array(prompt(5)))])  # type: ignore[arg-type]
    assert runtime.export(2) == runtime.export(1) == runtime.export(0)


@settings(max_examples=150)
@given(st.data())
def test_damaged_states_are_refused(pool: Pool, data: st.DataObject) -> None:
    """Bytes changed, cut, added or made up, arrays cut behind a right hash: StateError, and the slot is as it was."""
    runtime = pool("none")
    runtime.run([Job(0, prompt(5)), Job(1, prompt(9))])
    state, before = runtime.export(0), runtime.export(1)
    kind = data.draw(st.sampled_from(["flip", "cut", "add", "random", "body", "rehashed cut"]))
    at = data.draw(st.integers(0, len(state) - 1))
    body = state[12 + int.from_bytes(state[8:12], "little") : -32]
    bad = {
        "flip": lambda: state[:at] + bytes([state[at] ^ data.draw(st.integers(1, 255))]) + state[at + 1 :],
        "cut": lambda: state[:at],
        "add": lambda: state + data.draw(st.binary(min_size=1, max_size=50)),
        "random": lambda: data.draw(st.binary(max_size=300)),
        "body": lambda: forge(state, dict.copy, body[: at % len(body)]),
        "rehashed cut": lambda: rehash(state[: min(at, len(state) - 33)]),
    }[kind]()
    with pytest.raises(StateError):
        runtime.restore(1, bad)
    assert runtime.export(1) == before


JSON = (
    st.none() | st.text(max_size=5) | st.floats() | st.integers(-(2**70), 2**70) | st.lists(st.integers(), max_size=2)
)


@settings(max_examples=100)
@given(JSON, JSON, st.booleans())
def test_a_head_is_valid_or_refused(pool: Pool, position: object, automaton_state: object, keep: bool) -> None:
    """Any JSON for the position and the automaton's state, the hash right: restored as it says, or StateError."""
    runtime = pool("absolute")
    runtime.run([Job(0, prompt(5)), Job(1, prompt(9))])
    before, facts = runtime.export(1), {"position": 7 if keep else position, "automaton_state": automaton_state}
    valid = all(isinstance(x, int) and 0 <= x <= most for x, most in zip(facts.values(), (41, 2**31 - 1), strict=True))
    state = forge(runtime.export(0), lambda known: known.update(facts))
    if valid:
        runtime.restore(1, state)
        assert runtime.export(1) == state
    else:
        with pytest.raises(StateError):
            runtime.restore(1, state)
        assert runtime.export(1) == before


def test_another_models_state_is_refused(pool: Pool, checkpoints: Checkpoints) -> None:
    """Of another shape, and the torch runtime's of the same model."""
    runtime = pool("relative decay")
    before = runtime.export(1)
    for other in (pool("none"), EagerRuntime(checkpoints("relative decay"), 1)):
        with pytest.raises(StateError, match="another model"):
            runtime.restore(1, other.export(0))
    assert runtime.export(1) == before


Tensors = dict[str, torch.Tensor]


def changed(source: Checkpoint, folder: Path, change: Callable[[Tensors], object]) -> Checkpoint:
    """A copy of a checkpoint with other tensors, its hashes right."""
    tensors = safetensors.torch.load_file(source.folder / checkpoint.WEIGHTS)
    change(tensors)
    checkpoint.save(safetensors.torch.save(tensors), source.config.model, source.codec, folder, {})
    return Checkpoint(folder)


@every_shape
def test_a_checkpoint_of_other_tensors_is_refused(tmp_path: Path, checkpoints: Checkpoints, shape: str) -> None:
    """Each tensor in turn missing, of another shape, or of another type: CheckpointError names it."""
    source = checkpoints(shape)
    names = sorted(safetensors.torch.load_file(source.folder / checkpoint.WEIGHTS))
    assert any("log_decay" in name for name in names) == source.config.model.decay
    changes: list[Callable[[Tensors, str], object]] = [
        lambda tensors, name: tensors.pop(name),
        lambda tensors, name: tensors.update({name: torch.cat([tensors[name], tensors[name][:1]])}),
        lambda tensors, name: tensors.update({name: tensors[name][None].clone()}),
        lambda tensors, name: tensors.update({name: tensors[name].half()}),
        lambda tensors, name: tensors.update({name: tensors[name].double()}),
    ]
    for number, name in enumerate(names):
        change = changes[(number + len(shape)) % len(changes)]
        bad = changed(source, tmp_path / "m", lambda tensors: change(tensors, name))  # noqa: B023
        with pytest.raises(CheckpointError, match=f"^m: model.safetensors: {name} "):
            NativeRuntime(bad, 1)
    with pytest.raises(CheckpointError, match=r"blocks\.9\.norm has shape .*, the config asks for nothing"):
        NativeRuntime(changed(source, tmp_path / "m", lambda t: t.update({"blocks.9.norm": torch.ones(3)})), 1)


@every_shape
def test_a_tensors_type_changes_nothing(tmp_path: Path, checkpoints: Checkpoints, shape: str) -> None:
    """Matrices in float32, or biases in bf16 where these are exact: the same bits."""
    plain = NativeRuntime(changed(checkpoints(shape), tmp_path / "m", rounded_biases), 1)
    narrow = NativeRuntime(changed(checkpoints(shape), tmp_path / "n", narrow_biases), 1)
    wide = NativeRuntime(changed(checkpoints(shape), tmp_path / "w", wide_matrices), 1)
    job = Job(0, prompt(30), logits="all")
    same(one(narrow, job), one(plain, job))
    own = NativeRuntime(checkpoints(shape), 1, match=False)
    same(one(wide, job), one(own, job))
    assert wide.fingerprint != own.fingerprint


def rounded_biases(tensors: Tensors) -> None:
    """Biases that bf16 holds exactly."""
    tensors.update({name: t.bfloat16().float() for name, t in tensors.items() if "bias" in name})


def narrow_biases(tensors: Tensors) -> None:
    """The same, stored in bf16."""
    tensors.update({name: t.bfloat16() for name, t in tensors.items() if "bias" in name})


def wide_matrices(tensors: Tensors) -> None:
    """Everything in float32."""
    tensors.update({name: t.float() for name, t in tensors.items()})


def test_no_such_runtime(tmp_path: Path, checkpoints: Checkpoints) -> None:
    """Slots, threads and instruction sets that do not exist; a file that holds no tensors."""
    for arguments in ((0,), (1, 0), (1, 1, "mmx")):
        with pytest.raises(ValueError, match=r"must be at least 1|'mmx' is not available here; available: "):
            NativeRuntime(checkpoints("none"), *arguments)
    source = checkpoints("none")
    checkpoint.save(b"no tensors", source.config.model, source.codec, tmp_path / "m", {})
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        NativeRuntime(Checkpoint(tmp_path / "m"), 1)
