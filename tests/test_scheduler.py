"""Slots, the queue, chunks of prompts, lengths of bursts: no thread, no loop."""

from __future__ import annotations

import pytest
from fake_runtime import FakeRuntime

from model.automaton import stops
from model.runtime.base import Draw, Job
from model.sampling import SamplingParams
from model.tokenizer import Bytes
from service.request import MAX_PENDING, Generation
from service.scheduler import MAX_BURST, MAX_BURST_QUEUED, PREFILL_BUDGET, PREFILL_CHUNK, QueueFullError, Scheduler

TOKENIZER = Bytes()
NO_STOPS = stops(TOKENIZER.token_bytes, [], TOKENIZER.end, ignore_end=True)


def make(name: str = "g", prompt: int = 3, max_tokens: int = 10) -> Generation:
    """A generation whose prompt has so many tokens, the begin symbol included."""
    tokens = [TOKENIZER.begin, *(i % 256 for i in range(prompt - 1))]
    return Generation(name, "fake", tokens, SamplingParams(), max_tokens, NO_STOPS)


def scheduler(slots: int = 2, queue: int = 3, burst_seconds: float = 0.05) -> Scheduler:
    """A scheduler on a fake."""
    return Scheduler(FakeRuntime(slots), queue, burst_seconds)


def book(work: list[tuple[Generation, Job]]) -> None:
    """What the engine books when the jobs have run."""
    for generation, job in work:
        if generation.num_computed < len(generation.prompt):
            generation.num_computed += len(job.tokens)
        if job.draw is not None:
            generation.num_generated += job.draw.max_new
            generation.last_token = 120


def test_the_oldest_get_the_lowest_slots() -> None:
    """First come, first served; and a slot is reset before it is used."""
    s = scheduler(slots=3)
    generations = [make(str(i)) for i in range(5)]
    for generation in generations:
        s.add(generation)
    work = s.schedule(now=7.0)
    assert [g.id for g, _ in work] == ["0", "1", "2"]
    assert [job.slot for _, job in work] == [0, 1, 2]
    assert s.runtime.resets == [0, 1, 2]
    assert [g.admitted for g in generations] == [7.0, 7.0, 7.0, None, None]
    s.remove(generations[1])
    work = s.schedule(now=8.0)
    assert [(g.id, job.slot) for g, job in work] == [("0", 0), ("2", 2), ("3", 1)]
    assert [g.id for g in s.waiting] == ["4"]


def test_the_queue_is_bounded() -> None:
    """As many as there are free slots and places; one more is refused and changes nothing."""
    s = scheduler(slots=2, queue=3)
    for i in range(5):
        s.add(make(str(i)))
    with pytest.raises(QueueFullError):
        s.add(make("5"))
    assert len(s.waiting) == 5
    s.schedule(0.0)
    assert (len(s.running), len(s.waiting)) == (2, 3)
    with pytest.raises(QueueFullError):
        s.add(make("6"))
    s.remove(s.running[0])
    s.add(make("7"))
    with pytest.raises(QueueFullError):
        s.add(make("8"))


def test_several_are_queued_together_or_not_at_all() -> None:
    """Slots and places count together; what does not fit leaves nothing behind, and order is kept."""
    s = scheduler(slots=2, queue=3)
    with pytest.raises(QueueFullError):
        s.add(*(make(str(i)) for i in range(6)))
    assert not s.waiting
    s.add(*(make(str(i)) for i in range(5)))
    s.schedule(0.0)
    assert ([g.id for g in s.running], [g.id for g in s.waiting]) == (["0", "1"], ["2", "3", "4"])
    s.remove(s.running[0])
    with pytest.raises(QueueFullError):
        s.add(make("5"), make("6"))
    s.add(make("7"))
    assert [g.id for g in s.waiting] == ["2", "3", "4", "7"]


def test_without_places_only_free_slots_are_given() -> None:
    """A queue of 0 still admits what a slot is free for."""
    s = scheduler(slots=1, queue=0)
    s.add(make())
    with pytest.raises(QueueFullError):
        s.add(make())


def test_remove_from_everywhere() -> None:
    """A waiting one, a running one, and one that is gone: every slot is free once."""
    s = scheduler(slots=1)
    running, waiting = make("running"), make("waiting")
    s.add(running)
    s.add(waiting)
    s.schedule(0.0)
    s.remove(waiting)
    assert not s.waiting
    for _ in range(2):
        s.remove(running)
        assert (s.running, s.free, running.slot) == ([], [0], None)


@pytest.mark.parametrize("max_tokens", [0, 5])
@pytest.mark.parametrize("length", [1, PREFILL_CHUNK, 2 * PREFILL_CHUNK + 7])
def test_targets_are_cut_as_the_prompt_is(length: int, max_tokens: int) -> None:
    """Each chunk with its own targets; only what wants tokens draws, after the last."""
    s = scheduler()
    generation = make(prompt=length, max_tokens=max_tokens)
    generation.targets = [(7 * i) % 256 for i in range(length)]
    s.add(generation)
    cut: list[Job] = []
    while generation.num_computed < length:
        work = s.schedule(0.0)
        cut += [job for _, job in work]
        book(work)
    assert [token for job in cut for token in job.tokens] == generation.prompt
    assert [target for job in cut for target in job.targets or ()] == generation.targets
    assert [job.draw is None for job in cut] == [True] * (len(cut) - 1) + [not max_tokens]
    if max_tokens:
        assert s.schedule(0.0)[0][1].targets is None


@pytest.mark.parametrize("length", [1, 2, PREFILL_CHUNK - 1, PREFILL_CHUNK, PREFILL_CHUNK + 1, 3 * PREFILL_CHUNK + 7])
@pytest.mark.parametrize("company", [0, 5])
def test_how_a_prompt_is_cut_does_not_depend_on_company(length: int, company: int) -> None:
    """Chunks of the same sizes alone and beside other prompts; only the last one draws."""
    s = scheduler(slots=8, queue=8)
    for i in range(company):
        s.add(make(f"other {i}", prompt=5000))
    mine = make("mine", prompt=length)
    s.add(mine)
    cut: list[Job] = []
    for _ in range(1000):
        work = s.schedule(0.0)
        cut += [job for g, job in work if g is mine]
        book(work)
        if mine.num_generated:
            break
    assert [token for job in cut for token in job.tokens] == mine.prompt
    full, rest = divmod(length, PREFILL_CHUNK)
    assert [len(job.tokens) for job in cut] == [PREFILL_CHUNK] * full + [rest] * bool(rest)
    assert [job.draw is None for job in cut] == [True] * (len(cut) - 1) + [False]


def test_prompts_share_a_budget_and_the_oldest_come_first() -> None:
    """A step computes so many tokens of prompts at most; running streams draw in every step."""
    s = scheduler(slots=8)
    decoding = make("decoding", prompt=1, max_tokens=100)
    s.add(decoding)
    book(s.schedule(0.0))
    for i in range(6):
        s.add(make(str(i), prompt=2 * PREFILL_CHUNK))
    work = s.schedule(0.0)
    assert [g.id for g, _ in work] == ["decoding", "0", "1", "2", "3"]
    assert sum(len(job.tokens) for _, job in work[1:]) == PREFILL_BUDGET
    book(work)
    book(s.schedule(0.0))
    assert [g.id for g, _ in s.schedule(0.0)] == ["decoding", "0", "1", "2", "3", "4", "5"]
    assert decoding.num_generated == 3


def test_the_last_token_is_the_next_job() -> None:
    """A burst returns its last token unconsumed: the next job begins with it, and draws no more than is wanted."""
    s = scheduler()
    generation = make(prompt=3, max_tokens=4)
    s.add(generation)
    ((_, first),) = s.schedule(0.0)
    assert first == Job(0, generation.prompt, draw=Draw(generation.params, 1, NO_STOPS))
    generation.num_computed, generation.num_generated, generation.last_token = 3, 1, 77
    s.seconds_per_token = 0.001
    ((_, second),) = s.schedule(0.0)
    assert second == Job(0, [77], draw=Draw(generation.params, 3, NO_STOPS))


def test_bursts_adapt() -> None:
    """One token before a rate is known or while a prompt is computed, few while somebody waits; else what fits."""
    s = scheduler(slots=1, burst_seconds=0.05)
    assert s.burst() == 1
    s.seconds_per_token = 0.001
    assert s.burst() == 50
    s.seconds_per_token = 1e-6
    assert s.burst() == MAX_BURST
    s.seconds_per_token = 1.0
    assert s.burst() == 1
    s.seconds_per_token = 0.001
    s.add(make("first", prompt=1, max_tokens=1000))
    assert s.burst() == MAX_BURST_QUEUED
    book(s.schedule(0.0))
    assert s.burst() == 50
    s.add(make("second"))
    assert s.burst() == MAX_BURST_QUEUED
    s.seconds_per_token = 1.0
    assert s.burst() == 1


def test_a_prefill_shortens_the_others_bursts() -> None:
    """While a prompt is computed, running streams draw one token a step."""
    s = scheduler(slots=2)
    s.add(make("decoding", prompt=1, max_tokens=1000))
    book(s.schedule(0.0))
    s.seconds_per_token = 0.001
    s.add(make("prefilling", prompt=2 * PREFILL_CHUNK))
    draws = [job.draw.max_new if job.draw else 0 for _, job in s.schedule(0.0)]
    assert draws == [1, 0]


def test_only_decode_steps_teach_the_rate() -> None:
    """A step's cost a token, smoothed; steps with a prefill say nothing about decoding."""
    s = scheduler()
    draw = Draw(SamplingParams(), 10)
    s.observe([Job(0, [1], draw=draw), Job(1, [1, 2, 3], draw=draw)], 10, 5.0)
    assert s.seconds_per_token == 0.0
    s.observe([Job(0, [1])], 0, 5.0)
    assert s.seconds_per_token == 0.0
    s.observe([Job(0, [1], draw=draw)], 10, 0.1)
    assert s.seconds_per_token == pytest.approx(0.01)
    s.observe([Job(0, [1], draw=draw)], 10, 0.2)
    assert s.seconds_per_token == pytest.approx(0.8 * 0.01 + 0.2 * 0.02)


def test_a_paused_generation_has_no_job() -> None:
    """Who lags MAX_PENDING bursts behind waits in its slot; the others go on."""
    s = scheduler(slots=2)
    lagging, other = make("lagging", max_tokens=1000), make("other", max_tokens=1000)
    s.add(lagging)
    s.add(other)
    book(s.schedule(0.0))
    lagging.num_delivered = MAX_PENDING
    assert [g for g, _ in s.schedule(0.0)] == [other]
    lagging.num_taken += 1
    assert [g for g, _ in s.schedule(0.0)] == [lagging, other]
