"""What the next step computes, and of whom: chunks of prompts, bursts. Who holds slots: service/slots.py. No torch.

There are no phases. A generation knows more tokens than the runtime has computed, and a step closes the gap: a
chunk of a prompt, or a burst of new tokens, side by side. The engine's thread and the event loop share a scheduler
under its lock.
"""

from __future__ import annotations

import math
from typing import Literal

from model.runtime.base import Draw, Guide, Job, Runtime
from service.request import Generation
from service.siblings import share
from service.slots import Slots

PREFILL_CHUNK = 512  # tokens of one prompt in a step, at most
PREFILL_BUDGET = 2048  # tokens of all prompts in a step, at most
FIRST_BUDGET = 512  # before it is known what they cost
MAX_BURST = 256
SHORTEST_SECONDS, FEW_STREAMS = 0.005, 8  # of a burst; up to so many streams events are cheap
MANY_STREAMS = 32  # from here on bursts grow with the number of streams
# While all slots are taken and somebody waits: a slot that becomes free is seen soon, at little cost a token.
MAX_BURST_QUEUED = 8
SOON = 10  # bursts
PART_IF_SOON = 0.9
SMOOTHING = 0.2  # weight of the newest measurement

Work = list[tuple[Generation, Job]]


class Scheduler(Slots):
    """What the next step of one runtime computes, of those who hold its slots."""

    def __init__(
        self,
        runtime: Runtime,
        max_queue: int,
        burst_seconds: float,
        max_per_key: int = 0,
        max_queue_per_key: int = 0,
    ) -> None:
        super().__init__(runtime, max_queue, max_per_key, max_queue_per_key)
        self.burst_seconds = burst_seconds
        self.time_share = 1.0  # of the time: models take turns, so each has its part of ``burst_seconds``
        self._costs: dict[int, float] = {}  # seconds of a decode step by the bits of its number of streams, smoothed
        self.seconds_per_token = 0.0  # of a decode step of those who write now
        self.prefill_seconds = 0.0  # of one token of a prompt, smoothed
        self._passed = 0  # tokens of prompts in steps that writers passed by

    @property
    def busy(self) -> bool:
        """Whether there is work for a step; readers that lag make none."""
        return bool(self.waiting) or any(not generation.paused for generation in self.running)

    def _burst(self, prefill: int, part: float, now: float = 0.0, *, more: bool = True) -> int:
        """Tokens that a stream draws in a step beside so many tokens of prompts.

        A step takes ``burst_seconds``. Where it leaves ``more`` of prompts to the next, they have their ``part`` of the
        time and short steps: running streams take no more than the rest, in proportion.
        """
        if not self.seconds_per_token:
            return 1
        seconds = self._step_seconds()
        if len(self.running) <= FEW_STREAMS:
            # where one prompt came, more may: who began a moment ago writes a moment
            began = max((g.first_token or -math.inf for g in self.running), default=-math.inf)
            seconds = min(seconds, max(SHORTEST_SECONDS, now - began))
        taken = prefill * self.prefill_seconds
        seconds = (1 - part) * min(seconds, taken / part) if prefill and more else seconds - taken
        full = bool(self.waiting) and len(self.free) < self.waiting[0].num_slots
        most = MAX_BURST_QUEUED if full else MAX_BURST
        return max(1, min(most, int(seconds / self.seconds_per_token)))

    def _can_rest(self, ready: list[Generation], prefill: int, now: float) -> bool:
        """Whether all who write can pass a step by: none waits longer for it than for a burst without prompts."""
        latest = now + prefill * self.prefill_seconds - self._step_seconds()
        written = (g.last_delivery for g in ready if g.num_computed == len(g.prompt))
        return all(delivery is not None and delivery > latest for delivery in written)

    def _step_seconds(self) -> float:
        """Of a step of bursts: an event costs as much as some tokens, so many streams get fewer, longer ones."""
        return self.burst_seconds * self.time_share * max(1.0, len(self.running) / MANY_STREAMS)

    def _budget(self, part: float) -> int:
        """Tokens of prompts in a step: their ``part`` of ``burst_seconds``."""
        if not self.prefill_seconds:
            return FIRST_BUDGET
        return max(1, min(PREFILL_BUDGET, int(self.burst_seconds * self.time_share * part / self.prefill_seconds)))

    def observe(self, jobs: list[Job], drawn: int, seconds: float) -> None:
        """Learn what a step costs; ``drawn`` by the longest burst."""
        prefill = sum(len(job.tokens) * job.num_streams for job in jobs if len(job.tokens) > 1)
        if prefill:
            self.prefill_seconds = _smooth(self.prefill_seconds, seconds / prefill)
        elif drawn:
            bits = sum(job.num_streams for job in jobs).bit_length()
            self._costs[bits] = _smooth(self._costs.get(bits, 0.0), seconds / drawn)

    def _cost(self, streams: int) -> float:
        """Of a decode step of so many: as measured, or at most, from what fewer took."""
        bits = streams.bit_length()
        fewer = max((known for known in self._costs if known <= bits), default=None)
        return self._costs[min(self._costs)] if fewer is None else self._costs[fewer] * 2 ** (bits - fewer)

    def schedule(self, now: float) -> Work:
        """The next step's jobs, oldest generation first: parts of prompts, and bursts."""
        self.admit(now)
        ready = [generation for generation in self.running if not generation.paused]
        ends = share(ready, self.runtime)
        unread = [(end - g.num_computed) * g.num_slots for g, end in ends.items()]
        part = self._part(sum(unread), len(unread), len(ready))
        if self._costs:
            writing = (g.num_slots for g in ready if g.num_computed == len(g.prompt))
            self.seconds_per_token = self._cost(sum(writing))
        sizes = self._sizes(ends, self._budget(part))
        computed = sum(size * generation.num_slots for generation, size in sizes.items())
        more = computed < sum(unread)
        burst, self._passed = 0, self._passed + computed
        if not (more and part == PART_IF_SOON and self._can_rest(ready, computed, now)):
            burst, self._passed = self._burst(self._passed if more else computed, part, now, more=more), 0
        work: Work = []
        for generation in ready:
            left = len(generation.prompt) - generation.num_computed
            if (burst and not left) or generation in sizes:
                work += self._jobs(generation, sizes.get(generation, 0), burst)
        return work

    def _part(self, tokens: int, beginning: int, ready: int) -> float:
        """Of the time, for so many tokens of prompts of so many streams among all.

        Nearly all where they are done soon: many short prompts get their first tokens, and writers only pause. Half
        beside a long prompt, or more where more wait for their first token than write.
        """
        if tokens * self.prefill_seconds < SOON * self.burst_seconds:
            return PART_IF_SOON
        return max(0.5, beginning / max(ready, 1))

    def _sizes(self, ends: dict[Generation, int], budget: int) -> dict[Generation, int]:
        """How much of each prompt is computed in this step, of what lies before its end."""
        sizes: dict[Generation, int] = {}
        left = {generation: end - generation.num_computed for generation, end in ends.items()}
        if not self.runtime.exact:
            # a cut that depended on company would change the result: whole chunks, the oldest first
            for generation, size in left.items():
                chunk = min(size, PREFILL_CHUNK)
                if chunk * generation.num_slots <= budget or not sizes:
                    sizes[generation] = chunk
                    budget -= chunk * generation.num_slots
            return sizes
        # any cut gives the same bits: half is the oldest's, the rest goes to who is done first, whoever is older
        if left:
            oldest = next(iter(left))
            sizes[oldest] = min(left[oldest], PREFILL_CHUNK, -(-budget // 2 // oldest.num_slots))
            budget -= sizes[oldest] * oldest.num_slots
        for generation in sorted(left, key=lambda g: left[g]):
            has = sizes.get(generation, 0)
            size = min(min(left[generation], PREFILL_CHUNK) - has, budget // generation.num_slots)
            if size > 0:
                sizes[generation] = has + size
                budget -= size * generation.num_slots
        return sizes

    def _jobs(self, generation: Generation, size: int, burst: int) -> Work:
        """The next part of a prompt, for its guide too, or a burst, of which the guide is a part."""
        job = self._job(generation, size, burst)
        work = [(generation, job)]
        if job.draw is None and generation.guide is not None and generation.guide_slot is not None:
            begin = generation.num_computed
            work.append((generation, Job(generation.guide_slot, generation.guide[begin : begin + size])))
        return work

    def _job(self, generation: Generation, size: int, burst: int) -> Job:
        assert generation.slot is not None
        begin, end = generation.num_computed, generation.num_computed + size
        tokens = generation.prompt[begin:end]
        targets = generation.targets[begin:end] if generation.targets is not None else None
        logits: Literal["none", "all"] = "all" if targets is not None and generation.top else "none"
        if not tokens:
            assert generation.last_token is not None
            tokens, targets, logits = [generation.last_token], None, "none"
        if end < len(generation.prompt) or not generation.max_tokens:
            return Job(generation.slot, tokens, targets, logits)
        # the first token goes out when the prompt is computed, without waiting for others' bursts
        max_new = 1 if size else min(burst, generation.max_tokens - generation.num_generated)
        guide = None
        if generation.guide is not None and generation.guide_slot is not None:
            read = generation.guide[begin:end] or tokens
            guide = Guide(generation.guide_slot, read, generation.guidance)
        draw = Draw(generation.params, max_new, generation.automaton, generation.top, guide)
        return Job(generation.slot, tokens, targets, logits, draw)


def _smooth(before: float, now: float) -> float:
    return (1 - SMOOTHING) * before + SMOOTHING * now if before else now


def prompts_and_bursts(work: Work) -> tuple[Work, Work]:
    """A step's jobs by what they are for."""
    prompts = [(generation, job) for generation, job in work if generation.num_computed < len(generation.prompt)]
    return prompts, [(generation, job) for generation, job in work if generation.num_computed == len(generation.prompt)]
