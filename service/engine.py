"""One thread owns the runtimes. A step is: schedule, run, deliver.

The event loop adds to a queue under the scheduler's lock; the thread talks back with one call into the loop a step,
whatever the number of streams. A fault of the runtime fails the requests of that step, and the engine goes on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from model.automaton import Automaton
from model.checkpoint import Codec
from model.pixels import PixelCodec
from model.runtime.base import Done, Job, Runtime, Stop, Top
from model.sampling import likeliest
from service import errors
from service.metrics import Metrics, position_range
from service.request import MAX_PENDING, Burst, Generation, Outcome
from service.scheduler import Scheduler, prompts_and_bursts
from service.slots import KeyQueueFullError, QueueFullError

log = logging.getLogger("aft.engine")

CLOSE_SECONDS = 5.0
STALL_SECONDS = 30.0  # a step that takes longer turns /readyz red


@dataclass(slots=True)
class Served:
    """One model as the engine has it."""

    name: str
    runtime: Runtime
    codec: Codec
    scheduler: Scheduler
    created: int
    window: int  # positions that the position bias weighs one by one
    # without stop strings, by whether the end symbol is ignored: every request would make the same
    automata: dict[bool, Automaton] = field(default_factory=dict)

    @property
    def kind(self) -> Literal["text", "image"]:
        """What it generates."""
        return "image" if isinstance(self.codec, PixelCodec) else "text"


class Engine:
    """Advances every generation of every model."""

    def __init__(self, served: list[Served], metrics: Metrics, loop: asyncio.AbstractEventLoop) -> None:
        self.served = {model.name: model for model in served}
        self._metrics, self._loop = metrics, loop
        self._wake = threading.Event()
        self._ending = False
        self._step_began: float | None = None
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        for model in served:
            self._describe(model)
        self._thread.start()

    def submit(self, *generations: Generation, force: bool = False) -> None:
        """Queue generations of one model, from the event loop. ApiError, and none is queued, where it is full.

        ``force`` is for the rest of a request that was admitted before.
        """
        model, count = generations[0].model, len(generations)
        scheduler = self.served[model].scheduler
        # counted here and not in the engine's thread: the answer must not wait for a step
        with scheduler.lock:
            try:
                scheduler.add(*generations, force=force)
            except KeyQueueFullError:
                self._metrics.rejections.labels(model, "key_queue_full").inc()
                raise errors.key_queue_full(scheduler.max_queue_per_key, self._retry_after(scheduler), count) from None
            except QueueFullError:
                self._refuse(scheduler, model, count)
        self._wake.set()

    def offer(self, *generations: Generation) -> int:
        """Queue those of one model that find a place, the first ones; returns how many. From the event loop."""
        with (scheduler := self.served[generations[0].model].scheduler).lock:
            count = scheduler.offer(*generations)
        self._wake.set()
        return count

    def check_room(self, model: str) -> None:
        """ApiError where nothing more can wait, of whatever key: before a request costs more than its reading."""
        scheduler = self.served[model].scheduler
        if scheduler.is_full:
            with scheduler.lock:
                self._refuse(scheduler, model, 1)

    def _refuse(self, scheduler: Scheduler, model: str, count: int) -> NoReturn:
        self._metrics.rejections.labels(model, "queue_full").inc()
        raise errors.queue_full(scheduler.max_queue, self._retry_after(scheduler), count)

    def retry_after(self, model: str) -> int:
        """Seconds until a slot of a model should be free, from the measured rate; 1 to 60."""
        scheduler = self.served[model].scheduler
        with scheduler.lock:
            return self._retry_after(scheduler)

    def _retry_after(self, scheduler: Scheduler) -> int:
        if not scheduler.seconds_per_token:
            return errors.RETRY_AFTER_SECONDS
        left = min((g.max_tokens - g.num_generated for g in scheduler.running), default=1)
        return max(1, min(60, round(left * scheduler.seconds_per_token)))

    def cancel(self, generation: Generation) -> None:
        """Free what a generation holds, within one burst. From the event loop; harmless when it has ended."""
        generation.cancelled = True
        self._wake.set()

    def resume(self, generation: Generation) -> None:
        """A reader has taken something: its generation may go on, where it was paused."""
        if generation.num_delivered - generation.num_taken == MAX_PENDING - 1:
            self._wake.set()

    @property
    def num_active(self) -> int:
        """Generations that run or wait."""
        return sum(len(m.scheduler.running) + len(m.scheduler.waiting) for m in self.served.values())

    @property
    def stepping(self) -> bool:
        """Whether the thread lives and its steps end."""
        began = self._step_began
        return self._thread.is_alive() and (began is None or time.perf_counter() - began < STALL_SECONDS)

    def close(self) -> None:
        """End the thread after its step."""
        self._ending = True
        self._wake.set()
        self._thread.join(timeout=CLOSE_SECONDS)  # a step that hangs must not keep the process

    def _main(self) -> None:
        while not self._ending:
            self._wake.clear()
            worked = False
            busy = sum(model.scheduler.busy for model in self.served.values())
            for model in self.served.values():
                model.scheduler.time_share = 1 / max(busy, 1)
                worked |= self._guarded_step(model)
            if not worked:
                self._wake.wait(timeout=1.0)  # an unlimited stream's time may pass while its reader sleeps

    def _guarded_step(self, model: Served) -> bool:
        """A step; whatever breaks in it fails this model's running requests, and the thread lives."""
        try:
            return self._step(model)
        except Exception:
            log.exception("model %s: the engine failed", model.name)
            self._step_began = None
            with model.scheduler.lock:
                failed = list(model.scheduler.running)
                for generation in failed:
                    model.scheduler.remove(generation)
                    generation.num_delivered += 1
            self._send([(generation, Burst([], Outcome.ERROR)) for generation in failed])
            return True

    def _step(self, model: Served) -> bool:
        """Schedule, run, deliver. Returns whether there was work."""
        with model.scheduler.lock:
            now = time.perf_counter()  # under the lock: who waits already came before
            self._sweep(model, now)
            work = model.scheduler.schedule(now)
        # apart, so that a first token does not wait for the others' bursts, and it is known what each costs
        for part in prompts_and_bursts(work):
            self._deliver(model, part, self._run(model, part))
        return bool(work)

    def _sweep(self, model: Served, now: float) -> None:
        """Remove who was cancelled, has used up its time, or is too late; they hear of it whatever breaks after."""
        ended = []
        for generation in [*model.scheduler.running, *model.scheduler.waiting]:
            outcome = None
            if generation.cancelled:
                outcome = Outcome.CANCELLED
            elif generation.deadline is not None and now > generation.deadline:
                outcome = Outcome.TIMEOUT
            elif generation.max_seconds and generation.admitted and now - generation.admitted > generation.max_seconds:
                outcome = Outcome.LENGTH  # waiting for a slot is no part of it
            if outcome is not None:
                model.scheduler.remove(generation)
                ended.append((generation, Burst([], outcome)))
        self._send(ended)

    def _run(self, model: Served, work: list[tuple[Generation, Job]]) -> list[tuple[Done, list[Top]]]:
        """What each job gave, and the likeliest tokens beside its targets, where asked for; empty where it failed."""
        jobs = [job for _, job in work]
        if not jobs:
            return []
        self._step_began = began = time.perf_counter()
        try:
            results = model.runtime.run(jobs)
            top = [_target_top(generation, done) for (generation, _), done in zip(work, results, strict=True)]
        except Exception:  # whatever a runtime raises, the others go on
            log.exception("model %s: a step failed", model.name)
            return []
        finally:
            self._step_began = None
        seconds = time.perf_counter() - began
        model.scheduler.observe(jobs, max(len(done.drawn) for done in results), seconds)
        self._metrics.step_seconds.labels(model.name).observe(seconds)
        self._metrics.batch_size.labels(model.name).observe(sum(job.num_streams for job in jobs))
        return list(zip(results, top, strict=True))

    def _deliver(
        self, model: Served, work: list[tuple[Generation, Job]], results: list[tuple[Done, list[Top]]]
    ) -> None:
        now = time.perf_counter()
        bursts: list[tuple[Generation, Burst]] = []
        with model.scheduler.lock:
            try:
                for i, (generation, job) in enumerate(work):
                    if job.slot != generation.slot:  # what a guide reads is booked with the prompt that it goes with
                        continue
                    burst = Burst([], Outcome.ERROR)
                    if results:
                        burst = self._advance(generation, job, *results[i], model, now)
                    if burst.outcome is not None:
                        model.scheduler.remove(generation)
                    if burst.tokens or burst.target_logprobs or burst.outcome is not None:
                        generation.num_delivered += 1
                        bursts.append((generation, burst))
            finally:  # who has ended hears of it, whatever breaks at another, and finds its slot free in the metrics
                self._gauge(model)
                self._send(bursts)

    def _send(self, bursts: list[tuple[Generation, Burst]]) -> None:
        if bursts and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_deliver_all, bursts)

    def _advance(
        self, generation: Generation, job: Job, done: Done, target_top: list[Top], model: Served, now: float
    ) -> Burst:
        """Book what a job did."""
        if generation.num_computed < len(generation.prompt):
            generation.num_computed += len(job.tokens)
            self._metrics.prompt_tokens.labels(model.name).inc(len(job.tokens))
        if done.drawn:
            self._observe(generation, len(done.drawn), now)
            generation.num_generated += len(done.drawn)
            generation.last_token = done.drawn[-1]
        return Burst(
            done.drawn, self._outcome(generation, done), done.logprobs, done.top, done.target_logprobs, target_top
        )

    def _outcome(self, generation: Generation, done: Done) -> Outcome | None:
        if done.stopped is not None:
            return {Stop.ACCEPT: Outcome.STOP, Stop.LENGTH: Outcome.LENGTH, Stop.FAULT: Outcome.ERROR}[done.stopped]
        complete = generation.num_computed == len(generation.prompt)
        return Outcome.LENGTH if complete and generation.num_generated >= generation.max_tokens else None

    def _observe(self, generation: Generation, count: int, now: float) -> None:
        model = generation.model
        self._metrics.generation_tokens.labels(model).inc(count)
        if generation.first_token is None:
            generation.first_token = now
            self._metrics.first_token.labels(model).observe(now - generation.arrived)
        else:
            assert generation.last_delivery is not None
            each = (now - generation.last_delivery) / count
            position = len(generation.prompt) + generation.num_generated
            self._metrics.inter_token.observe((model,), each, count)
            self._metrics.by_position.observe((model, position_range(position)), each, count)
        generation.last_delivery = now

    def _describe(self, model: Served) -> None:
        runtime, metrics = model.runtime, self._metrics
        metrics.slots.labels(model.name).set(runtime.num_slots)
        metrics.state_bytes.labels(model.name).set(runtime.state_bytes)
        metrics.memory_bytes.labels(model.name, "weights").set(runtime.weight_bytes)
        metrics.memory_bytes.labels(model.name, "workspace").set(runtime.workspace_bytes)
        self._gauge(model)

    def _gauge(self, model: Served) -> None:
        in_use = sum(generation.num_slots for generation in model.scheduler.running)
        self._metrics.running.labels(model.name).set(len(model.scheduler.running))
        self._metrics.slots_in_use.labels(model.name).set(in_use)
        self._metrics.waiting.labels(model.name).set(len(model.scheduler.waiting))
        self._metrics.memory_bytes.labels(model.name, "state_active").set(in_use * model.runtime.state_bytes)


def _target_top(generation: Generation, done: Done) -> list[Top]:
    if not done.target_logprobs or not generation.top or done.logits is None:
        return []
    return likeliest(done.logits, generation.top)


def _deliver_all(bursts: list[tuple[Generation, Burst]]) -> None:
    """On the event loop: one wake-up for a whole step."""
    for generation, burst in bursts:
        generation.deliver(burst)
