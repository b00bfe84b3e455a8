"""Who holds the slots of one runtime, who waits for them, and who is refused. No torch.

The engine's thread and the event loop share this under its lock.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import Counter, deque
from collections.abc import Sequence

from model.runtime.base import Runtime
from service.request import Generation


class QueueFullError(Exception):
    """No place left to wait."""


class KeyQueueFullError(QueueFullError):
    """This key has no place left; another may."""


class Slots:
    """The slots of one runtime and who waits for them."""

    def __init__(self, runtime: Runtime, max_queue: int, max_per_key: int = 0, max_queue_per_key: int = 0) -> None:
        self.runtime, self.max_queue = runtime, max_queue
        self.max_per_key = max_per_key  # slots that one key may hold; 0: any number
        self.max_queue_per_key = max_queue_per_key  # places in the queue that one key may hold; 0: any number
        self.lock = threading.Lock()  # held to change what follows, never while the runtime runs
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []
        self.free = list(range(runtime.num_slots))  # a heap: the lowest slots first, so that few tiles are in use

    def room(self, key: str, num_slots: int = 1) -> int:
        """Generations of a key, of so many slots each, that can run and wait where there are no others."""
        slots, places = self.runtime.num_slots, self.max_queue
        if key and self.max_per_key:
            slots = max(num_slots, min(slots, self.max_per_key))  # who needs two has them where one is the limit
        if key and self.max_queue_per_key:
            places = min(places, self.max_queue_per_key)
        return places + slots // num_slots

    @property
    def is_full(self) -> bool:
        """Whether nobody finds a place, of whatever key. A look without the lock: ``add`` counts."""
        if self.max_per_key and self.free:  # who waits may be passed over
            return False
        return len(self.waiting) >= self.max_queue + len(self.free)

    def add(self, *generations: Generation, force: bool = False) -> None:
        """Queue all of them, of one key. QueueFullError, and none is queued, where slots and places are too few.

        ``force`` is for the rest of a request that was admitted before.
        """
        if not force:
            count, full = self._fitting(generations)
            if count < len(generations):
                raise full
        self.waiting.extend(generations)

    def offer(self, *generations: Generation) -> int:
        """Queue those, of one key, that find a place, the first ones; returns how many."""
        count, _ = self._fitting(generations)
        self.waiting.extend(generations[:count])
        return count

    def _fitting(self, generations: Sequence[Generation]) -> tuple[int, QueueFullError]:
        """How many find a place, the first ones, and what the next lacks. Who gets a free slot needs no place."""
        new, key = set(generations), generations[0].key
        _, left = self._next([*self.waiting, *generations])
        before = [generation for generation in left if generation not in new]
        places, full = self.max_queue - len(before), QueueFullError()
        if key and self.max_queue_per_key:
            own = self.max_queue_per_key - sum(generation.key == key for generation in before)
            if own < places:
                places, full = own, KeyQueueFullError()
        places = max(0, places)  # what was forced in may have taken more than there are
        waiting = [generation for generation in left if generation in new]
        if len(waiting) <= places:
            return len(generations), full
        return generations.index(waiting[places]), full

    def admit(self, now: float) -> None:
        """Give free slots to those who wait longest."""
        if not self.free:
            return
        for generation in self._next(self.waiting)[0]:
            self.waiting.remove(generation)
            self.running.append(generation)  # first: who runs is told where something breaks
            generation.slot = self._take()
            if generation.guide is not None:
                generation.guide_slot = self._take()
            generation.admitted = now

    def _next(self, waiting: Sequence[Generation]) -> tuple[list[Generation], list[Generation]]:
        """Who of these gets the free slots, in their order, and who is left.

        Whose key holds enough is passed over; who finds too few free slots is not: nobody overtakes it.
        """
        free, held = len(self.free), Counter[str]()
        if self.max_per_key:
            for generation in self.running:
                held[generation.key] += generation.num_slots
        admitted: list[Generation] = []
        left: list[Generation] = []
        for place, generation in enumerate(waiting):
            if self._holds_enough(held[generation.key], generation):
                left.append(generation)
                continue
            if free < generation.num_slots:
                left += itertools.islice(waiting, place, None)
                break
            free -= generation.num_slots
            held[generation.key] += generation.num_slots
            admitted.append(generation)
        return admitted, left

    def _holds_enough(self, held: int, generation: Generation) -> bool:
        """Whether a key may have no more slots. A drawing that needs two has them where one is the limit, too."""
        return bool(self.max_per_key and generation.key and held and held + generation.num_slots > self.max_per_key)

    def _take(self) -> int:
        self.runtime.reset(self.free[0])
        return heapq.heappop(self.free)

    def remove(self, generation: Generation) -> None:
        """Take a generation out, wherever it is; its slots are free."""
        if generation in self.running:
            self.running.remove(generation)
            for slot in (generation.slot, generation.guide_slot):
                if slot is not None:
                    heapq.heappush(self.free, slot)
            generation.slot = generation.guide_slot = None
        elif generation in self.waiting:
            self.waiting.remove(generation)
