"""Stops as an automaton over tokens: one table look-up a token decides what may be drawn and when to stop.

Stop strings, the end symbol and forbidden tokens are all this; so a runtime knows no other reason to end a stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FORBIDDEN = -1
ACCEPT = 1  # the state that ends a stream; 0 is where every stream starts


@dataclass(frozen=True, slots=True)
class Automaton:
    """``next[state, token]``: the next state, or -1 where the token may not be drawn. State 1 accepts: stop."""

    next: NDArray[np.int32]  # (states, V)

    def __post_init__(self) -> None:
        """ValueError for a table that leads to a state it does not have."""
        if self.next.ndim != 2 or not FORBIDDEN <= self.next.min() <= self.next.max() < len(self.next):
            raise ValueError(f"an automaton's table {self.next.shape} leads outside its states")


def stops(token_bytes: Sequence[bytes], strings: Sequence[bytes], end: int, *, ignore_end: bool) -> Automaton:
    """Stop where any of the strings is complete, across any token borders, or at the end symbol.

    What writes nothing, such as begin, is never drawn; neither is end where it is ignored. Aho and Corasick 1975,
    over bytes, then over tokens.
    """
    step = _bytes_automaton(strings)
    states = np.arange(len(step))
    table = np.zeros((len(step), len(token_bytes)), np.int32)
    for token, written in enumerate(token_bytes):
        at = states
        for byte in written:  # all states at once; the accepting one leads to itself
            at = step[at, byte]
        table[:, token] = at if written else FORBIDDEN
    table[:, end] = FORBIDDEN if ignore_end else ACCEPT
    return Automaton(table)


def _bytes_automaton(strings: Sequence[bytes]) -> NDArray[np.int32]:
    """``step[state, byte]``, complete; state 0 is the root and state 1 accepts."""
    children: list[dict[int, int]] = [{}, {}]
    for string in strings:
        state = 0
        for byte in string[:-1]:
            if byte not in children[state]:
                children.append({})
                children[state][byte] = len(children) - 1
            state = children[state][byte]
            if state == ACCEPT:  # another stop is complete before this one
                break
        else:
            children[state][string[-1]] = ACCEPT
    step = np.zeros((len(children), 256), np.int32)
    step[ACCEPT] = ACCEPT
    fallback = [0] * len(children)
    waiting = deque([0])
    while waiting:
        state = waiting.popleft()
        if state:
            step[state] = step[fallback[state]]
        for byte, child in children[state].items():
            below = int(step[state, byte])  # where a shorter stop ends inside a longer one, it is complete first
            if below == ACCEPT:
                continue
            step[state, byte] = child
            if child != ACCEPT:
                fallback[child] = below
                waiting.append(child)
    return step
