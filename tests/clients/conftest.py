"""One live service with the shipped checkpoints, and the two clients that ask the same of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from installed import HERE, NODE, ROOT, run_script
from live import Process, serve


@pytest.fixture(scope="session")
def server() -> Iterator[Process]:
    """The native runtime; a quiet log, since nobody reads the pipe that it goes to."""
    with serve(ROOT / "checkpoints", runtime="native", log_level="warning") as process:
        yield process


@pytest.fixture(scope="session", params=["py", "mjs"], ids=["python", "node"])
def ask(request: pytest.FixtureRequest) -> Callable[..., dict[str, Any]]:
    """Run a script by its stem, in the language of the client."""
    if request.param == "mjs" and NODE is None:
        pytest.skip("node or npm is not here: the openai package for Node is NOT tested")
    return lambda stem, *arguments: run_script(HERE / f"{stem}.{request.param}", *map(str, arguments))
