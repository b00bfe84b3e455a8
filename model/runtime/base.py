"""The contract of a runtime: it owns slots of recurrent state and advances them. One verb, ``run``.

Prefill, chunked prefill, decode and scoring are all jobs: consume these tokens, then perhaps draw some. The last
drawn token is returned and not consumed: the next job of that slot begins with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from model.automaton import Automaton
from model.sampling import NothingToDrawError, SamplingParams


class StateError(ValueError):
    """Bytes that are no state of this runtime; the slot is as it was."""


class JobError(ValueError):
    """A job that cannot run; no slot has changed."""


class Stop(Enum):
    """Why a runtime stopped drawing before ``max_new``."""

    ACCEPT = "accept"  # the automaton accepted: a stop string or the end symbol
    LENGTH = "length"  # the model's last position
    FAULT = "fault"  # nothing may be drawn: all is forbidden, or the state holds no numbers; other jobs go on


@dataclass(frozen=True, slots=True)
class Guide:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): a second stream, told less, for comparison.

    Its slot consumes ``tokens``, then what is drawn, as the guided one does. Drawn is from g + weight (own - g), g its
    logits: what the guided stream was told and this one was not counts ``weight`` times.
    """

    slot: int
    tokens: Sequence[int]  # n >= 1; after them the slot has consumed no more than the guided one after its own
    weight: float  # finite; 1 is the guided stream's own logits, but for rounding


@dataclass(frozen=True, slots=True)
class Draw:
    """Draw up to ``max_new`` tokens after the job's own."""

    params: SamplingParams
    max_new: int  # >= 1
    automaton: Automaton | None = None
    top: int = 0  # report the likeliest so many tokens beside each drawn one
    guide: Guide | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """Work for one slot; a slot has at most one job in a call."""

    slot: int
    tokens: Sequence[int]  # n >= 1, consumed in order
    targets: Sequence[int] | None = None  # return log p(targets[i] | everything up to tokens[i])
    logits: Literal["none", "last", "all"] = "none"
    draw: Draw | None = None

    @property
    def num_streams(self) -> int:
        """Its own, and its guide's."""
        return 1 if self.draw is None or self.draw.guide is None else 2


Top = list[tuple[int, float]]  # (token, log-probability), likeliest first


@dataclass(slots=True)
class Done:
    """What one job gave. Log-probabilities are the model's own, before temperature and all else."""

    target_logprobs: list[float] = field(default_factory=list)
    logits: NDArray[np.float32] | None = None  # (V) for last, (n, V) for all
    drawn: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of the drawn tokens
    top: list[Top] = field(default_factory=list)  # one a drawn token, where asked for
    stopped: Stop | None = None

    def check_drawn(self) -> None:
        """NothingToDrawError where a draw ended because there was nothing to draw from."""
        if self.stopped is Stop.FAULT:
            raise NothingToDrawError


class Runtime(Protocol):
    """Advances recurrent state. One thread at a time may call it."""

    vocab_size: int
    num_slots: int
    state_bytes: int  # of one slot
    recent_bytes: int  # of these: the last tokens, two bytes each; 0: none, or they are among the network's own
    weight_bytes: int  # a step reads all of them
    workspace_bytes: int  # of a step's activations, whatever the number of streams; 0: not known
    max_position: int | None  # None: no end
    fingerprint: str  # of weights and numerics: equal means that states are understood, and equal bits where ``exact``
    exact: bool  # whether equal requests give equal bits, in any cut, whatever runs beside them, on any machine
    name: str
    isa: str  # instruction set, or device
    threads: int

    def run(self, jobs: Sequence[Job]) -> list[Done]:
        """All given tokens first, then one token a live job until each has drawn its ``max_new`` or stopped.

        Equals each job run alone. JobError before anything changes where a job is bad.
        """
        ...

    def position(self, slot: int) -> int:
        """Positions consumed, the begin symbol included."""
        ...

    def reset(self, slot: int) -> None:
        """Back to before the first position."""
        ...

    def restart_automaton(self, slot: int) -> None:
        """Back to the automaton's first state, for draws with another one; the stream stays where it is."""
        ...

    def copy(self, source: int, targets: Sequence[int]) -> None:
        """Copy a slot, sampler included, into others."""
        ...

    def export(self, slot: int) -> bytes:
        """The slot's state; where the runtime is exact, equal histories give equal bytes."""
        ...

    def restore(self, slot: int, state: bytes) -> None:
        """Put an exported state into a slot. StateError where the bytes are damaged or another model's."""
        ...


def check_jobs(jobs: Sequence[Job], runtime: Runtime) -> None:
    """JobError for the first job that cannot run."""
    guides = [job.draw.guide for job in jobs if job.draw is not None and job.draw.guide is not None]
    slots = [job.slot for job in jobs] + [guide.slot for guide in guides]
    if len(set(slots)) != len(slots):
        raise JobError(f"a slot may have one job in a call, given {slots}")
    for job in jobs:
        _check_job(job, runtime)
        if job.draw is not None and job.draw.guide is not None:
            _check_guide(job, job.draw.guide, runtime)


def _check_job(job: Job, runtime: Runtime) -> None:
    if not 0 <= job.slot < runtime.num_slots:
        raise JobError(f"slot {job.slot} is outside 0 ... {runtime.num_slots - 1}")
    if not len(job.tokens):
        raise JobError(f"slot {job.slot}: a job consumes at least one token")
    for token in (*job.tokens, *(job.targets or ())):
        if not 0 <= token < runtime.vocab_size:
            raise JobError(f"slot {job.slot}: token {token} is outside the vocabulary of {runtime.vocab_size}")
    if job.targets is not None and len(job.targets) != len(job.tokens):
        raise JobError(f"slot {job.slot}: {len(job.targets)} targets for {len(job.tokens)} tokens")
    room = None if runtime.max_position is None else runtime.max_position - runtime.position(job.slot)
    if room is not None and len(job.tokens) > room:
        raise JobError(f"slot {job.slot}: {len(job.tokens)} tokens, but the model ends after {room} more")
    if job.draw is not None:
        _check_draw(job.slot, job.draw, runtime)


def _check_guide(job: Job, guide: Guide, runtime: Runtime) -> None:
    _check_job(Job(guide.slot, guide.tokens), runtime)
    if not math.isfinite(guide.weight):
        raise JobError(f"slot {job.slot}: the guide's weight is {guide.weight}")
    longer = runtime.position(guide.slot) + len(guide.tokens) - runtime.position(job.slot) - len(job.tokens)
    if longer > 0:
        raise JobError(f"slot {job.slot}: its guide is {longer} tokens ahead, and would end before it")


def _check_draw(slot: int, draw: Draw, runtime: Runtime) -> None:
    if not 1 <= draw.max_new < 2**31:
        raise JobError(f"slot {slot}: max_new is {draw.max_new}, at least 1 is needed, and less than 2^31")
    if not 0 <= draw.top < 2**31:
        raise JobError(f"slot {slot}: top is {draw.top}, at least 0 is needed, and less than 2^31")
    if draw.automaton is not None and draw.automaton.next.shape[1] != runtime.vocab_size:
        raise JobError(f"slot {slot}: the automaton is of another vocabulary")
    _check_params(slot, draw.params)
    bad = [token for token in draw.params.logit_bias if not 0 <= token < runtime.vocab_size]
    if bad:
        raise JobError(f"slot {slot}: logit_bias names {bad[0]}, the vocabulary has {runtime.vocab_size} ids")


def _check_params(slot: int, params: SamplingParams) -> None:
    possible = {
        "temperature": 0 <= params.temperature < math.inf,
        "top_p": 0 < params.top_p <= 1,
        "top_k": 0 <= params.top_k < 2**63,
        "min_p": 0 <= params.min_p <= 1,
        "frequency_penalty": math.isfinite(params.frequency_penalty),
        "presence_penalty": math.isfinite(params.presence_penalty),
        "repetition_penalty": 0 < params.repetition_penalty < math.inf,
        "logit_bias": not any(math.isnan(bias) or bias == math.inf for bias in params.logit_bias.values()),
        "seed": -(2**63) <= params.seed < 2**64,
        "sample": 0 <= params.sample < 2**32,
    }
    for name, is_possible in possible.items():
        if not is_possible:
            raise JobError(f"slot {slot}: {name} cannot be {getattr(params, name)}")
