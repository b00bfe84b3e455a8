"""What a figure was measured on: every one that is kept names it."""

from __future__ import annotations

import platform
import subprocess
import time
from pathlib import Path


def cpu() -> str:
    """The processor's name and model number: processors of one name differ. The platform's word without Linux."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model")]
    return " ".join(reversed(names[:2]))


def facts() -> dict[str, object]:
    """Processor, commit ("" outside a checkout), version of Python, date."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "cpu": cpu(),
        "commit": done.stdout.strip(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
