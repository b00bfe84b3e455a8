"""Who gets slots and places beside others: shares of keys, requests of which a part is enough."""

from __future__ import annotations

import pytest
from fake_runtime import FakeRuntime

from model.automaton import stops
from model.sampling import SamplingParams
from model.tokenizer import Bytes
from service.request import Generation
from service.slots import KeyQueueFullError, QueueFullError, Slots

TOKENIZER = Bytes()
NO_STOPS = stops(TOKENIZER.token_bytes, [], TOKENIZER.end, ignore_end=True)


def of(key: str, count: int, *, guided: bool = False) -> list[Generation]:
    """Generations of a key; a guided one needs two slots."""
    made = [Generation("g", "fake", [TOKENIZER.begin], SamplingParams(), 10, NO_STOPS) for _ in range(count)]
    for generation in made:
        generation.key = key
        generation.guide = [TOKENIZER.begin] if guided else None
    return made


def test_a_share_of_the_slots_is_no_share_of_the_queue() -> None:
    """A key that may hold one slot fills the queue and no more; another gets the slots that are free."""
    slots = Slots(FakeRuntime(4), 3, 1)
    slots.add(*of("a", 4))
    slots.admit(0.0)
    assert (len(slots.running), len(slots.waiting)) == (1, 3)
    with pytest.raises(QueueFullError):
        slots.add(*of("a", 1))
    assert not slots.is_full
    slots.add(*of("b", 1))
    slots.admit(0.0)
    assert [generation.key for generation in slots.running] == ["a", "b"]
    for key in "cd":
        assert not slots.is_full
        slots.add(*of(key, 1))
        slots.admit(0.0)
    assert slots.is_full
    with pytest.raises(QueueFullError):
        slots.add(*of("b", 1))


def test_who_will_be_passed_over_needs_no_place_of_another() -> None:
    """A small drawing that would begin at once is not refused because a large one of its key waits."""
    slots = Slots(FakeRuntime(6), 5, 3, 1)
    slots.add(*of("a", 1, guided=True))
    slots.admit(0.0)
    slots.add(*of("a", 1, guided=True))
    slots.admit(0.0)
    assert len(slots.waiting) == 1
    slots.add(*of("a", 1))
    slots.admit(0.0)
    assert len(slots.running) == 2
    with pytest.raises(KeyQueueFullError):
        slots.add(*of("a", 1))


@pytest.mark.parametrize(("max_per_key", "max_queue_per_key", "room"), [(0, 0, 11), (2, 0, 9), (2, 3, 5), (0, 3, 7)])
def test_room_is_what_can_be_added_to_an_empty_server(max_per_key: int, max_queue_per_key: int, room: int) -> None:
    """So a request above it never fits, and one of that many does."""
    slots = Slots(FakeRuntime(4), 7, max_per_key, max_queue_per_key)
    assert slots.room("a") == room
    with pytest.raises(QueueFullError):
        slots.add(*of("a", room + 1))
    slots.add(*of("a", room))
    assert len(slots.waiting) == room
    assert slots.room("") == 11


@pytest.mark.parametrize(("max_queue", "queue_per_key", "found"), [(2, 0, 3), (9, 1, 2), (0, 0, 1)])
def test_some_are_as_many_as_fit(max_queue: int, queue_per_key: int, found: int) -> None:
    """Beside one that runs: the free slot, and the places that there are."""
    slots = Slots(FakeRuntime(2), max_queue, 0, queue_per_key)
    slots.add(*of("a", 1))
    slots.admit(0.0)
    wanted = of("a", 5)
    with pytest.raises(QueueFullError):
        slots.add(*wanted)
    assert slots.offer(*wanted) == found
    assert list(slots.waiting) == wanted[:found]
    assert slots.offer(*of("a", 5)) == 0
    assert len(slots.waiting) == found


def test_some_are_all_where_there_is_room() -> None:
    """No more is held back than must be."""
    slots = Slots(FakeRuntime(2), 9)
    assert slots.offer(*of("a", 5)) == 5


def test_more_than_there_are_places_for_harm_nobody_else() -> None:
    """The rest of an admitted request is let in where the queue is full; who gets a free slot still gets it."""
    slots = Slots(FakeRuntime(4), 3, 1)
    slots.add(*of("a", 4))
    slots.admit(0.0)
    slots.add(*of("a", 2), force=True)
    assert len(slots.waiting) == 5
    assert slots.offer(*of("a", 1)) == 0
    slots.add(*of("b", 1))
    assert slots.offer(*of("c", 1)) == 1
    slots.admit(0.0)
    assert [generation.key for generation in slots.running] == ["a", "b", "c"]
