"""The engine on a fake runtime: batching, faults, cancellation, back pressure, ends."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fake_runtime import FakeRuntime, expected, likeliest, target_logprob
from prometheus_client import CollectorRegistry

from model.automaton import stops
from model.sampling import SamplingParams
from model.tokenizer import Bytes
from service.engine import Engine, Served
from service.errors import ApiError
from service.metrics import Metrics
from service.request import MAX_PENDING, Generation, Outcome, take
from service.scheduler import PREFILL_CHUNK, Scheduler

TOKENIZER = Bytes()


class Rig:
    """An engine with one fake model."""

    def __init__(self, runtime: FakeRuntime, queue: int, burst_seconds: float) -> None:
        self.runtime = runtime
        self.metrics = Metrics(CollectorRegistry())
        self.scheduler = Scheduler(runtime, queue, burst_seconds)
        self.engine = Engine(
            [Served("fake", runtime, TOKENIZER, self.scheduler, 0, 8)], self.metrics, asyncio.get_running_loop()
        )

    def make(self, prompt: str = "ab", max_tokens: int = 20, seed: int = 0, **changes: Any) -> Generation:
        """A generation that is not submitted."""
        stop = [s.encode() for s in changes.pop("stop", [])]
        ignore_end = changes.get("max_seconds") is not None
        automaton = stops(TOKENIZER.token_bytes, stop, TOKENIZER.end, ignore_end=ignore_end)
        tokens = [TOKENIZER.begin, *TOKENIZER.encode(prompt)]
        return Generation("g", "fake", tokens, SamplingParams(seed=seed), max_tokens, automaton, **changes)

    def submit(self, *args: Any, **changes: Any) -> Generation:
        """A generation in the engine's hands."""
        generation = self.make(*args, **changes)
        self.engine.submit(generation)
        return generation

    def value(self, name: str, **labels: str) -> float | None:
        """One sample."""
        return self.metrics.registry.get_sample_value(name, {"model": "fake", **labels})


@asynccontextmanager
async def rig(runtime: FakeRuntime, queue: int = 8, burst_seconds: float = 0.05) -> AsyncIterator[Rig]:
    """An engine that is closed at the end."""
    made = Rig(runtime, queue, burst_seconds)
    try:
        yield made
    finally:
        runtime.gate.set()
        await asyncio.to_thread(made.engine.close)


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine, for a minute at most."""

    async def limited() -> None:
        async with asyncio.timeout(60):
            await test

    asyncio.run(limited())


async def collect(generation: Generation) -> tuple[str, Outcome]:
    """A generation's text and how it ended."""
    tokens: list[int] = []
    while True:
        burst = await generation.next()
        tokens += burst.tokens
        if burst.outcome is not None:
            return TOKENIZER.decode(tokens), burst.outcome


async def until(condition: Callable[[], Any]) -> None:
    """Poll on the loop."""
    while not condition():
        await asyncio.sleep(0.002)


async def idle(made: Rig, slots: int) -> None:
    """All slots are free again, and the gauges say so."""
    await until(lambda: len(made.scheduler.free) == slots and not made.engine.num_active)
    await until(lambda: made.value("aft_slots_in_use") == 0 and made.value("aft_requests_waiting") == 0)
    assert sorted(made.scheduler.free) == list(range(slots))


def test_each_gets_its_own_text() -> None:
    """More generations than slots, of different lengths: each text is that of the generation alone."""

    async def test() -> None:
        async with rig(FakeRuntime(3), queue=20) as made:
            wanted = [("x" * i, i, 5 + 7 * i) for i in range(12)]
            generations = [made.submit(p, max_tokens=n, seed=s) for p, s, n in wanted]
            results = await asyncio.gather(*map(collect, generations))
            assert results == [(expected(p, s, n), Outcome.LENGTH) for p, s, n in wanted]
            await idle(made, 3)
            assert made.value("aft_generation_tokens_total") == sum(n for _, _, n in wanted)
            assert made.value("aft_prompt_tokens_total") == sum(len(p) + 1 for p, _, _ in wanted)
            assert made.value("aft_time_to_first_token_seconds_count") == 12

    run(test())


def test_generations_join_and_leave_between_bursts() -> None:
    """A late one shares steps with an early one, ends first, and the early one does not notice."""

    async def test() -> None:
        runtime = FakeRuntime(2, seconds_per_token=0.001)
        async with rig(runtime, burst_seconds=0.005) as made:
            runtime.gate.clear()
            early = made.submit("early", max_tokens=200)
            await until(runtime.blocked.is_set)
            late = made.submit("late", max_tokens=10)
            runtime.gate.set()
            assert await collect(late) == (expected("late", 0, 10), Outcome.LENGTH)
            assert early.num_generated < 200
            assert (await collect(early))[1] is Outcome.LENGTH
            sizes = [len(call) for call in runtime.calls]
            assert sizes[0] == 1
            assert 2 in sizes
            assert sizes[-1] == 1

    run(test())


def test_several_are_admitted_together_or_not_at_all() -> None:
    """What does not fit is refused as a whole, once, and nothing of it runs; what fits has one channel or many."""

    async def test() -> None:
        runtime = FakeRuntime(2)
        async with rig(runtime, queue=1) as made:
            refused = [made.make("refused", seed=i) for i in range(4)]
            with pytest.raises(ApiError) as caught:
                made.engine.submit(*refused)
            assert caught.value.code == "queue_full"
            assert made.value("aft_admission_rejections_total", reason="queue_full") == 1
            group = [made.make("ab", 20, seed) for seed in range(3)]
            made.engine.submit(*group)
            results = await asyncio.gather(*map(collect, group))
            assert results == [(expected("ab", seed, 20), Outcome.LENGTH) for seed in range(3)]
            assert all(generation.admitted is None for generation in refused)
            assert not any(ord("r") in job.tokens[1:] for call in runtime.calls for job in call)
            await idle(made, 2)

    run(test())


def test_one_of_a_group_can_be_cancelled() -> None:
    """A running one and a waiting one leave a shared channel; the others do not notice."""

    async def test() -> None:
        runtime = FakeRuntime(2, seconds_per_token=0.001)
        async with rig(runtime, burst_seconds=0.005) as made:
            group = [made.make("ab", 60, seed) for seed in range(5)]
            for generation in group:
                generation.channel = group[0].channel
            made.engine.submit(*group)
            tokens: dict[Generation, list[int]] = {generation: [] for generation in group}
            outcomes: dict[Generation, Outcome] = {}
            while len(outcomes) < len(group):
                generation, burst = await take(group[0].channel)
                if not any(tokens.values()):
                    made.engine.cancel(group[0])
                    made.engine.cancel(group[3])
                tokens[generation] += burst.tokens
                if burst.outcome is not None:
                    assert generation not in outcomes
                    outcomes[generation] = burst.outcome
            for seed, generation in enumerate(group):
                left = seed in (0, 3)
                assert outcomes[generation] is (Outcome.CANCELLED if left else Outcome.LENGTH)
                assert TOKENIZER.decode(tokens[generation]) == expected("ab", seed, len(tokens[generation]))
                assert len(tokens[generation]) < 60 if left else len(tokens[generation]) == 60
            assert group[3].admitted is None
            await idle(made, 2)

    run(test())


async def scores(generation: Generation) -> tuple[list[float], Outcome]:
    """A generation's log-probabilities and how it ended."""
    logprobs: list[float] = []
    while True:
        burst = await generation.next()
        assert not burst.tokens
        logprobs += burst.target_logprobs
        if burst.outcome is not None:
            return logprobs, burst.outcome


@pytest.mark.parametrize("length", [0, 1, PREFILL_CHUNK - 1, PREFILL_CHUNK, 3 * PREFILL_CHUNK + 5])
def test_targets_are_scored(length: int) -> None:
    """One log-probability a position, in order, through all chunks; nothing is drawn, beside one that draws."""

    async def test() -> None:
        async with rig(FakeRuntime(2, seconds_per_token=0.0001)) as made:
            beside = made.submit("beside", max_tokens=200)
            targets = [(7 * i) % 256 for i in range(length + 1)]
            scoring = made.submit("a" * length, max_tokens=0, targets=targets)
            wanted = [target_logprob(i, target) for i, target in enumerate(targets)]
            assert await scores(scoring) == (wanted, Outcome.LENGTH)
            assert (scoring.first_token, scoring.num_generated) == (None, 0)
            assert await collect(beside) == (expected("beside", 0, 200), Outcome.LENGTH)
            assert made.value("aft_generation_tokens_total") == 200
            assert made.value("aft_prompt_tokens_total") == len("beside") + 1 + length + 1
            await idle(made, 2)

    run(test())


def test_the_likeliest_beside_targets_and_draws() -> None:
    """So many as are asked for; those of targets from the logits, those of draws from the runtime."""

    async def test() -> None:
        async with rig(FakeRuntime(1), burst_seconds=1e-9) as made:
            prompt = "a" * (PREFILL_CHUNK + 5)
            generation = made.submit(prompt, 4, targets=[98] * (len(prompt) + 1), top=3)
            beside_targets, beside_draws, tokens, outcome = [], [], [], None
            while outcome is None:
                burst = await generation.next()
                assert len(burst.target_top) == len(burst.target_logprobs)
                assert len(burst.top) == len(burst.logprobs) == len(burst.tokens)
                beside_targets += burst.target_top
                beside_draws += burst.top
                tokens += burst.tokens
                outcome = burst.outcome
            assert len(beside_targets) == len(prompt) + 1
            for position, top in enumerate(beside_targets):
                wanted = likeliest(position, 3, made.runtime.vocab_size)
                assert [token for token, _ in top] == [token for token, _ in wanted]
                shift = top[0][1] - wanted[0][1]  # the fake's logits are not normalised, what is delivered is
                assert [value - shift for _, value in top] == pytest.approx([value for _, value in wanted])
                assert sum(math.exp(value) for _, value in top) < 1
            first = len(prompt)
            assert beside_draws == [likeliest(first + i, 3, made.runtime.vocab_size) for i in range(4)]
            await idle(made, 1)

    run(test())


def test_who_has_ended_hears_of_it_whatever_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault at one generation's booking takes no other's last event, nor that of one that was too late."""

    async def test() -> None:
        async with rig(FakeRuntime(3)) as made:
            booked = Engine._outcome

            def breaks(engine: Engine, generation: Generation, done: Any) -> Outcome | None:
                if generation.params.seed == 2:
                    raise MemoryError
                return booked(engine, generation, done)

            monkeypatch.setattr(Engine, "_outcome", breaks)
            first, late, second = made.make(max_tokens=1, seed=1), made.make(seed=3), made.make(seed=2)
            late.deadline = time.perf_counter() - 1
            made.engine.submit(first, late, second)
            ends = [await asyncio.wait_for(collect(each), 30) for each in (first, late, second)]
            assert [end for _, end in ends] == [Outcome.LENGTH, Outcome.TIMEOUT, Outcome.ERROR]
            await idle(made, 3)

    run(test())


def test_a_slot_that_cannot_be_reset_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its generation fails, the next one has it."""

    async def test() -> None:
        async with rig(FakeRuntime(1)) as made:
            with monkeypatch.context() as broken:
                broken.setattr(made.runtime, "reset", None)
                failed = made.submit("ab", 5)
                assert (await asyncio.wait_for(collect(failed), 30))[1] is Outcome.ERROR
            assert await collect(made.submit("ab", 5)) == (expected("ab", 0, 5), Outcome.LENGTH)
            await idle(made, 1)

    run(test())


def test_a_score_whose_reader_lags_pauses() -> None:
    """It keeps at most MAX_PENDING chunks in its channel, and loses none."""

    async def test() -> None:
        async with rig(FakeRuntime(1), burst_seconds=5) as made:  # however slow a step is, chunks are whole
            length = (MAX_PENDING + 3) * PREFILL_CHUNK
            scoring = made.submit("a" * (length - 1), max_tokens=0, targets=[1] * length)
            await until(lambda: scoring.paused)
            assert scoring.num_computed == MAX_PENDING * PREFILL_CHUNK
            logprobs: list[float] = []
            while len(logprobs) < length:
                logprobs += (await scoring.next()).target_logprobs
                made.engine.resume(scoring)
            assert logprobs == [target_logprob(i, 1) for i in range(length)]
            await idle(made, 1)

    run(test())


def test_a_prompt_can_be_computed_for_nothing() -> None:
    """Neither tokens nor targets are wanted: it ends when its prompt is computed."""

    async def test() -> None:
        async with rig(FakeRuntime(1)) as made:
            assert await collect(made.submit("ab", max_tokens=0)) == ("", Outcome.LENGTH)
            await idle(made, 1)

    run(test())


def test_the_oldest_is_admitted_first() -> None:
    """With one slot, generations end in the order in which they came."""

    async def test() -> None:
        async with rig(FakeRuntime(1)) as made:
            generations = [made.submit(max_tokens=3) for _ in range(5)]
            await asyncio.gather(*map(collect, generations))
            admitted = [g.admitted for g in generations]
            assert admitted == sorted(admitted)
            first = [g.first_token for g in generations]
            assert first == sorted(first)

    run(test())


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    """503 queue_full with both headers, counted; what was admitted is not harmed."""

    async def test() -> None:
        runtime = FakeRuntime(1)
        async with rig(runtime, queue=2) as made:
            runtime.gate.clear()
            running = made.submit(max_tokens=5)
            await until(runtime.blocked.is_set)
            waiting = [made.submit(max_tokens=5) for _ in range(2)]
            with pytest.raises(ApiError) as caught:
                made.submit(max_tokens=5)
            error = caught.value
            assert (error.status, error.type, error.code) == (503, "overloaded_error", "queue_full")
            assert error.headers == {"Retry-After": "5", "retry-after-ms": "5000"}
            assert "2" in error.message
            assert made.value("aft_admission_rejections_total", reason="queue_full") == 1
            runtime.gate.set()
            results = await asyncio.gather(*map(collect, [running, *waiting]))
            assert {outcome for _, outcome in results} == {Outcome.LENGTH}
            await idle(made, 1)

    run(test())


@pytest.mark.parametrize(("seconds_per_token", "left", "wanted"), [(0.1, 200, 20), (1e-6, 10, 1), (1.0, 500, 60)])
def test_the_time_to_come_back_is_measured(seconds_per_token: float, left: int, wanted: int) -> None:
    """Tokens that the nearest stream has left, at the measured rate, within 1 and 60 s."""

    async def test() -> None:
        runtime = FakeRuntime(1)
        async with rig(runtime, queue=0) as made:
            runtime.gate.clear()
            made.submit(max_tokens=left)
            await until(runtime.blocked.is_set)
            made.scheduler.seconds_per_token = seconds_per_token
            with pytest.raises(ApiError) as caught:
                made.submit()
            assert caught.value.headers["Retry-After"] == str(wanted)

    run(test())


def test_a_fault_fails_only_its_step(caplog: pytest.LogCaptureFixture) -> None:
    """Who was in the step gets an error and frees its slot; who waited is served; the thread lives."""

    async def test() -> None:
        runtime = FakeRuntime(2)
        async with rig(runtime) as made:
            runtime.gate.clear()
            runtime.fail_at = {0}
            hit = [made.submit("hit", max_tokens=30)]
            await until(runtime.blocked.is_set)
            spared = [made.submit(f"spared {i}", max_tokens=30) for i in range(4)]
            runtime.gate.set()
            assert await asyncio.gather(*map(collect, hit)) == [("", Outcome.ERROR)]
            results = await asyncio.gather(*map(collect, spared))
            assert results == [(expected(f"spared {i}", 0, 30), Outcome.LENGTH) for i in range(4)]
            assert made.engine.stepping
            await idle(made, 2)

    with caplog.at_level(logging.ERROR, "aft.engine"):
        run(test())
    assert "told to fail" in caplog.text


def test_a_fault_in_mid_decode() -> None:
    """What was delivered stays delivered; then the error."""

    async def test() -> None:
        runtime = FakeRuntime(1)
        runtime.fail_at = {3}
        async with rig(runtime, burst_seconds=1e-9) as made:
            text, outcome = await collect(made.submit("ab", max_tokens=30))
            assert (text, outcome) == (expected("ab", 0, 3), Outcome.ERROR)
            assert await collect(made.submit("cd", max_tokens=4)) == (expected("cd", 0, 4), Outcome.LENGTH)

    run(test())


def test_cancel_in_the_queue() -> None:
    """A waiting one leaves; nothing of it is ever run."""

    async def test() -> None:
        runtime = FakeRuntime(1)
        async with rig(runtime) as made:
            runtime.gate.clear()
            running = made.submit(max_tokens=5)
            await until(runtime.blocked.is_set)
            waiting = made.submit("waiting", max_tokens=5)
            made.engine.cancel(waiting)
            runtime.gate.set()
            assert await collect(waiting) == ("", Outcome.CANCELLED)
            assert (waiting.admitted, waiting.slot) == (None, None)
            assert (await collect(running))[1] is Outcome.LENGTH
            await idle(made, 1)
            assert not any(ord("w") in job.tokens for call in runtime.calls for job in call)

    run(test())


def test_cancel_in_prefill() -> None:
    """A long prompt is given up between its chunks."""

    async def test() -> None:
        runtime = FakeRuntime(1)
        async with rig(runtime) as made:
            runtime.gate.clear()
            generation = made.submit("p" * 100 * PREFILL_CHUNK)
            await until(runtime.blocked.is_set)
            made.engine.cancel(generation)
            runtime.gate.set()
            assert await collect(generation) == ("", Outcome.CANCELLED)
            assert generation.num_computed == PREFILL_CHUNK
            assert len(runtime.calls) == 1
            await idle(made, 1)

    run(test())


def test_cancel_in_decode() -> None:
    """A running stream ends within a burst, and its slot goes to who waits."""

    async def test() -> None:
        runtime = FakeRuntime(1, seconds_per_token=0.0005)
        async with rig(runtime, burst_seconds=0.01) as made:
            running = made.submit(max_tokens=10**9)
            await running.next()
            waiting = made.submit("next", max_tokens=5)
            made.engine.cancel(running)
            assert await collect(waiting) == (expected("next", 0, 5), Outcome.LENGTH)
            assert (await collect(running))[1] is Outcome.CANCELLED
            made.engine.cancel(running)
            await idle(made, 1)

    run(test())


def test_a_reader_that_lags_pauses_itself_alone() -> None:
    """At most MAX_PENDING bursts lie in a channel; the slot is kept; reading goes on without a gap."""

    async def test() -> None:
        runtime = FakeRuntime(2)
        async with rig(runtime, burst_seconds=1e-9) as made:
            lagging = made.submit("lagging", max_tokens=300)
            await until(lambda: lagging.paused)
            other = made.submit("other", max_tokens=100)
            assert await collect(other) == (expected("other", 0, 100), Outcome.LENGTH)
            assert (lagging.num_delivered, lagging.num_generated) == (MAX_PENDING, MAX_PENDING)
            assert lagging.slot is not None
            tokens: list[int] = []
            while len(tokens) < 300:
                tokens += (await lagging.next()).tokens
                made.engine.resume(lagging)
            assert TOKENIZER.decode(tokens) == expected("lagging", 0, 300)
            await idle(made, 2)

    run(test())


def test_a_paused_generation_can_be_cancelled() -> None:
    """Its slot is free though nobody reads."""

    async def test() -> None:
        async with rig(FakeRuntime(1), burst_seconds=1e-9) as made:
            lagging = made.submit(max_tokens=300)
            await until(lambda: lagging.paused)
            made.engine.cancel(lagging)
            await idle(made, 1)

    run(test())


def test_deadlines() -> None:
    """Whoever is late ends with timeout: in a slot, in the queue, or paused; who is in time is not harmed."""

    async def test() -> None:
        runtime = FakeRuntime(2, seconds_per_token=0.001)
        async with rig(runtime, burst_seconds=0.005) as made:
            late = time.perf_counter() + 1.0
            running = made.submit("running", 10**6, deadline=late)
            paused = made.submit("paused", 10**6, deadline=late)
            waiting = made.submit("WAITING", 10, deadline=late)
            in_time = made.submit("in time", 10, deadline=late + 100)
            text = ""
            while True:
                burst = await running.next()
                made.engine.resume(running)
                text += TOKENIZER.decode(burst.tokens)
                if burst.outcome is not None:
                    break
            assert burst.outcome is Outcome.TIMEOUT
            assert time.perf_counter() >= late
            assert text == expected("running", 0, len(text)) != ""
            assert await collect(waiting) == ("", Outcome.TIMEOUT)
            assert waiting.admitted is None
            assert (await collect(paused))[1] is Outcome.TIMEOUT
            assert await collect(in_time) == (expected("in time", 0, 10), Outcome.LENGTH)
            await idle(made, 2)
            assert not any(ord("W") in job.tokens for call in runtime.calls for job in call)

    run(test())


def test_a_long_prompt_is_late_too() -> None:
    """Between its chunks, with no token drawn."""

    async def test() -> None:
        runtime = FakeRuntime(1, seconds_per_token=0.002)
        async with rig(runtime) as made:
            generation = made.submit("p" * 2000 * PREFILL_CHUNK)
            await until(lambda: generation.num_computed)
            generation.deadline = time.perf_counter()
            assert await collect(generation) == ("", Outcome.TIMEOUT)
            assert generation.admitted is not None
            assert 0 < generation.num_computed < len(generation.prompt)
            await idle(made, 1)

    run(test())


def test_the_rest_of_an_admitted_request_is_not_refused() -> None:
    """Though slots and places are taken; others still are."""

    async def test() -> None:
        runtime = FakeRuntime(1)
        async with rig(runtime, queue=0) as made:
            runtime.gate.clear()
            first = made.submit("first", max_tokens=5)
            await until(runtime.blocked.is_set)
            second = made.make("second", max_tokens=5)
            made.engine.submit(second, force=True)
            with pytest.raises(ApiError):
                made.submit("third")
            runtime.gate.set()
            for generation, name in ((first, "first"), (second, "second")):
                assert await collect(generation) == (expected(name, 0, 5), Outcome.LENGTH)
            await idle(made, 1)

    run(test())


def test_a_new_one_waits_for_a_step_at_most() -> None:
    """Its prompt is computed beside a long one, in the first step that begins after it came."""

    async def test() -> None:
        runtime = FakeRuntime(2, seconds_per_token=0.001)
        async with rig(runtime) as made:
            long = made.submit("p" * 2000 * PREFILL_CHUNK, max_tokens=1)
            await until(lambda: made.scheduler.prefill_seconds)
            runtime.gate.clear()
            runtime.blocked.clear()
            await until(runtime.blocked.is_set)
            begun = len(runtime.calls)
            new = made.submit("new", max_tokens=3)
            runtime.gate.set()
            await new.next()
            assert [job.slot for job in runtime.calls[begun]] == [long.slot, new.slot]
            assert long.num_computed < len(long.prompt)
            made.engine.cancel(long)

    run(test())


def test_unlimited_streams_end_by_tokens() -> None:
    """The cap ends it with length, and the end symbol is never drawn."""

    async def test() -> None:
        async with rig(FakeRuntime(1, end_at=5)) as made:
            assert await collect(made.submit("a", max_tokens=50, max_seconds=100.0)) == (
                expected("a", 0, 50),
                Outcome.LENGTH,
            )

    run(test())


@pytest.mark.parametrize("reads", [True, False])
def test_unlimited_streams_end_by_seconds(reads: bool) -> None:
    """So does the time, also of a stream whose reader sleeps."""

    async def test() -> None:
        async with rig(FakeRuntime(1, seconds_per_token=0.001), burst_seconds=0.005) as made:
            began = time.monotonic()
            generation = made.submit(max_tokens=10**9, max_seconds=1.0)
            if not reads:
                await until(lambda: generation.paused)
                await idle(made, 1)
            text, outcome = await collect(generation)
            assert outcome is Outcome.LENGTH
            assert text == expected("ab", 0, len(text))
            assert 1.0 <= time.monotonic() - began < 10
            await idle(made, 1)

    run(test())


def test_reasons_of_an_end() -> None:
    """A stop string or the end symbol: stop; the wanted number or the model's last position: length."""

    async def test() -> None:
        async with rig(FakeRuntime(2, max_position=30, end_at=12)) as made:
            assert await collect(made.submit("ab", stop=["fox"], max_tokens=99)) == (expected("ab", 0, 9), Outcome.STOP)
        async with rig(FakeRuntime(2, max_position=30)) as made:
            stopped = await collect(made.submit("ab", 99, stop=["fox", "lazy"]))
            assert stopped == (expected("ab", 0, len(stopped[0])), Outcome.STOP)
            assert stopped[0].endswith("fox")
            # 3 positions of the prompt, and one token is drawn at the last
            assert await collect(made.submit("ab", 99)) == (expected("ab", 0, 28), Outcome.LENGTH)
            assert await collect(made.submit("ab", 28)) == (expected("ab", 0, 28), Outcome.LENGTH)
            await idle(made, 2)

    run(test())


def test_bursts_grow_and_shrink() -> None:
    """One token first, as many as fit into burst_seconds under steady load, few while somebody waits."""

    async def test() -> None:
        runtime = FakeRuntime(1, seconds_per_token=0.001)
        async with rig(runtime, burst_seconds=0.02) as made:
            running = made.submit(max_tokens=10**9)
            lengths: list[int] = []

            async def read() -> None:
                lengths.append(len((await running.next()).tokens))
                made.engine.resume(running)

            # a first step that was slow counts for a while
            while len(lengths) < 12 or max(lengths) < 4:
                await read()
            assert lengths[0] == 1
            assert max(lengths) <= 20
            waiting = made.submit(max_tokens=3)
            while runtime.calls[-1][0].draw.max_new != 8:
                await read()
            made.engine.cancel(running)
            await collect(waiting)

    run(test())


def test_stepping_turns_false_when_a_step_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What /readyz asks."""
    monkeypatch.setattr("service.engine.STALL_SECONDS", 0.05)

    async def test() -> None:
        runtime = FakeRuntime(1)
        async with rig(runtime) as made:
            assert made.engine.stepping
            runtime.gate.clear()
            generation = made.submit()
            await until(lambda: not made.engine.stepping)
            runtime.gate.set()
            await collect(generation)
            assert made.engine.stepping
        assert not made.engine.stepping

    run(test())


def test_gauges() -> None:
    """What a model is and how much of it is in use."""

    async def test() -> None:
        runtime = FakeRuntime(3)
        async with rig(runtime) as made:
            assert made.value("aft_slots") == 3
            assert made.value("aft_state_bytes_per_stream") == 10
            assert made.value("aft_memory_bytes", kind="weights") == 1000
            lagging = [made.submit(max_tokens=10**6) for _ in range(5)]
            await until(lambda: lagging[2].paused and made.value("aft_requests_waiting") == 2)
            assert made.value("aft_slots_in_use") == made.value("aft_requests_running") == 3
            assert made.value("aft_memory_bytes", kind="state_active") == 30
            for generation in lagging:
                made.engine.cancel(generation)
            await idle(made, 3)
            assert made.value("aft_memory_bytes", kind="state_active") == 0

    run(test())
