"""How many requests a name may make in a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import islice

from service.errors import SettingError, clip

SHORTEST = 0.001  # a wait is no 0
MAX_NAMES = 65_536  # an attacker has more addresses than we have memory


class Rate:
    """So many requests in a sliding window, by name: the last window counts for the part that still overlaps.

    Of each name three numbers are kept, of at most ``MAX_NAMES`` names: whoever called last stays.
    """

    def __init__(self, amount: int, seconds: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._amount, self._seconds, self._clock = amount, seconds, clock
        # the number of a window, the requests in it, and those in the window before; least recent names first
        self._counts: dict[str, tuple[int, int, int]] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def wait(self, name: str) -> float:
        """Count a request and return 0, or, uncounted, the seconds until one would be taken."""
        now = self._clock()
        window = math.floor(now / self._seconds)
        last, current, before = self._counts.pop(name, (window, 0, 0))
        if window > last:
            current, before = 0, current if window == last + 1 else 0
        passed = now - window * self._seconds
        taken = before * (1 - passed / self._seconds) + current < self._amount
        self._counts[name] = window, current + taken, before
        self._forget(window)
        if taken:
            return 0.0
        if current >= self._amount:
            return self._seconds - passed
        return max(self._seconds * (1 - (self._amount - current) / before) - passed, SHORTEST)

    def _forget(self, window: int) -> None:
        # two at most, and one may have come: so the table shrinks, and no request pays for it
        for name in list(islice(self._counts, 2)):
            if len(self._counts) > MAX_NAMES or self._counts[name][0] < window - 1:
                del self._counts[name]


def read_rate(text: str) -> Rate | None:
    """A rate as ``600/minute``; None where there is none. SettingError for anything else."""
    if not text.strip():
        return None
    from limits import parse_many  # a quarter of a second, for those who ask for it

    try:
        (item,) = parse_many(text)
    except ValueError:
        item = None
    if item is None or item.amount < 1:
        raise SettingError(f"AFT_RATE_LIMIT: {clip(text)!r} is no rate such as 600/minute")
    return Rate(item.amount, item.get_expiry())
