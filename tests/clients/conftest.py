"""One live service with the shipped checkpoints, and the clients' own environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live import Process, serve

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CLIENTS = ROOT / "build" / "clients"
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def server() -> Iterator[Process]:
    """The native runtime; a quiet log, since nobody reads the pipe that it goes to."""
    with serve(ROOT / "checkpoints", runtime="native", log_level="warning") as process:
        yield process


@pytest.fixture(scope="session", params=["py", "mjs"], ids=["python", "node"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Run a script by its stem, in the language of the client: its JSON."""
    if request.param == "mjs" and not (CLIENTS / "node_modules").exists():
        pytest.skip("node and npm are not here: the openai package for Node is NOT tested")

    def run(stem: str, *arguments: object) -> dict[str, Any]:
        script = HERE / f"{stem}.{request.param}"
        command = [str(CLIENTS / "bin" / "python"), "-"]
        if script.suffix == ".mjs":  # from standard input: packages are then looked for in the working directory
            command = [str(shutil.which("node")), "--input-type=module", "-"]
        return json.loads(run_client(*command, *map(str, arguments), script=script.read_text()))

    return run


def run_client(*command: str, script: str = "", cwd: Path = CLIENTS, **env: str) -> str:
    """Standard output of a client that must succeed."""
    done = subprocess.run(
        command, input=script, cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout
