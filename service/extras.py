"""What a plain installation lacks: asked for before a command begins, so that one line says what is missing."""

from __future__ import annotations

import importlib.util


def require(what: str, *modules: str) -> None:
    """ValueError where a module of the extra ``train`` that ``what`` needs is not installed."""
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise ValueError(f"{what} needs {' and '.join(missing)}: make setup-train, or pip install -e '.[train]'")
