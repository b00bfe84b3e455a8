"""What a figure was measured on, which every one that is kept names, and what that can do."""

from __future__ import annotations

import platform
import subprocess
import time
from pathlib import Path


def cpu() -> str:
    """The processor's name and model number: those of one name differ. The platform's word where Linux has none."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model")]
    return " ".join(reversed(names[:2])) or platform.processor() or platform.machine()


def device_name(device: str) -> str:
    """What torch computes on, as figures name it: "cpu", or the card's own name."""
    if not device.startswith("cuda"):
        return device
    import torch

    return str(torch.cuda.get_device_name(device))


def has_bf16(device: str) -> bool:
    """Whether a kind of torch's devices multiplies bf16 in hardware; elsewhere that costs time instead of saving it."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu":
        return True
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch have none
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


def facts() -> dict[str, object]:
    """Processor, commit ("" outside a checkout, and without git), version of Python, date."""
    return {
        "cpu": cpu(),
        "commit": _commit(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
