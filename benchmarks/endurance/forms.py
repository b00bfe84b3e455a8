"""Every scenario in its long form, and in a short one of some seconds that tests run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from endurance import beside_images, disconnects, long_prompt, overload, soak, stalled, termination
from endurance.figures import Figures

Form = Callable[[], Awaitable[Figures]]

LONG: dict[str, Form] = {
    "disconnects": disconnects.run,
    "overload": overload.run,
    "stalled": stalled.run,
    "termination": termination.run,
    "second_signal": partial(termination.run, second=True),
    "beside_images": beside_images.run,
    "long_prompt": long_prompt.run,
    "soak": soak.run,
}

# Times are compared too, but widely: a test shares its machine with others, so few events have no p99, and a tenth of
# so short a stream is one request of another client.
SHORT: dict[str, Form] = {
    "disconnects": partial(disconnects.run, count=40, max_tokens=500, idle_seconds=10, threads=1),
    "overload": partial(
        overload.run,
        seconds=3,
        slots=2,
        queue=4,
        max_tokens=400,
        times=20,
        factor=20,
        memory_bytes=4 << 20,
        settle_seconds=0.5,
        threads=1,
    ),
    "stalled": partial(stalled.run, stalled_seconds=6, max_tokens=200, factor=20, growth_bytes=4 << 20, threads=1),
    "termination": partial(termination.run, streams=16, drain_seconds=2, factor=5, threads=1),
    "second_signal": partial(termination.run, streams=16, drain_seconds=60, factor=5, second=True, threads=1),
    "beside_images": partial(beside_images.run, characters=3000, rounds=3, counts=(1,), factor=4, tail=90, threads=1),
    "long_prompt": partial(long_prompt.run, characters=5000, rounds=3, factor=5, threads=1),
    "soak": partial(soak.run, seconds=4, warm_up=2, growth_bytes=6 << 20, flat=10, parts=2, size=0.2, threads=1),
}
