"""Guidance: a draw is steered by a second slot that was told less. Both runtimes; then the service."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import checkpoints_for_tests as tiny
import numpy as np
import pytest
from jobs_for_tests import one, prompt, same
from numpy.typing import NDArray

from model.automaton import stops
from model.runtime.base import Done, Draw, Guide, Job, JobError, Runtime
from model.runtime.choice import native_is_built
from model.runtime.eager import EagerRuntime
from model.sampling import SamplingParams, draw, log_softmax, penalised

SLOTS = 20
PARAMS = SamplingParams(seed=3, top_p=0.95, frequency_penalty=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of bytes with a token shift: the order of rows in a pass shows."""
    return tiny.plain_bytes(tmp_path_factory.mktemp("guided") / "m", token_shift=True)


@pytest.fixture(scope="module", params=["torch", "native"])
def shared(request: pytest.FixtureRequest, folder: Path) -> Runtime:
    """Each runtime, once."""
    if request.param == "torch":
        return EagerRuntime(tiny.opened(folder), SLOTS)
    if not native_is_built():
        pytest.skip("the native kernel is not built here")
    from model.runtime.native.runtime import NativeRuntime

    return NativeRuntime(tiny.opened(folder), SLOTS, threads=2)


@pytest.fixture
def runtime(shared: Runtime) -> Runtime:
    """Every slot reset."""
    for slot in range(SLOTS):
        shared.reset(slot)
    return shared


def guided(slot: int = 0, guide: int = 1, weight: float = 2.5, length: int = 30, count: int = 12, **how: Any) -> Job:
    """A job that draws, beside a guide of another prompt."""
    less = Guide(guide, prompt(max(1, length - 3), 8), weight)
    return Job(slot, prompt(length, 7), draw=Draw(PARAMS, count, top=2, guide=less, **how))


def by_hand(runtime: Runtime, job: Job, slots: tuple[int, int]) -> list[int]:
    """The same draws from two plain streams whose logits are combined here."""
    assert job.draw is not None
    assert job.draw.guide is not None

    def last(slot: int, tokens: list[int]) -> NDArray[np.float32]:
        logits = one(runtime, Job(slot, tokens, logits="last")).logits
        assert logits is not None
        return logits

    tokens, less = list(job.tokens), list(job.draw.guide.tokens)
    seen = np.zeros(runtime.vocab_size, np.bool_)
    seen[tokens] = True
    counts, drawn = np.zeros(runtime.vocab_size, np.int32), list[int]()
    for _ in range(job.draw.max_new):
        own, other = last(slots[0], tokens).astype(np.float64), last(slots[1], less).astype(np.float64)
        scores = penalised(other + job.draw.guide.weight * (own - other), job.draw.params, counts, seen)
        token = draw(scores, job.draw.params, runtime.position(slots[0]))
        counts[token] += 1
        drawn.append(token)
        tokens = less = [token]
    return drawn


def outcome(runtime: Runtime, job: Job) -> tuple[Done, bytes, bytes]:
    """What a guided job gives, and both states after it."""
    assert job.draw is not None
    assert job.draw.guide is not None
    return one(runtime, job), runtime.export(job.slot), runtime.export(job.draw.guide.slot)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 3.0])
def test_draws_are_those_of_two_streams(runtime: Runtime, weight: float) -> None:
    """g + weight (own - g), penalties and truncation after it; log-probabilities are the guided stream's own."""
    job = guided(weight=weight)
    done = one(runtime, job)
    assert done.drawn == by_hand(runtime, job, (2, 3))
    logits = one(runtime, Job(4, [*job.tokens, *done.drawn[:-1]], logits="all")).logits
    assert logits is not None
    own = log_softmax(logits[len(job.tokens) - 1 :])[np.arange(12), done.drawn]
    np.testing.assert_allclose(done.logprobs, own, atol=1e-4)


def test_a_weight_of_one_changes_nothing(runtime: Runtime) -> None:
    """And another one does."""
    plain = one(runtime, Job(5, prompt(30, 7), draw=Draw(PARAMS, 12, top=2)))
    assert one(runtime, guided(weight=1.0)).drawn == plain.drawn
    assert one(runtime, guided(2, 3, weight=4.0)).drawn != plain.drawn


@pytest.mark.parametrize("length", [1, 2, 60, 140])
def test_company_slots_and_bursts_change_nothing(runtime: Runtime, length: int) -> None:
    """Alone, in other slots among others that fill a pass, and drawn one by one."""
    done, own, less = outcome(runtime, guided(length=length))
    others = [Job(slot, prompt(40, slot), draw=Draw(SamplingParams(seed=slot), 9)) for slot in range(4, 16)]
    moved = guided(17, 2, length=length)
    results = runtime.run([*others[:7], guided(18, 19, length=9, weight=0.3), moved, *others[7:]])
    same(results[8], done)
    assert (runtime.export(17), runtime.export(2)) == (own, less)
    for slot in range(SLOTS):
        runtime.reset(slot)
    job = guided(length=length, count=1)
    drawn, tokens = list[int](), list(job.tokens)
    assert job.draw is not None
    guide = job.draw.guide
    for _ in range(12):
        drawn += one(
            runtime, dataclasses.replace(job, tokens=tokens, draw=dataclasses.replace(job.draw, guide=guide))
        ).drawn
        tokens = drawn[-1:]
        guide = Guide(1, tokens, 2.5)
    assert drawn == done.drawn
    assert (runtime.export(0), runtime.export(1)) == (own, less)


def test_a_guide_leaves_the_last_drawn_token(runtime: Runtime) -> None:
    """It has consumed what its stream has; an automaton that stops the one stops the other."""
    tokens = [bytes([value]) for value in range(256)] + [b"", b""]
    done = one(runtime, guided(length=10, count=5, automaton=stops(tokens, [], 257, ignore_end=True)))
    assert (runtime.position(0), runtime.position(1)) == (10 + 4, 7 + 4)
    word = bytes(done.drawn[1:3])
    stopped = one(runtime, guided(2, 3, length=10, count=5, automaton=stops(tokens, [word], 257, ignore_end=True)))
    assert stopped.drawn == done.drawn[:3]
    assert (runtime.position(2), runtime.position(3)) == (10 + 2, 7 + 2)


def test_a_weight_beyond_all_measure_is_a_fault(runtime: Runtime) -> None:
    """Of that job alone; the others go on."""
    job = guided(weight=1e308)
    assert job.draw is not None
    faulty, fine = runtime.run([job, Job(5, prompt(9), draw=Draw(PARAMS, 3))])
    assert faulty.stopped is not None
    assert faulty.stopped.value == "fault"
    assert len(fine.drawn) == 3


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"slot": 0}, "one job in a call"),
        ({"slot": 2}, "one job in a call"),
        ({"slot": SLOTS}, "outside 0 ... 19"),
        ({"tokens": []}, "at least one token"),
        ({"tokens": [999]}, "outside the vocabulary"),
        ({"tokens": [1] * 40}, "10 tokens ahead"),
        ({"weight": math.nan}, "weight is nan"),
        ({"weight": math.inf}, "weight is inf"),
    ],
)
def test_a_bad_guide_changes_no_slot(runtime: Runtime, change: dict[str, Any], word: str) -> None:
    """An error before anything is computed."""
    job = guided()
    assert job.draw is not None
    assert job.draw.guide is not None
    bad = dataclasses.replace(job.draw, guide=dataclasses.replace(job.draw.guide, **change))
    with pytest.raises(JobError, match=word):
        runtime.run([Job(2, [1]), dataclasses.replace(job, draw=bad)])
    assert all(runtime.position(slot) == 0 for slot in range(SLOTS))
