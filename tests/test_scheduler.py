"""Slots, the queue, chunks of prompts, lengths of bursts: no thread, no loop."""

from __future__ import annotations

import dataclasses

import pytest
from fake_runtime import FakeRuntime

from model.automaton import stops
from model.runtime.base import Draw, Guide, Job
from model.sampling import SamplingParams
from model.tokenizer import Bytes
from service.request import MAX_PENDING, Generation
from service.scheduler import (
    FIRST_BUDGET,
    MAX_BURST,
    MAX_BURST_QUEUED,
    PART_IF_SOON,
    PREFILL_BUDGET,
    PREFILL_CHUNK,
    Scheduler,
    prompts_and_bursts,
)
from service.slots import KeyQueueFullError, QueueFullError

TOKENIZER = Bytes()
NO_STOPS = stops(TOKENIZER.token_bytes, [], TOKENIZER.end, ignore_end=True)


def make(name: str = "g", prompt: int = 3, max_tokens: int = 10) -> Generation:
    """A generation whose prompt has so many tokens, the begin symbol included."""
    tokens = [TOKENIZER.begin, *(i % 256 for i in range(prompt - 1))]
    return Generation(name, "fake", tokens, SamplingParams(), max_tokens, NO_STOPS)


def scheduler(
    slots: int = 2, queue: int = 3, burst_seconds: float = 0.05, max_per_key: int = 0, *, exact: bool = True
) -> Scheduler:
    """A scheduler on a fake."""
    return Scheduler(FakeRuntime(slots, exact=exact), queue, burst_seconds, max_per_key)


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


def test_places_of_a_key_beside_the_slots_that_it_may_hold() -> None:
    """Two may run and one may wait, though slots and places are free; who has no key, or another, is not counted."""
    s = Scheduler(FakeRuntime(4), 10, 0.05, 2, 1)

    def of(key: str, count: int) -> list[Generation]:
        made = [make() for _ in range(count)]
        for generation in made:
            generation.key = key
        return made

    with pytest.raises(KeyQueueFullError):
        s.add(*of("a", 4))
    assert not s.waiting
    s.add(*of("a", 3))
    s.admit(0.0)
    assert (len(s.running), len(s.waiting)) == (2, 1)
    with pytest.raises(KeyQueueFullError):
        s.add(*of("a", 1))
    s.add(*of("b", 3))
    s.add(*of("", 5))
    s.add(*of("a", 1), force=True)
    assert len(s.waiting) == 10
    s.remove(s.running[0])
    s.admit(0.0)
    with pytest.raises(KeyQueueFullError):
        s.add(*of("a", 1))


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


def cuts_of(s: Scheduler, mine: Generation) -> list[Job]:
    """The jobs of one generation until it has drawn."""
    cut: list[Job] = []
    for _ in range(5000):
        work = s.schedule(0.0)
        cut += [job for g, job in work if g is mine]
        book(work)
        if mine.num_generated:
            return cut
    raise AssertionError("it never draws")


LENGTHS = [1, 2, PREFILL_CHUNK - 1, PREFILL_CHUNK, PREFILL_CHUNK + 1, 3 * PREFILL_CHUNK + 7]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("company", [0, 5])
@pytest.mark.parametrize("prefill_seconds", [0.0, 1e-6, 4e-5, 1.0])
def test_how_a_prompt_is_cut_does_not_depend_on_company(length: int, company: int, prefill_seconds: float) -> None:
    """Where a cut changes bits: chunks of the same sizes alone and beside others, whatever a token costs."""
    s = scheduler(slots=8, queue=8, exact=False)
    s.prefill_seconds = prefill_seconds
    for i in range(company):
        s.add(make(f"other {i}", prompt=5000))
    mine = make("mine", prompt=length)
    s.add(mine)
    cut = cuts_of(s, mine)
    assert [token for job in cut for token in job.tokens] == mine.prompt
    full, rest = divmod(length, PREFILL_CHUNK)
    assert [len(job.tokens) for job in cut] == [PREFILL_CHUNK] * full + [rest] * bool(rest)
    assert [job.draw is None for job in cut] == [True] * (len(cut) - 1) + [False]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("company", [0, 5])
@pytest.mark.parametrize("budget", [1, 7, 100, PREFILL_CHUNK, PREFILL_BUDGET])
def test_an_exact_runtimes_prompt_is_cut_anywhere(length: int, company: int, budget: int) -> None:
    """Each token once and in order, never more than a chunk or the budget; only the last job draws."""
    s = scheduler(slots=8, queue=8)
    s.prefill_seconds = s.burst_seconds / (budget + 0.5)  # all of a step, where nobody writes yet
    for i in range(company):
        s.add(make(f"other {i}", prompt=300))
    mine = make("mine", prompt=length)
    s.add(mine)
    cut = cuts_of(s, mine)
    assert [token for job in cut for token in job.tokens] == mine.prompt
    assert all(0 < len(job.tokens) <= min(budget, PREFILL_CHUNK) for job in cut)
    assert [job.draw is None for job in cut] == [True] * (len(cut) - 1) + [False]


def sizes_of(work: list[tuple[Generation, Job]]) -> dict[str, int]:
    """How many tokens each has in a step."""
    return {generation.id: len(job.tokens) for generation, job in work}


def beside_prompts(*, exact: bool) -> Scheduler:
    """One running stream and six prompts of two chunks each."""
    s = scheduler(slots=8, exact=exact)
    s.add(make("decoding", prompt=1, max_tokens=100))
    book(s.schedule(0.0))
    for i in range(6):
        s.add(make(str(i), prompt=2 * PREFILL_CHUNK))
    return s


@pytest.mark.parametrize("exact", [True, False])
def test_prompts_share_a_budget_and_the_oldest_come_first(exact: bool) -> None:
    """A step computes so many tokens of prompts at most; running streams draw in every step."""
    s = beside_prompts(exact=exact)
    s.prefill_seconds = 1e-9
    work = s.schedule(0.0)
    assert [g.id for g, _ in work] == ["decoding", "0", "1", "2", "3"]
    assert sum(len(job.tokens) for _, job in work[1:]) == PREFILL_BUDGET
    book(work)
    book(s.schedule(0.0))
    assert [g.id for g, _ in s.schedule(0.0)] == ["decoding", "0", "1", "2", "3", "4", "5"]
    assert s.running[0].num_generated == 3


def test_the_budget_is_measured_time() -> None:
    """Few tokens before their cost is known; then a part of burst_seconds, but at least a token."""
    s = beside_prompts(exact=True)
    assert sizes_of(s.schedule(0.0)) == {"decoding": 1, "0": FIRST_BUDGET}
    seconds = s.burst_seconds * 6 / 7  # one writes, six wait for their first token
    soon = s.burst_seconds * PART_IF_SOON  # 6 x 1,024 tokens are less than 10 bursts, at 1,000 a burst
    for each, wanted in [
        (1.00001 * soon / 1000, {"decoding": 1, "0": 512, "1": 487}),
        (0.99999 * soon / 1000, {"decoding": 1, "0": 512, "1": 488}),
        (0.99999 * seconds / 100, {"decoding": 1, "0": 100}),
        (7.0, {"decoding": 1, "0": 1}),
    ]:
        s.prefill_seconds = each
        assert sizes_of(s.schedule(0.0)) == wanted


@pytest.mark.parametrize(("writing", "beginning", "part"), [(3, 1, 0.5), (2, 2, 0.5), (1, 3, 0.75), (0, 4, 1.0)])
def test_prompts_have_half_of_a_step_or_their_part_of_the_streams(writing: int, beginning: int, part: float) -> None:
    """A long prompt beside many streams does not wait for them; many first tokens do not wait for one stream."""
    s = scheduler(slots=4, queue=8)
    for i in range(writing):
        s.add(make(f"writing {i}", prompt=1, max_tokens=1000))
    if writing:
        book(s.schedule(0.0))
    for i in range(beginning):
        s.add(make(f"beginning {i}", prompt=100 * PREFILL_CHUNK, max_tokens=1000))
    s.prefill_seconds, s.seconds_per_token = 0.99999 * s.burst_seconds / 400, 0.999 * s.burst_seconds / 40
    sizes = sizes_of(s.schedule(0.0))
    assert sum(size for name, size in sizes.items() if name.startswith("beginning")) == 400 * part
    draws = {job.draw.max_new for generation, job in s.schedule(0.0) if job.draw and "writing" in generation.id}
    assert draws == ({40 * (1 - part)} if writing else set())


def test_where_a_cut_changes_bits_the_budget_holds_whole_chunks() -> None:
    """As many chunks as fit, but at least one; a short prompt may use what a long one cannot."""
    s = beside_prompts(exact=False)
    s.add(make("short", prompt=300))
    s.prefill_seconds = 0.99999 * s.burst_seconds * PART_IF_SOON / 1000
    assert sizes_of(s.schedule(0.0)) == {"decoding": 1, "0": 512, "short": 300}
    s.prefill_seconds = 7.0
    assert sizes_of(s.schedule(0.0)) == {"decoding": 1, "0": 512}


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
    """One token before a rate is known, few while somebody waits; else what fits."""
    s = scheduler(slots=1, burst_seconds=0.05)
    assert s._burst(0, 0.5) == 1
    s.seconds_per_token = 0.001
    assert s._burst(0, 0.5) == 50
    s.seconds_per_token = 1e-6
    assert s._burst(0, 0.5) == MAX_BURST
    s.seconds_per_token = 1.0
    assert s._burst(0, 0.5) == 1
    s.seconds_per_token = 0.001
    s.add(make("first", prompt=1, max_tokens=1000))
    book(s.schedule(0.0))
    assert s._burst(0, 0.5) == 50
    s.add(make("second"))
    assert s._burst(0, 0.5) == MAX_BURST_QUEUED
    s.seconds_per_token = 1.0
    assert s._burst(0, 0.5) == 1


def test_who_began_a_moment_ago_writes_a_moment() -> None:
    """Few streams: a burst is no longer than the youngest has been writing. Many: events would cost too much."""
    s = scheduler(slots=20, queue=20)
    s.add(make("first", max_tokens=1000))
    book(s.schedule(0.0))
    s.seconds_per_token = 0.00099
    (first,) = s.running
    assert s._burst(0, 0.5, 10.0) == 50  # nothing is known of it
    first.first_token = 10.0
    assert [s._burst(0, 0.5, 10.0 + age) for age in (0.001, 0.0125, 0.03, 7.0)] == [5, 12, 30, 50]
    s.add(*(make(str(i), max_tokens=1000) for i in range(8)))
    book(s.schedule(17.0))
    assert s._burst(0, 0.5, 10.001) == 50


def test_writers_pass_short_prompts_by() -> None:
    """Until the last event of one of them is as old as the next would be anyway; then they get their share at once."""
    s = scheduler(slots=8, queue=8)
    s.add(make("writing", prompt=1, max_tokens=1000))
    book(s.schedule(0.0))
    s.prefill_seconds, s.seconds_per_token = 0.01 / PREFILL_CHUNK, 0.0001
    s.running[0].last_delivery, s.running[0].first_token = 1.0, 0.5
    s.add(*(make(str(i), prompt=16 * PREFILL_CHUNK, max_tokens=1000) for i in range(2)))

    def drawn(now: float) -> list[int]:
        work = s.schedule(now)
        book(work)
        return [job.draw.max_new for generation, job in work if generation.id == "writing" and job.draw is not None]

    # a step of prompts takes 0.02 s here, a part of 0.9; what was passed by counts
    assert [drawn(now) for now in (1.001, 1.021)] == [[], []]
    (burst,) = drawn(1.041)
    assert 45 <= burst <= 50
    s.running[0].last_delivery = 1.066
    assert drawn(1.066) == []


def test_bursts_beside_prompts() -> None:
    """As long as the prompts take, but half of burst_seconds at most; one token before their cost is known."""
    s = scheduler(burst_seconds=0.05)
    assert s._burst(100, 0.5) == 1
    s.seconds_per_token = 0.001
    assert s._burst(100, 0.5) == 1
    s.prefill_seconds = 0.0001
    assert [s._burst(prefill, 0.5) for prefill in (0, 1, 101, 201, 251, 2000)] == [50, 1, 10, 20, 25, 25]
    assert [s._burst(prefill, 0.75) for prefill in (0, 303, 2000)] == [50, 10, 12]


def test_a_prefill_shortens_the_others_bursts() -> None:
    """In the step that computes a prompt, and only there."""
    s = scheduler(slots=2)
    s.add(make("decoding", prompt=1, max_tokens=1000))
    book(s.schedule(0.0))
    s.seconds_per_token = 0.001
    s.add(make("prefilling", prompt=2 * PREFILL_CHUNK, max_tokens=1000))

    def draws() -> list[int]:
        work = s.schedule(0.0)
        book(work)
        return [job.draw.max_new if job.draw else 0 for _, job in work]

    assert draws() == [1, 0]
    s.prefill_seconds = 0.0250001 / PREFILL_CHUNK
    # the first token does not wait for a burst; with the last part of the prompts, a step is as long as any
    assert draws() == [24, 1]
    assert draws() == [50, 50]


def test_what_a_step_teaches() -> None:
    """What a token costs, smoothed: of prompts, and of so many streams; of more at most in proportion."""
    s = scheduler(slots=4)
    draw = Draw(SamplingParams(), 10)
    s.observe([Job(0, [1])], 0, 5.0)
    s.add(make("one", prompt=1, max_tokens=1000))
    book(s.schedule(0.0))
    assert (s.seconds_per_token, s.prefill_seconds) == (0.0, 0.0)

    def cost() -> float:
        s.schedule(0.0)
        return s.seconds_per_token

    s.observe([Job(0, [1], draw=draw)], 10, 0.1)
    assert cost() == pytest.approx(0.01)
    s.observe([Job(0, [1], draw=draw)], 10, 0.2)
    assert cost() == pytest.approx(0.8 * 0.01 + 0.2 * 0.02)
    for i in range(3):
        s.add(make(str(i), prompt=1, max_tokens=1000))
    book(s.schedule(0.0))
    assert cost() == pytest.approx(4 * 0.012)  # four streams, as long as only one was measured
    s.observe([Job(i, [1], draw=draw) for i in range(4)], 10, 0.15)
    assert cost() == pytest.approx(0.015)
    s.observe([Job(0, [1] * 60), Job(1, [1] * 40)], 0, 0.2)
    assert s.prefill_seconds == pytest.approx(0.002)
    s.observe([Job(0, [1] * 60), Job(1, [1] * 40, draw=draw)], 1, 0.4)
    assert s.prefill_seconds == pytest.approx(0.8 * 0.002 + 0.2 * 0.004)
    assert cost() == pytest.approx(0.015)


BURST = 0.05


COSTS = [(0.0, 1e-4, 2e-5), (1e-3, 2e-3, 4e-5), (2e-4, 5e-5, 1e-6), (5e-3, 5e-3, 1e-4), (0.0, 1e-6, 1e-3)]


@pytest.mark.parametrize(
    ("fixed", "token", "prefill", "exact"),
    # a chunk that must not be cut takes what it takes
    [(*costs, exact) for costs in COSTS for exact in (True, False) if exact or costs[2] * PREFILL_CHUNK <= BURST],
)
def test_a_long_prompt_does_not_stall_who_runs(fixed: float, token: float, prefill: float, exact: bool) -> None:
    """By a clock of costs: no gap above twice burst_seconds, and the prompt gets its share of the time."""
    s = scheduler(slots=4, burst_seconds=BURST, exact=exact)
    now, last, gaps = 0.0, dict.fromkeys("abc", 0.0), []
    for name in "abc":
        s.add(make(name, prompt=20, max_tokens=10**9))

    def step() -> None:
        nonlocal now
        work = s.schedule(now)
        for part in prompts_and_bursts(work):
            jobs = [job for _, job in part]
            if not jobs:
                continue
            drawn = max(job.draw.max_new if job.draw else 0 for job in jobs)
            tokens = sum(len(job.tokens) for job in jobs if len(job.tokens) > 1)
            seconds = fixed + (prefill * tokens if tokens else token * drawn)
            now += seconds
            s.observe(jobs, drawn, seconds)
            for generation, job in part:
                if job.draw is not None and generation is not long:
                    gaps.append(now - last[generation.id])
                    last[generation.id] = now
        book(work)

    long = make("long", prompt=100_000, max_tokens=1)
    for _ in range(20):
        step()
    gaps.clear()
    began, before = now, s.running[0].num_generated
    s.add(long)
    while not long.num_generated:
        step()
    assert max(gaps) <= 2 * BURST
    steps = len(gaps) / 3
    assert now - began <= 2.5 * 100_000 * prefill + 2 * fixed * steps + 1
    assert s.running[0].num_generated - before >= steps


def test_a_key_holds_so_many_slots() -> None:
    """Who has enough is passed over, in its place in the queue; who has no key is not counted."""
    s = scheduler(slots=5, queue=20, max_per_key=2)
    generations = {name: make(name) for name in ("a1", "a2", "a3", "b1", "a4", "1", "2", "3")}
    for name, generation in generations.items():
        generation.key = name[0] if name[0].isalpha() else ""
        s.add(generation)
    s.schedule(0.0)
    assert [g.id for g in s.running] == ["a1", "a2", "b1", "1", "2"]
    assert [g.id for g in s.waiting] == ["a3", "a4", "3"]
    s.remove(generations["1"])
    s.schedule(0.0)
    assert [g.id for g in s.running] == ["a1", "a2", "b1", "2", "3"]
    s.remove(generations["2"])
    s.remove(generations["a2"])
    s.schedule(0.0)
    assert [g.id for g in s.running] == ["a1", "b1", "3", "a3"]
    assert ([g.id for g in s.waiting], len(s.free)) == (["a4"], 1)


def test_without_a_limit_a_key_may_hold_all() -> None:
    """0 means any number."""
    s = scheduler(slots=3)
    for i in range(3):
        s.add(make(str(i)))
        s.waiting[-1].key = "a"
    s.schedule(0.0)
    assert len(s.running) == 3


def test_the_rest_of_an_admitted_request_is_never_refused() -> None:
    """It is queued though there is no place; its turn is after those who wait."""
    s = scheduler(slots=1, queue=1)
    s.add(make("0"), make("1"))
    s.add(make("2"), force=True)
    assert [g.id for g in s.waiting] == ["0", "1", "2"]
    assert s.room("") == 2


def test_a_guided_drawing_takes_two_slots_of_those_that_are_free() -> None:
    """What finds none waits, and there are so many places to wait; a request that never fits is known."""
    s = scheduler(slots=3, queue=0)
    guided = [dataclasses.replace(make(str(i)), guide=[1, 2, 3], guidance=2.0) for i in range(3)]
    assert (s.room(""), s.room("", 2)) == (3, 1)
    with pytest.raises(QueueFullError):
        s.add(*guided[:2])
    s.add(guided[0])
    s.schedule(0.0)
    with pytest.raises(QueueFullError):
        s.add(guided[1])
    s.add(make("one slot"))


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


def guided(name: str, prompt: int = 3, max_tokens: int = 10) -> Generation:
    """A generation with a guide, whose prompt begins in another way."""
    generation = make(name, prompt, max_tokens)
    generation.guide, generation.guidance = [7, *generation.prompt[1:]], 2.0
    return generation


def test_a_guided_one_waits_for_two_slots() -> None:
    """Nobody overtakes it meanwhile; both slots are reset, and free afterwards."""
    s = scheduler(slots=3)
    first, second, third, after = make("1"), make("2"), guided("3"), make("4")
    s.add(first, second, third, after)
    assert [g.id for g, _ in s.schedule(0.0)] == ["1", "2"]
    s.remove(first)
    work = s.schedule(0.0)
    assert [g.id for g, _ in work] == ["2", "3"]
    assert (third.slot, third.guide_slot) == (0, 2)
    assert s.runtime.resets == [0, 1, 0, 2]
    assert [g.id for g in s.waiting] == ["4"]
    s.remove(third)
    s.remove(third)
    assert (sorted(s.free), third.slot, third.guide_slot) == ([0, 2], None, None)


def test_a_guided_one_of_a_busy_key_blocks_no_other_key() -> None:
    """It is passed over as any other, whatever is free; and two slots count as two."""
    s = scheduler(slots=5, queue=9, max_per_key=3)
    mine = [guided("a1"), guided("a2"), make("a3"), make("b1"), make("b2")]
    for generation in mine:
        generation.key = generation.id[0]
        s.add(generation)
    assert [g.id for g, _ in s.schedule(0.0)] == ["a1", "a3", "b1", "b2"]
    assert [g.id for g in s.waiting] == ["a2"]


def test_a_guided_one_that_waits_shortens_bursts() -> None:
    """As a full house does: the slot that it still needs is seen soon."""
    s = scheduler(slots=2, burst_seconds=10.0)
    first = make("1", max_tokens=1000)
    s.add(first)
    book(s.schedule(0.0))
    s.observe([job for _, job in s.schedule(0.0)], 1, 0.001)
    s.add(guided("2"))
    ((_, job),) = s.schedule(0.0)
    assert job.draw.max_new == MAX_BURST_QUEUED


@pytest.mark.parametrize("exact", [True, False])
def test_a_guides_part_counts_in_the_budget(*, exact: bool) -> None:
    """A step reads half as much of a guided prompt, and what it learns is the cost of one token."""
    plain, other = scheduler(slots=4, exact=exact), scheduler(slots=4, exact=exact)
    plain.add(make("1", prompt=2000))
    other.add(guided("1", prompt=2000))
    assert len(plain.schedule(0.0)) == 1
    work = other.schedule(0.0)
    assert {len(job.tokens) for _, job in work} == {256 if exact else PREFILL_CHUNK}
    other.observe([job for _, job in work], 0, len(work[0][1].tokens) * 2e-3)
    assert other.prefill_seconds == pytest.approx(1e-3)
    job = Job(0, [1] * 50, draw=Draw(SamplingParams(), 1, guide=Guide(1, [2] * 50, 2.0)))
    again = scheduler()
    again.observe([job], 1, 0.1)
    assert again.prefill_seconds == pytest.approx(1e-3)


def test_a_guide_reads_the_same_parts() -> None:
    """A part of a prompt is a job for each slot; the last part and a burst are one job with a guide."""
    s = scheduler(exact=False)
    generation = guided("g", prompt=PREFILL_CHUNK + 5)
    s.add(generation)
    work = s.schedule(0.0)
    assert [(job.slot, job.tokens, job.draw) for _, job in work] == [
        (0, generation.prompt[:PREFILL_CHUNK], None),
        (1, generation.guide[:PREFILL_CHUNK], None),
    ]
    book(work[:1])
    ((_, last),) = s.schedule(0.0)
    assert last.draw.guide == Guide(1, generation.guide[PREFILL_CHUNK:], 2.0)
    book([(generation, last)])
    ((_, burst),) = s.schedule(0.0)
    assert (burst.tokens, burst.draw.guide) == ([120], Guide(1, [120], 2.0))


def test_a_guide_counts_as_a_stream() -> None:
    """In what a step costs, and in what a key may hold."""
    s = scheduler(slots=8)
    s.add(guided("1"), guided("2"))
    work = s.schedule(0.0)
    book(work)
    s.observe([job for _, job in s.schedule(0.0)], 5, 0.5)
    assert s._cost(4) == pytest.approx(0.1)
    s = scheduler(slots=8, queue=8, max_per_key=2)
    for generation in (mine := [guided("1"), make("2"), make("3")]):
        generation.key = "k"
        s.add(generation)
    assert [g.id for g, _ in s.schedule(0.0)] == ["1"]
    s.remove(mine[0])
    assert [g.id for g, _ in s.schedule(0.0)] == ["2", "3"]
