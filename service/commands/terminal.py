"""How a command ends that cannot go on: one line on standard error, and status 1."""

from __future__ import annotations

import importlib.util

import typer


def fail(message: str) -> typer.Exit:
    """One line on standard error, and the status to raise."""
    typer.echo(f"aft: {message}", err=True)
    return typer.Exit(1)


def require(what: str, *modules: str) -> None:
    """Fail, before anything is begun, where ``what`` needs modules of the extra ``train`` that are not installed."""
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise fail(f"{what} needs {' and '.join(missing)}: make setup-train, or pip install -e '.[train]'")
