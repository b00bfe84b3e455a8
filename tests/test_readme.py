"""README's examples, word for word but for the port, against the server that its first command starts."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import free_port

from model import data, emoji

ROOT = Path(__file__).parents[1]
PORT = free_port()  # 8000 may be taken
URL = f"http://127.0.0.1:{PORT}"
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """README's fenced blocks of one language, on our port."""
    return re.findall(rf"```{language}\n(.*?)```", README.replace("http://127.0.0.1:8000", URL), re.DOTALL)


def ready() -> bool:
    """Whether something serves on our port."""
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{URL}/readyz", timeout=1) as answer:
        return bool(answer.status == 200)
    return False


@contextlib.contextmanager
def running(command: list[str], **changes: str) -> Iterator[None]:
    """The command as a process of its own, until it is ready; ended with all that it started."""
    variables = os.environ | {"AFT_PORT": str(PORT)} | changes
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, env=variables)
    try:
        deadline = time.monotonic() + 120
        while not ready():
            assert process.poll() is None, f"{command} ended"
            assert time.monotonic() < deadline, f"{command} does not become ready"
            time.sleep(0.1)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=40)


def shell(command: str, **changes: str) -> str:
    """Standard output of a line that must succeed, run where README says: in the repository."""
    done = subprocess.run(
        ["bash", "-ec", command], cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ | changes
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.xdist_group("one-port")
def test_the_first_command_serves_and_the_examples_run(tmp_path: Path) -> None:
    """`make serve`, then curl, the openai client for text and an image, and `aft generate`."""
    assert "    make serve\n" in README
    curl, generate, _ = blocks("sh")
    client, painter = blocks("python")
    with running(["make", "serve"]):
        events = shell(curl)
        assert events.startswith("data: {")
        assert events.endswith("data: [DONE]\n\n")
        done = subprocess.run([sys.executable, "-c", client], capture_output=True, text=True, check=True, timeout=120)
        assert len(done.stdout) == 200
        subprocess.run([sys.executable, "-c", painter], cwd=tmp_path, check=True, timeout=120)
        assert (tmp_path / "food.png").read_bytes().startswith(b"\x89PNG")
    assert len(shell(generate)) == 201


@pytest.mark.slow
@pytest.mark.xdist_group("one-port")
def test_own_text_in_two_commands(tmp_path: Path) -> None:
    """`aft train` and `aft serve` as README has them, but for the minutes and the folder that they write to."""
    train, serve = blocks("sh")[2].splitlines()
    assert "--minutes 10" in train
    (tmp_path / "my.txt").write_text("the cat sat on the mat and the dog sat on the log\n" * 400)
    changes = {"AFT_CHECKPOINTS": str(tmp_path / "checkpoints")}
    short = train.replace("--minutes 10", "--minutes 0.1").replace(".venv", f"{shlex.quote(str(ROOT))}/.venv")
    shell(f"cd {shlex.quote(str(tmp_path))} && {short}", **changes)
    with running(shlex.split(serve), **changes):
        request = urllib.request.Request(
            f"{URL}/v1/completions",
            b'{"model": "mine", "prompt": "the cat ", "max_tokens": 10, "temperature": 0}',
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert b'"text":"' in answer.read()


def test_what_shipped_models_were_trained_on_is_known() -> None:
    """It can be fetched by name."""
    for config in (ROOT / "checkpoints").glob("*/config.json"):
        recipe = json.loads(config.read_text())["training"]["recipe"]
        known = set(data.CORPORA) if recipe["kind"] == "text" else set(emoji.SETS)
        assert {recipe["corpus"], recipe["extra"] or recipe["corpus"]} <= known
