"""What a slot remembers for sampling, and one draw with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.automaton import ACCEPT, FORBIDDEN
from model.runtime.base import Done, Draw, Stop
from model.sampling import NothingToDrawError, draw, log_softmax, penalised


@dataclass(slots=True)
class SlotSampler:
    """Counts for the penalties and the automaton's state; part of a slot's state."""

    counts: NDArray[np.int32]  # (V) how often each token was drawn
    seen: NDArray[np.bool_]  # (V) whether a token was consumed or drawn
    automaton_state: int = 0

    @classmethod
    def empty(cls, vocab_size: int) -> SlotSampler:
        """Nothing drawn, nothing seen."""
        return cls(np.zeros(vocab_size, np.int32), np.zeros(vocab_size, np.bool_))

    def copy(self) -> SlotSampler:
        """An equal one that shares nothing."""
        return SlotSampler(self.counts.copy(), self.seen.copy(), self.automaton_state)

    def consume(self, tokens: Sequence[int]) -> None:
        """Tokens that the stream now contains."""
        self.seen[np.asarray(tokens, np.int64)] = True

    def fits(self, how: Draw) -> bool:
        """Whether the automaton has the state that the slot is in."""
        return how.automaton is None or self.automaton_state < len(how.automaton.next)

    def draw(
        self,
        logits: NDArray[np.float32],
        how: Draw,
        position: int,
        done: Done,
        guide: NDArray[np.float32] | None = None,
    ) -> None:
        """Draw one token from logits (V) and add it to ``done``; a fault where there is none to draw.

        ``guide``: the logits (V) of the job's guide, where it has one.
        """
        wide = logits.astype(np.float64)
        if guide is not None and how.guide is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # a weight beyond all measure: a fault, below
                wide = guide + how.guide.weight * (wide - guide)
        scores = penalised(wide, how.params, self.counts, self.seen)
        if how.automaton is not None:
            scores[how.automaton.next[self.automaton_state] == FORBIDDEN] = -math.inf
        try:
            token = draw(scores, how.params, position)
        except NothingToDrawError:
            done.stopped = Stop.FAULT
            return
        logprobs = log_softmax(logits)
        done.drawn.append(token)
        done.logprobs.append(float(logprobs[token]))
        if how.top:
            likeliest = np.argsort(-logprobs, kind="stable")[: how.top]
            done.top.append([(int(i), float(logprobs[i])) for i in likeliest])
        self.counts[token] += 1
        self.seen[token] = True
        if how.automaton is not None:
            self.automaton_state = int(how.automaton.next[self.automaton_state, token])
            if self.automaton_state == ACCEPT:
                done.stopped = Stop.ACCEPT
