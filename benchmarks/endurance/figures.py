"""What scenarios say of times, and of what broke."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Figures = dict[str, Any]


class Report:
    """Figures, and a sentence for each promise that was not kept."""

    def __init__(self, **parameters: object) -> None:
        self._figures: Figures = dict(parameters)
        self._broken: list[str] = []

    def note(self, **figures: object) -> None:
        """Add figures."""
        self._figures |= figures

    def demand(self, kept: bool, promise: str) -> None:
        """A promise, and whether it was kept."""
        if not kept:
            self._broken.append(promise)

    def figures(self) -> Figures:
        """All of it; ``broken`` is empty where every promise was kept."""
        return {**self._figures, "broken": self._broken}


def quantile(values: Iterable[float], share: float) -> float:
    """Of plain values; 0 where there are none."""
    return weighted_quantile(((value, 1) for value in values), share)


def weighted_quantile(values: Iterable[tuple[float, int]], share: float) -> float:
    """Of values that count several times each; 0 where there are none."""
    ordered = sorted(values)
    left = share * sum(count for _, count in ordered)
    for value, count in ordered:
        left -= count
        if left <= 0:
            return value
    return 0.0


def per_token(gaps: Iterable[tuple[float, int]]) -> list[tuple[float, int]]:
    """Gaps between events -> seconds a character, as often as there were characters."""
    return [(seconds / count, count) for seconds, count in gaps if count]
