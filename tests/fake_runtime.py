"""A runtime with a text that is known beforehand, at any speed, that fails or blocks when told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np

from model.automaton import ACCEPT, FORBIDDEN
from model.runtime.base import Done, Job, Stop, Top, check_jobs
from model.tokenizer import Bytes

TEXT = b"the quick brown fox jumps over the lazy dog. "


def expected(prompt: str, seed: int, count: int, text: bytes = TEXT) -> str:
    """What the fake writes after a prompt: token i is text[(position + seed) % len]."""
    start = len(prompt.encode()) + 1 + seed
    return bytes(text[(start + i) % len(text)] for i in range(count)).decode()


def target_logprob(position: int, target: int) -> float:
    """What the fake gives a target after the token at a position, from 0: an exact binary fraction."""
    return -((31 * position + target) % 64) / 16


def likeliest(position: int, count: int, vocab_size: int) -> Top:
    """The tokens to which the fake gives most after the token at a position; of equals the lowest ids."""
    order = sorted(range(vocab_size), key=lambda token: -target_logprob(position, token))
    return [(token, target_logprob(position, token)) for token in order[:count]]


class FakeRuntime:
    """Writes ``text`` in a circle, from a place that position, seed and sample decide. Bytes tokenizer."""

    name = "fake"
    isa = "none"
    threads = 1
    weight_bytes = 1000
    workspace_bytes = 500
    state_bytes = 10
    recent_bytes = 0
    fingerprint = "fake0123456789abcdef"

    def __init__(
        self,
        num_slots: int = 4,
        *,
        text: bytes = TEXT,
        seconds_per_token: float = 0.0,
        vocab_size: int | None = None,
        max_position: int | None = None,
        end_at: int | None = None,
        exact: bool = True,
    ) -> None:
        tokenizer = Bytes()
        self.vocab_size, self.end = vocab_size or tokenizer.vocab_size, tokenizer.end
        self.num_slots, self.max_position, self.exact = num_slots, max_position, exact
        self.text, self.seconds_per_token = text, seconds_per_token
        self.end_at = end_at  # the end symbol is drawn at this position, where it may be
        self.calls: list[list[Job]] = []
        self.resets: list[int] = []
        self.fail_at: set[int] = set()  # numbers of calls, from 0
        self.fail_prompt: int | None = None  # a call whose jobs hold this token fails
        self.gate = threading.Event()  # cleared: run blocks until it is set
        self.gate.set()
        self.blocked = threading.Event()  # a call waits at the gate
        self._positions = [0] * num_slots
        self._automata = [0] * num_slots

    def run(self, jobs: Sequence[Job]) -> list[Done]:
        """The contract of ``Runtime.run``."""
        check_jobs(jobs, self)
        number = len(self.calls)
        self.calls.append(list(jobs))
        if not self.gate.is_set():
            self.blocked.set()
            assert self.gate.wait(timeout=30)
        if number in self.fail_at or any(self.fail_prompt in job.tokens for job in jobs):
            raise RuntimeError("the fake was told to fail")
        done = [self._job(job) for job in jobs]
        time.sleep(self.seconds_per_token * max(max(len(d.drawn) for d in done), 1) if self.seconds_per_token else 0)
        return done

    def _job(self, job: Job) -> Done:
        done, before = Done(), self._positions[job.slot]
        done.target_logprobs = [target_logprob(before + i, target) for i, target in enumerate(job.targets or ())]
        if job.logits == "all":  # not normalised, as logits are
            at = range(before, before + len(job.tokens))
            rows = [[target_logprob(position, token) for token in range(self.vocab_size)] for position in at]
            done.logits = np.array(rows, np.float32)
        self._positions[job.slot] += len(job.tokens)
        while job.draw is not None and done.stopped is None and len(done.drawn) < job.draw.max_new:
            if done.drawn:
                self._positions[job.slot] += 1
            self._draw(job, done)
        if job.draw is not None and (guide := job.draw.guide) is not None:
            self._positions[guide.slot] += len(guide.tokens) + len(done.drawn) - 1
        return done

    def _draw(self, job: Job, done: Done) -> None:
        assert job.draw is not None
        position, automaton = self._positions[job.slot], job.draw.automaton
        token = self.text[(position + job.draw.params.seed + job.draw.params.sample) % len(self.text)]
        state = self._automata[job.slot]
        if position == self.end_at and (automaton is None or automaton.next[state, self.end] != FORBIDDEN):
            token = self.end
        done.drawn.append(token)
        done.logprobs.append(target_logprob(position - 1, token))
        if job.draw.top:
            done.top.append(likeliest(position - 1, job.draw.top, self.vocab_size))
        if automaton is not None:
            self._automata[job.slot] = int(automaton.next[state, token])
            if self._automata[job.slot] == ACCEPT:
                done.stopped = Stop.ACCEPT
        if done.stopped is None and position == self.max_position:
            done.stopped = Stop.LENGTH

    def position(self, slot: int) -> int:
        """Positions consumed."""
        return self._positions[slot]

    def reset(self, slot: int) -> None:
        """Back to before the first position."""
        self.resets.append(slot)
        self._positions[slot] = self._automata[slot] = 0

    def restart_automaton(self, slot: int) -> None:
        """Back to the automaton's first state."""
        self._automata[slot] = 0

    def copy(self, source: int, targets: Sequence[int]) -> None:
        """Copy a slot into others."""
        for target in targets:
            self._positions[target], self._automata[target] = self._positions[source], self._automata[source]

    def export(self, slot: int) -> bytes:
        """Two numbers."""
        return np.array([self._positions[slot], self._automata[slot]], np.int64).tobytes()

    def restore(self, slot: int, state: bytes) -> None:
        """Put two numbers back."""
        self._positions[slot], self._automata[slot] = np.frombuffer(state, np.int64).tolist()
