"""The clients' own environment, and how one is run in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CLIENTS = ROOT / "build" / "clients"
PYTHON = str(CLIENTS / "python" / "bin" / "python")
NODE = shutil.which("node") if (CLIENTS / "node_modules").exists() else None


def run(*command: str, script: str = "", cwd: Path = CLIENTS, **env: str) -> Any:
    """What a client that must succeed prints, from JSON."""
    done = subprocess.run(
        command, input=script, cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout)


def run_script(path: Path, *arguments: str) -> Any:
    """What calls.py, calls.mjs or another such script prints."""
    if path.suffix == ".py":
        return run(PYTHON, str(path), *arguments)
    assert NODE is not None
    # from standard input: packages are then looked for in the working directory
    return run(NODE, "--input-type=module", "-", *arguments, script=path.read_text())
