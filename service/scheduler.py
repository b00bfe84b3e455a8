"""Who runs in the next step, and with what: slots, a bounded queue, chunks of prompts, bursts. No torch.

There are no phases. A generation knows more tokens than the runtime has computed, and a step closes the gap: a
chunk of a prompt, or a burst of new tokens, side by side. The engine's thread and the event loop share a scheduler
under its lock.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque

from model.runtime.base import Draw, Job, Runtime
from service.request import Generation

# How a prompt is cut never depends on what else runs, so neither does its result.
PREFILL_CHUNK = 512
# Tokens of prompts in one step: what running streams wait for at most, beside their own burst.
PREFILL_BUDGET = 2048
MAX_BURST = 256
# While all slots are taken and somebody waits: a slot that becomes free is seen soon, at little cost a token.
MAX_BURST_QUEUED = 8


class QueueFullError(Exception):
    """No place left to wait."""


class Scheduler:
    """The slots of one runtime and who waits for them."""

    def __init__(self, runtime: Runtime, max_queue: int, burst_seconds: float) -> None:
        self.runtime, self.max_queue, self.burst_seconds = runtime, max_queue, burst_seconds
        self.lock = threading.Lock()  # held to change what follows, never while the runtime runs
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []
        self.free = list(range(runtime.num_slots))  # a heap: the lowest slots first, so that few tiles are in use
        self.seconds_per_token = 0.0  # of a step of the whole batch, smoothed

    def add(self, *generations: Generation) -> None:
        """Queue all of them. QueueFullError, and none is queued, where slots and places are too few."""
        if len(self.waiting) + len(generations) > self.max_queue + len(self.free):
            raise QueueFullError
        self.waiting.extend(generations)

    def admit(self, now: float) -> None:
        """Give free slots to those who wait longest."""
        while self.waiting and self.free:
            generation = self.waiting.popleft()
            generation.slot = heapq.heappop(self.free)
            generation.admitted = now
            self.runtime.reset(generation.slot)
            self.running.append(generation)

    def remove(self, generation: Generation) -> None:
        """Take a generation out, wherever it is; its slot is free."""
        if generation.slot is not None:
            self.running.remove(generation)
            heapq.heappush(self.free, generation.slot)
            generation.slot = None
        elif generation in self.waiting:
            self.waiting.remove(generation)

    def burst(self) -> int:
        """Tokens a stream draws in one step: short while somebody waits, else what fits into ``burst_seconds``."""
        if not self.seconds_per_token:
            return 1
        if any(g.num_computed < len(g.prompt) for g in self.running):  # somebody waits for the first token
            return 1
        most = MAX_BURST_QUEUED if self.waiting else MAX_BURST
        return max(1, min(most, int(self.burst_seconds / self.seconds_per_token)))

    def observe(self, jobs: list[Job], drawn: int, seconds: float) -> None:
        """Learn what a step costs, from steps that only decoded; ``drawn`` by the longest burst."""
        if drawn and all(len(job.tokens) == 1 for job in jobs):
            cost = seconds / drawn
            self.seconds_per_token = 0.8 * self.seconds_per_token + 0.2 * cost if self.seconds_per_token else cost

    def schedule(self, now: float) -> list[tuple[Generation, Job]]:
        """The next step's jobs, oldest generation first."""
        self.admit(now)
        burst, budget = self.burst(), PREFILL_BUDGET
        work: list[tuple[Generation, Job]] = []
        for generation in self.running:
            if generation.paused:
                continue
            left = len(generation.prompt) - generation.num_computed
            if left > 0:
                size = min(left, PREFILL_CHUNK)
                if size > budget:
                    continue
                budget -= size
            work.append((generation, self._job(generation, burst)))
        return work

    def _job(self, generation: Generation, burst: int) -> Job:
        assert generation.slot is not None
        begin, end = generation.num_computed, min(len(generation.prompt), generation.num_computed + PREFILL_CHUNK)
        tokens = generation.prompt[begin:end]
        targets = generation.targets[begin:end] if generation.targets is not None else None
        if not tokens:
            assert generation.last_token is not None
            tokens, targets = [generation.last_token], None
        if end < len(generation.prompt) or not generation.max_tokens:
            return Job(generation.slot, tokens, targets)
        max_new = min(burst, generation.max_tokens - generation.num_generated)
        return Job(generation.slot, tokens, targets, draw=Draw(generation.params, max_new, generation.automaton))
