"""A pytest plugin (`-p sanitized_kernel`): the kernel that `make sanitize` built takes the installed one's place.

Where AFT_SANITIZED_KERNEL's folder has no such module, or one without the sanitizer's checks, no test runs. Processes
that a test starts have the installed kernel.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

NAME = "model.runtime.native._kernel"
VARIABLE = "AFT_SANITIZED_KERNEL"
CHECKS = (b"__asan_report_load", b"__ubsan_handle_")  # functions that only instrumented code calls


def pytest_configure() -> None:
    """Load it before anything imports the installed one."""
    folder = Path(os.environ[VARIABLE])
    (path,) = folder.glob("_kernel.*.so")
    missing = [name for name in CHECKS if name not in path.read_bytes()]
    if missing or NAME in sys.modules:
        raise pytest.UsageError(f"{path} has no {missing}" if missing else f"{NAME} was imported too early")
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)


@pytest.fixture(scope="session", autouse=True)
def the_kernel_is_sanitized() -> None:
    """What the runtime calls lies in the sanitized folder."""
    from model.runtime.native import runtime

    module = sys.modules[runtime.Kernel.__module__]
    assert runtime.Kernel is module.Kernel
    assert module.__file__ is not None
    assert Path(module.__file__).resolve().parent == Path(os.environ[VARIABLE]).resolve()
