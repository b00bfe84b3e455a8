"""How a command ends that cannot go on: one line on standard error, and status 1."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer


def fail(message: str) -> typer.Exit:
    """One line on standard error, and the status to raise."""
    typer.echo(f"aft: {message}", err=True)
    return typer.Exit(1)


def require(what: str, *modules: str) -> None:
    """Fail, before anything is begun, where ``what`` needs modules of the extra ``train`` that are not installed."""
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise fail(f"{what} needs {' and '.join(missing)}: make setup-train, or pip install -e '.[train]'")


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the process with 0, until who serves handles it.

    Process 1 of a container is not ended by a signal that it does not handle, and imports take their time; in one of
    them an exception could get lost.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def one_line() -> Iterator[None]:
    """What the user, a file or the machine has wrong ends a command with one line; a fault of ours is a traceback."""
    try:
        yield
    except Exception as error:
        from model.checkpoint import CheckpointError
        from model.fetch import DataError
        from model.runtime.choice import RuntimeMissingError

        if isinstance(error, (ValueError, OSError, CheckpointError, DataError, RuntimeMissingError)):
            raise fail(str(error)) from None
        if _is_out_of_memory(error):
            said = str(error).partition("\n")[0]
            raise fail(f"there is not enough memory for this ({said or 'none is left'}): ask for less") from None
        raise


def _is_out_of_memory(error: Exception) -> bool:
    """Whether the machine, or torch's device, has no room; torch's CPU allocator has no error of its own for it."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def check_writable(*files: Path | None) -> None:
    """Fail, before hours of work are done, where a file has no folder to stand in, or is one."""
    for file in files:
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            raise fail(f"{file} cannot be written: {'it is a folder' if file.is_dir() else f'no folder {file.parent}'}")
