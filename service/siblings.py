"""Samples of one prompt compute it once: a state is small, so the others begin with a copy of the first one's."""

from __future__ import annotations

from collections.abc import Sequence

from model.runtime.base import Runtime
from service.request import Generation

LEAST = 32  # tokens: a shorter prompt is read in less time than a step of its own takes


def share(ready: Sequence[Generation], runtime: Runtime) -> dict[Generation, int]:
    """How far each prompt is to be computed now; who waits for another's state is not among them.

    The first of several samples computes all but the last token. Then the others take its state over, and each goes on
    from the last token by itself, as if it had been alone.
    """
    samples: dict[int, list[Generation]] = {}
    for generation in ready:
        if generation.num_computed < len(generation.prompt):
            samples.setdefault(id(generation.prompt), []).append(generation)
    ends: dict[Generation, int] = {}
    for group in samples.values():
        end = len(group[0].prompt)
        first = max(group, key=lambda each: each.num_computed)
        others = [each for each in group if each is not first and not each.num_computed]
        # another cut would change the numbers of a runtime that is not exact; and each scores its own targets
        if not others or end < LEAST or first.targets is not None or not runtime.exact:
            ends.update(dict.fromkeys(group, end))
        elif first.num_computed < end - 1:
            ends.update({each: end for each in group if each not in others})
            ends[first] = end - 1
        else:
            _take_over(first, others, runtime)
            ends.update(dict.fromkeys(group, end))
    return ends


def _take_over(first: Generation, others: Sequence[Generation], runtime: Runtime) -> None:
    assert first.slot is not None
    runtime.copy(first.slot, [each.slot for each in others if each.slot is not None])
    if first.guide_slot is not None:
        runtime.copy(first.guide_slot, [each.guide_slot for each in others if each.guide_slot is not None])
    for each in others:
        each.num_computed = first.num_computed
