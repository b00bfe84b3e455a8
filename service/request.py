"""What a generation is: what was asked, how far it has come, and the channel to who waits for it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from enum import StrEnum

from model.automaton import Automaton
from model.runtime.base import Top
from model.sampling import SamplingParams

MAX_PENDING = 8  # bursts that a reader may lag behind before its generation pauses


class Outcome(StrEnum):
    """How a request ended; the label of ``aft_requests_total``."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    ERROR = "error"
    TIMEOUT = "timeout"


@dataclass(slots=True)
class Ended:
    """What is known of a request that was admitted, once it has ended: for its line in the log and its metrics."""

    model: str
    outcome: Outcome
    prompt_tokens: int
    generated_tokens: int
    choices: int
    queue_seconds: float | None = None  # None: it never got a slot
    first_token_seconds: float | None = None  # None: it drew nothing


@dataclass(frozen=True, slots=True)
class Burst:
    """What one engine step gave to one generation: tokens, and the outcome if it was the last."""

    tokens: list[int]
    outcome: Outcome | None = None
    logprobs: list[float] = field(default_factory=list)  # of the tokens
    top: list[Top] = field(default_factory=list)  # beside each token, where asked for
    target_logprobs: list[float] = field(default_factory=list)  # of a generation with targets
    target_top: list[Top] = field(default_factory=list)  # beside each target, where asked for


# None: the drain's deadline has passed, nothing else comes
Channel = asyncio.Queue[tuple["Generation", Burst] | None]


async def take(channel: Channel) -> tuple[Generation, Burst] | None:
    """The next burst of any generation that talks into a channel; on the event loop."""
    taken = await channel.get()
    if taken is not None:
        taken[0].num_taken += 1
    return taken


@dataclass(eq=False, slots=True)
class Generation:
    """One stream. The engine's thread writes its progress; the event loop reads bursts from its channel."""

    id: str
    model: str
    prompt: list[int]  # begins with the begin symbol, or an image's condition
    params: SamplingParams
    max_tokens: int  # to generate; 0: the prompt is computed, and scored where there are targets
    automaton: Automaton
    targets: list[int] | None = None  # parallel to the prompt: their log-probabilities are delivered
    top: int = 0  # so many of the likeliest tokens beside each drawn one and each target
    guide: list[int] | None = (
        None  # parallel to the prompt: what a second slot reads, told less (runtime/base.py: Guide)
    )
    guidance: float = 1.0  # weight of what the guide is not told
    key: str = ""  # whose request it is
    deadline: float | None = None  # perf_counter's time when it is too late
    max_seconds: float | None = None  # of an unlimited stream
    slot: int | None = None
    guide_slot: int | None = None
    num_computed: int = 0  # of the prompt, by the runtime
    num_generated: int = 0
    last_token: int | None = None  # drawn, not yet consumed
    cancelled: bool = False
    arrived: float = field(default_factory=time.perf_counter)
    admitted: float | None = None
    first_token: float | None = None
    last_delivery: float | None = None
    num_delivered: int = 0  # bursts; written by the engine alone
    num_taken: int = 0  # bursts; written by the event loop alone
    channel: Channel = field(default_factory=asyncio.Queue)  # one for all generations of a request

    @property
    def num_prompt_tokens(self) -> int:
        """Without the begin symbol."""
        return len(self.prompt) - 1

    @property
    def num_slots(self) -> int:
        """Slots of the runtime that it needs."""
        return 1 if self.guide is None else 2

    @property
    def paused(self) -> bool:
        """The reader lags: generating more would only fill memory."""
        return self.num_delivered - self.num_taken >= MAX_PENDING

    def deliver(self, burst: Burst) -> None:
        """Put a burst into the channel; on the event loop."""
        self.channel.put_nowait((self, burst))

    async def next(self) -> Burst:
        """The next burst of a generation that has its channel for itself; on the event loop."""
        taken = await take(self.channel)
        assert taken is not None
        return taken[1]
