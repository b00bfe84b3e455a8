"""Samples of one prompt: computed once, and each as if it had been alone."""

from __future__ import annotations

import dataclasses

import checkpoints_for_tests as tiny
import pytest
from fake_runtime import FakeRuntime

from model.automaton import stops
from model.runtime.base import Runtime
from model.runtime.choice import open_runtime
from model.sampling import SamplingParams
from model.tokenizer import Bytes
from service.request import Generation
from service.scheduler import Scheduler
from service.siblings import LEAST

TOKENIZER = Bytes()
NO_STOPS = stops(TOKENIZER.token_bytes, [], TOKENIZER.end, ignore_end=True)
LENGTH = 700  # more than a chunk


def samples(count: int, length: int = LENGTH, *, guided: bool = False, scored: bool = False) -> list[Generation]:
    """Of one prompt, which they share."""
    prompt = [TOKENIZER.begin, *(i * i % 251 for i in range(length - 1))]
    guide = [TOKENIZER.begin, *(i * i * i % 251 for i in range(length - 1))] if guided else None
    return [
        Generation(
            "g", "m", prompt, SamplingParams(seed=3, sample=i), 20, NO_STOPS, guide=guide, guidance=2.0,
            targets=[*prompt[1:], 0] if scored else None,
        )
        for i in range(count)
    ]  # fmt: skip


def finish(scheduler: Scheduler, generations: list[Generation]) -> tuple[list[list[int]], int]:
    """Run all to their end: what each drew, and how many tokens of prompts were computed."""
    scheduler.add(*generations)
    drawn: dict[Generation, list[int]] = {generation: [] for generation in generations}
    computed = 0
    while scheduler.busy:
        work = scheduler.schedule(0.0)
        assert work, "nothing to do, though not all have ended"
        for (generation, job), done in zip(work, scheduler.runtime.run([job for _, job in work]), strict=True):
            if job.slot != generation.slot:
                computed += len(job.tokens)
                continue
            if generation.num_computed < len(generation.prompt):
                generation.num_computed += len(job.tokens)
                computed += len(job.tokens) * (2 if job.draw is not None and job.draw.guide is not None else 1)
            if done.drawn:
                generation.num_generated += len(done.drawn)
                generation.last_token = done.drawn[-1]
                drawn[generation] += done.drawn
            if generation.num_generated >= generation.max_tokens:
                scheduler.remove(generation)
    return list(drawn.values()), computed


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """A tiny native one of bytes."""
    pytest.importorskip("model.runtime.native._kernel", reason="the native kernel is not built here")
    folder = tiny.plain_bytes(tmp_path_factory.mktemp("siblings") / "m")
    return open_runtime(tiny.opened(folder), 8, threads=1, wanted="native")


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("length", [LEAST, LENGTH])
def test_each_is_as_if_it_had_been_alone(runtime: Runtime, length: int, guided: bool) -> None:
    """The same tokens, for one reading of the prompt and a last token each."""
    together, computed = finish(Scheduler(runtime, 0, 0.01), samples(4, length, guided=guided))
    assert computed == (length - 1 + 4) * (2 if guided else 1)
    for i, sample in enumerate(samples(4, length, guided=guided)):
        alone, _ = finish(Scheduler(runtime, 0, 0.01), [sample])
        assert together[i] == alone[0], i
    assert len({tuple(tokens) for tokens in together}) == 4


def test_who_comes_later_begins_with_what_is_there(runtime: Runtime) -> None:
    """More samples than slots: the rest, once their prompt is no longer at hand, compute it again, together."""
    count = runtime.num_slots + 2
    together, computed = finish(Scheduler(runtime, count, 0.01), samples(count))
    assert [len(tokens) for tokens in together] == [20] * count
    alone, _ = finish(Scheduler(runtime, 0, 0.01), samples(count)[-1:])
    assert together[-1] == alone[0]
    assert computed <= 2 * LENGTH + count


def test_the_first_may_leave() -> None:
    """Before its part is done: the next one takes its place."""
    scheduler = Scheduler(FakeRuntime(3), 0, 0.01)
    generations = samples(3)
    scheduler.add(*generations)
    (work,) = scheduler.schedule(0.0)
    assert work[0] is generations[0]
    generations[0].num_computed = len(work[1].tokens)
    scheduler.remove(generations[0])
    (work,) = scheduler.schedule(0.0)
    assert (work[0], work[1].tokens[0]) == (generations[1], TOKENIZER.begin)


@pytest.mark.parametrize("why", ["other prompts", "short", "scored", "inexact"])
def test_where_nothing_is_shared(why: str) -> None:
    """Each computes its own from the first step on."""
    generations = samples(2, LEAST - 1 if why == "short" else 2 * LEAST, scored=why == "scored")
    if why == "other prompts":
        generations[1] = dataclasses.replace(generations[1], prompt=list(generations[1].prompt))
    scheduler = Scheduler(FakeRuntime(2, exact=why != "inexact"), 0, 0.01)
    scheduler.add(*generations)
    assert [len(job.tokens) for _, job in scheduler.schedule(0.0)] == [len(g.prompt) for g in generations]
